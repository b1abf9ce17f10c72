"""Small real video files whose pictures carry their own number, so that a test can see which frame
it was given.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

GRID = 4  # a picture is a 4 x 4 board of dark and light cells: 16 bits


def picture(number: int, width: int, height: int) -> np.ndarray:
    """A grey board that spells `number`, uint8 [height, width, 3]. No two numbers look alike when
    turned.
    """
    bits = np.array([(number >> bit) & 1 for bit in range(GRID * GRID)]).reshape(GRID, GRID)
    rows, columns = np.arange(height) * GRID // height, np.arange(width) * GRID // width
    return np.repeat((28 + 200 * bits[rows][:, columns])[..., None], 3, axis=2).astype(np.uint8)


def number(picture_HWC: np.ndarray) -> int:
    """The number that a picture spells, read from the middle of its cells."""
    height, width = picture_HWC.shape[:2]
    cells = [(2 * row + 1, 2 * column + 1) for row in range(GRID) for column in range(GRID)]
    half = 2 * GRID
    return sum(
        int(picture_HWC[y * height // half, x * width // half].mean() > 128) << i
        for i, (y, x) in enumerate(cells)
    )


def encode(
    path: Path,
    frames: int,
    *,
    codec: str = "libx264",
    rate: Fraction | int = 30,
    size: tuple[int, int] = (160, 96),
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    container: str | None = None,
    turned: int = 0,
    first: int = 0,
    title: str = "",
    **codec_settings: object,
) -> Path:
    """Write `frames` numbered pictures. `times` in `time_base` units make the rate vary. `turned`
    stores the pictures that many quarter turns counter-clockwise (the caller says in the container
    how to turn them back).
    """
    width, height = size
    with av.open(str(path), "w", format=container) as out:
        if title:
            out.metadata["title"] = title
        stream = out.add_stream(codec, rate=rate, options=options or {})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.thread_count = 1  # threads of tiny pictures mostly wait for each other
        if time_base is not None:
            stream.codec_context.time_base = time_base
        for name, value in codec_settings.items():
            setattr(stream.codec_context, name, value)
        for index in range(frames):
            board = picture(first + index, *(size if turned % 2 == 0 else (height, width)))
            image = np.ascontiguousarray(np.rot90(board, turned))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixel_format)
            frame.pts = index if times is None else times[index]
            frame.time_base = time_base or 1 / Fraction(rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path
