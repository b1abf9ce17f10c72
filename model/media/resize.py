"""Resizing in 8 bits, as the SigLIP processor does it: Pillow's antialiased bicubic filter, one
axis after the other.

The picture between the two passes is rounded and clipped to 0 .. 255, so their order shows: by up
to 20 steps in noise, hardly at all in photographs. Pillow before version 13 always went
horizontally first; 13 goes vertically first where that is less work. The recorded numbers that this
project reproduces are of version 13, so its order is written out here and every version of Pillow
gives the same pixels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An 8-bit image to `size` (width, height), exactly."""
    halfway = (
        (image.width, size[1]) if vertically_first(image.size, size) else (size[0], image.height)
    )
    return image.resize(halfway, Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)


def resize_frame(frame_HWC: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] or [H, W, 4] -> uint8 [size, size, 3], at most 2 steps of 255 from
    `resize_image` and several times as fast, three times more so with a fourth channel, which is
    left out of the result.

    Not in floating point: without the rounding between the passes the result is off by up to 34
    steps.
    """
    frame_HWC = np.require(
        frame_HWC, requirements=["C", "W"]
    )  # torch takes neither turned nor read-only arrays
    # The leading axis before the permutation, or torch does not see that colours lie innermost.
    frame_1CHW = torch.from_numpy(frame_HWC[None]).permute(0, 3, 1, 2)
    height, width = frame_HWC.shape[:2]
    if vertically_first((width, height), (size, size)):  # torch always goes horizontally first
        frame_1CHW = F.interpolate(frame_1CHW, (size, width), mode="bicubic", antialias=True)
    frame_1CHW = F.interpolate(frame_1CHW, (size, size), mode="bicubic", antialias=True)
    resized_SSC = frame_1CHW[0].permute(1, 2, 0).numpy()
    resized = np.empty((size, size, 3), np.uint8)
    for channel in range(3):  # one by one: all at once takes five times as long
        resized[..., channel] = resized_SSC[..., channel]
    return resized


def vertically_first(size: tuple[int, int], target: tuple[int, int]) -> bool:
    """Where the height shrinks, and by a larger factor than the width. Both (width, height)."""
    (width, height), (target_width, target_height) = size, target
    return height > target_height and height * target_width > width * target_height
