"""Frames that are most like the question: cosine similarity of the frame's mean token behind the
projector and the mean word embedding of the prompt behind the video.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity

from model.frame_rules import FrameRule, Video


def choose(video: Video, count: int) -> Tensor:
    """Of equal frames the earlier ones stay."""
    alike_T = cosine_similarity(video.tokens_TD.float(), video.question_D.float()[None], dim=-1)
    order_T = alike_T.sort(descending=True, stable=True).indices
    return order_T[:count].sort().values.cpu()


RULE = FrameRule("question", choose)
