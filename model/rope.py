"""Rotary position embedding on the first half of each head, as MemAug uses it.

Shapes: T tokens, H heads, D dims of a head, R = D/4 rotated pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(
    positions_T: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T, R] of every position, R = head_dim / 4 frequencies for the half of the
    head that turns.

    Angles are formed in float32 although positions reach 240,000: float64 ones move the output by
    1e-3, and the released weights were trained with float32.
    """
    rotated = head_dim // 2
    exponent_R = (
        torch.arange(0, rotated, 2, device=positions_T.device, dtype=torch.float32) / rotated
    )
    angle_TR = torch.outer(positions_T.float(), 1.0 / theta**exponent_R)
    return angle_TR.cos().to(dtype), angle_TR.sin().to(dtype)


def rotate(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Turn the first half of each head by its position; GPT-NeoX pairing (dim i with i + R). Keeps
    shape and type.
    """
    pairs = cos_TR.shape[-1]
    cos_T1R, sin_T1R = cos_TR[:, None], sin_TR[:, None]
    a_THR, b_THR, rest = x_THD[..., :pairs], x_THD[..., pairs : 2 * pairs], x_THD[..., 2 * pairs :]
    return torch.cat(
        [a_THR * cos_T1R - b_THR * sin_T1R, b_THR * cos_T1R + a_THR * sin_T1R, rest], dim=-1
    )
