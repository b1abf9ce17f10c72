"""Frames that are least like their neighbours: for each the mean cosine similarity of its features
to those of the nearest frames in time; the lowest stay.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from model.frame_rules import FrameRule, Video

NEAREST = 8  # neighbours of a frame: four on each side, more on the other one at an end


def choose(video: Video, count: int) -> Tensor:
    """Of equal frames the earlier ones stay."""
    order_T = similarity(video.features_TC).sort(stable=True).indices
    return order_T[:count].sort().values.cpu()


def similarity(features_TC: Tensor) -> Tensor:
    """Each frame's mean cosine similarity [T] to its nearest frames in time, float32."""
    unit_TC = normalize(features_TC.float(), dim=-1)
    frames = len(unit_TC)
    near = min(NEAREST, frames - 1)
    if near < 1:
        return unit_TC.new_zeros(frames)
    # The window of a frame and its neighbours, pushed inside at the ends of the video.
    first_T = (torch.arange(frames, device=unit_TC.device) - near // 2).clamp(0, frames - 1 - near)
    total_T = unit_TC.new_zeros(frames)
    for place in range(near + 1):
        total_T += (unit_TC * unit_TC[first_T + place]).sum(-1)
    own_T = (unit_TC * unit_TC).sum(-1)
    return (total_T - own_T) / near


RULE = FrameRule("features", choose)
