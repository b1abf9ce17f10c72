"""A decoded frame as an upright RGB square: colours, orientation, size.

**Colours.** The conversion is stated in full, matrix and range, because what FFmpeg and PyAV
assume when nothing is said has changed with their versions (before PyAV 17, BT.709 and BT.2020 were
converted as BT.601, and pictures of some widths were written past their end). What the stream says
is used; what says nothing is BT.601 in limited range. The result is at most 3 steps of 255 from the
exact conversion: swscale computes in 16 bits.

**Orientation** is the display matrix of the container, turned and mirrored.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# The numbers of ITU-T H.273 that FFmpeg uses for the matrix of a stream -> those of swscale.
BT601, BT709, FCC, SMPTE240M, BT2020 = 5, 1, 4, 7, 9
MATRICES = {1: BT709, 4: FCC, 5: BT601, 6: BT601, 7: SMPTE240M, 9: BT2020, 10: BT2020}
LIMITED, FULL = 1, 2


def colour_matrix(frame: av.VideoFrame) -> int:
    """The matrix of a frame's colours: one of the five above, BT.601 where it says nothing."""
    return MATRICES.get(int(frame.colorspace), BT601)


def full_range(frame: av.VideoFrame) -> bool:
    """Whether a frame's values use all of their range."""
    return int(frame.color_range) == FULL or frame.format.name.startswith("yuvj")


class PictureMaker:
    """Makes upright RGB squares of the frames of one video: uint8 [size, size, 3].

    The pixels' aspect ratio does not matter: squashing undoes it.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._reformatter = VideoReformatter()  # one for all frames: it keeps its tables

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        # Imported here: it needs torch, whose import takes longer than reading a timeline.
        from model.media.resize import resize_frame

        return resize_frame(upright(self.rgb(frame), frame), self._size)

    def rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """The frame as it is stored, uint8 [H, W, 4]: red, green, blue, and one value to ignore,
        with which pictures are resized three times as fast.
        """
        # One thread: with several, those of swscale write a few bytes past the end of their last
        # row, over what the next one has written, where the width is odd for vector instructions.
        # Pixels then differ from run to run.
        stated: dict[str, Any] = {"format": "rgba", "threads": 1}
        if not frame.format.is_rgb:
            matrix = colour_matrix(frame)
            stated |= {
                "src_colorspace": matrix,
                "dst_colorspace": matrix,
                "src_color_range": FULL if full_range(frame) else LIMITED,
                "dst_color_range": FULL,
            }
        return self._reformatter.reformat(frame, **stated).to_ndarray()


def upright(image_HWC: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """The stored picture of a frame as it is meant to be seen: by quarter turns, and mirrored."""
    (a, b), (c, d) = display_matrix(frame)
    # A pixel at (x, y) is shown at (a x + c y, b x + d y).
    if abs(a) + abs(d) >= abs(b) + abs(c):
        columns, rows = a, d
    else:
        image_HWC = image_HWC.transpose(1, 0, 2)
        columns, rows = c, b
    return image_HWC[:: -1 if rows < 0 else 1, :: -1 if columns < 0 else 1]


def display_matrix(frame: av.VideoFrame) -> np.ndarray:
    """The upper left part of a frame's display matrix, float64 [2, 2]; unity where it has none."""
    side: Any = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return np.eye(2)
    fixed = np.frombuffer(side, np.int32)[:9].reshape(3, 3)
    return fixed[:2, :2] / 65536
