"""What follows a vision encoder, whichever it is: pooling, the projector, and a video's features.

Shapes: T frames, S picture size in pixels, P patches (row by row), C vision width, D language model
width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.vision_encoders import VisionEncoder

# Frames that pass through the encoder at once when no gradient is kept: bounds memory, changes no
# result.
CHUNK = 128


class Projector(nn.Module):
    """Vision features [..., C] to language model embeddings [..., D]."""

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(vision_width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x_C: Tensor) -> Tensor:
        return self.out(F.gelu(self.up(x_C)))


def pool_frames(x_TPC: Tensor, side: int) -> Tensor:
    """Shrink each frame's square patch grid to side x side: [T, P, C] -> [T, side * side, C],
    bilinear.
    """
    patches = round(x_TPC.shape[1] ** 0.5)
    x_TCHW = x_TPC.transpose(1, 2).unflatten(-1, (patches, patches))
    return (
        F.interpolate(x_TCHW, (side, side), mode="bilinear", align_corners=False)
        .flatten(2)
        .transpose(1, 2)
    )


@torch.no_grad()
def encode_frames(encoder: VisionEncoder, pixels_T3SS: Tensor, side: int) -> Tensor:
    """What a feature file holds: frames [T, 3, S, S], on any device, to pooled features [T, side *
    side, C] on its own.

    At most `CHUNK` frames are on the encoder's device at a time.
    """
    device = next(encoder.parameters()).device
    chunks = (chunk.to(device, non_blocking=True) for chunk in pixels_T3SS.split(CHUNK))
    return torch.cat([pool_frames(encoder(chunk), side) for chunk in chunks])
