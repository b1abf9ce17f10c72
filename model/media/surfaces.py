"""Pictures out of NV12 surfaces, computed where the surface lies: what `model.media.pictures` makes
of the same frame on the CPU, on a GPU.

A video engine gives NV12: a plane of brightness, and one of both colours at half the size. The
arithmetic of swscale (16-bit products, each cut off) and of torch's resize (integer weights, 8 bits
between the passes) is repeated step by step, so that pictures are the same bit for bit as on an
x86-64 CPU; `TOLERANCE` is what is promised, in steps of 255.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from model.media.pictures import BT601, BT709, BT2020, FCC, SMPTE240M
from model.media.resize import vertically_first

TOLERANCE = 2

# Of a matrix: how much red depends on V, blue on U, green on U and on V, in 1/65536. From
# libswscale/yuv2rgb.c.
COEFFICIENTS = {
    BT709: (117489, 138438, 13975, 34925),
    FCC: (104448, 132798, 24759, 53109),
    BT601: (104597, 132201, 25675, 53279),
    SMPTE240M: (117579, 136230, 16907, 35559),
    BT2020: (110013, 140363, 12277, 42626),
}


class SurfaceConverter:
    """Makes RGB squares of the surfaces of one video.

    Args:
        size: S, of a square.
        matrix: of the colours, as `pictures.colour_matrix` gives it.
        full: whether values use all of their range.
    """

    def __init__(self, size: int, matrix: int, full: bool) -> None:
        self._size = size
        self._luma, *self._chroma = _factors(matrix, full)
        self._black = 0 if full else 16 * 8
        self._weights: dict[tuple[int, torch.device], tuple[Tensor, int]] = {}

    def __call__(self, luma_THW: Tensor, chroma_Thw2: Tensor) -> Tensor:
        """uint8 [T, H, W] and [T, H/2, W/2, 2] (U, V) -> uint8 [T, S, S, 3] on the same device."""
        rgb_TCHW = self._rgb(luma_THW, chroma_Thw2)
        height, width = rgb_TCHW.shape[-2:]
        if vertically_first((width, height), (self._size, self._size)):
            rgb_TCHW = self._down(rgb_TCHW)
            rgb_TCHW = self._across(rgb_TCHW)
        else:
            rgb_TCHW = self._across(rgb_TCHW)
            rgb_TCHW = self._down(rgb_TCHW)
        return rgb_TCHW.permute(0, 2, 3, 1).to(torch.uint8).contiguous()

    def _rgb(self, luma_THW: Tensor, chroma_Thw2: Tensor) -> Tensor:
        """float32 [T, 3, H, W] of whole numbers, each colour value used for two by two pixels."""
        red_v, blue_u, green_u, green_v = self._chroma
        bright_THW = (luma_THW.int() * 8 - self._black) * self._luma >> 16
        u_Thw, v_Thw = ((chroma_Thw2[..., i].int() - 128) * 8 for i in (0, 1))
        # The green terms are taken away, so their factors are negative before they are cut off.
        shifts_TChw = torch.stack(
            [
                v_Thw * red_v >> 16,
                (u_Thw * -green_u >> 16) + (v_Thw * -green_v >> 16),
                u_Thw * blue_u >> 16,
            ],
            1,
        )
        shifts_TCHW = shifts_TChw.repeat_interleave(2, -1).repeat_interleave(2, -2)
        height, width = luma_THW.shape[-2:]
        rgb_TCHW = bright_THW[:, None] + shifts_TCHW[..., :height, :width]
        return rgb_TCHW.clamp_(0, 255).float()

    def _across(self, x_TCHW: Tensor) -> Tensor:
        weights, bits = self._weights_for(x_TCHW.shape[-1], x_TCHW.device)
        return _rounded(x_TCHW @ weights.T, bits)

    def _down(self, x_TCHW: Tensor) -> Tensor:
        weights, bits = self._weights_for(x_TCHW.shape[-2], x_TCHW.device)
        return _rounded(weights @ x_TCHW, bits)

    def _weights_for(self, length: int, device: torch.device) -> tuple[Tensor, int]:
        key = (length, device)
        if key not in self._weights:
            weights, bits = resize_weights(length, self._size)
            self._weights[key] = torch.from_numpy(weights).to(device), bits
        return self._weights[key]


def _factors(matrix: int, full: bool) -> list[int]:
    """Of brightness, and of the four of `COEFFICIENTS`, in 1/8192, as swscale rounds them."""
    luma = (1 << 16) if full else (1 << 16) * 255 // 219
    chroma: tuple[int, ...] = COEFFICIENTS[matrix]
    if full:
        chroma = tuple(value * 224 // 255 for value in chroma)
    return [((value << 13) + (1 << 15)) >> 16 for value in (luma, *chroma)]


def _rounded(sums: Tensor, bits: int) -> Tensor:
    """Weighted sums as 8-bit values: exact, since float32 holds every sum of this size."""
    return ((sums + (1 << (bits - 1))) / (1 << bits)).floor_().clamp_(0, 255)


def resize_weights(length: int, size: int) -> tuple[np.ndarray, int]:
    """The weights of torch's antialiased bicubic resize in 8 bits: whole numbers as float32
    [size, length], and the number of bits behind their point.
    """
    scale = length / size
    support, inverse = (2 * scale, 1 / scale) if scale >= 1 else (2.0, 1.0)
    exact = np.zeros((size, length))
    for i in range(size):
        centre = scale * (i + 0.5)
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), length)
        taps = [_cubic((j - centre + 0.5) * inverse) for j in range(first, last)]
        exact[i, first:last] = np.array(taps) / sum(taps)
    bits = 0
    while bits < 22 and int(0.5 + exact.max() * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    whole = np.trunc(exact * (1 << bits) + np.where(exact < 0, -0.5, 0.5))
    return whole.astype(np.float32), bits


def _cubic(x: float, a: float = -0.5) -> float:
    """The filter of Keys, as Pillow and torch have it."""
    x = math.fabs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    if x < 2:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0
