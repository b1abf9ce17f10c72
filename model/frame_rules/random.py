"""Frames drawn at random, in training anew in each epoch, as each sample's seed says.

A sample without a seed, as one that is asked, is drawn by its number of frames: the same video
always keeps the same frames.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from model.frame_rules import FrameRule, Video


def choose(video: Video, count: int) -> Tensor:
    """Drawn by a generator of its own, so that what stays of a frame does not depend on it."""
    name = f"frames of length {video.frames}" if video.seed is None else f"frames {video.seed}"
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.randperm(video.frames, generator=generator)[:count].sort().values


RULE = FrameRule("nothing", choose)
