"""Decodes pictures of clips of a video and gives them as JPEG. A child process of `frames.py`.

A request is `path`, `max_pixels` and either nothing more (the answer is `{"duration": seconds}`) or
`times`, a list of seconds for each clip, `side` and `quality` (the answer is `{"clips": [[JPEG in
base64, ...], ...]}`).
"""

import base64
import io
from functools import lru_cache
from typing import Any

from assets.fetching.locked_worker import serve


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """How long a video is, or pictures of it.

    Raises:
        MediaError: it is no readable video.
    """
    line = timeline(request["path"], request["max_pixels"])
    if "times" not in request:
        return {"duration": line.duration}
    return {"clips": pictures(line, **{n: request[n] for n in ("times", "side", "quality")})}


@lru_cache(maxsize=1)  # a video is asked for clip by clip
def timeline(path: str, max_pixels: int) -> Any:
    """When each of its frames is shown."""
    from model.media.timeline import read_timeline

    return read_timeline(path, max_pixels=max_pixels)


def pictures(line: Any, times: list[list[float]], side: int, quality: int) -> list[list[str]]:
    """The frames that are shown at `times`, ascending, as JPEG of `side` pixels at most, upright
    and with the sides of the video.
    """
    import numpy as np
    from PIL import Image

    from model.media.reader import decode

    flat = np.asarray([second for clip in times for second in clip], np.float64)
    chosen = np.maximum(np.searchsorted(line.pts, flat, side="right") - 1, 0)
    longest = max(line.width, line.height, 1)
    size = max(side * line.width // longest, 1), max(side * line.height // longest, 1)
    files = []
    for frame in decode(line, chosen, size=side):
        file = io.BytesIO()
        Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC).save(
            file, "JPEG", quality=quality
        )
        files.append(base64.b64encode(file.getvalue()).decode())
    left = iter(files)
    return [[next(left) for _ in clip] for clip in times]


if __name__ == "__main__":
    serve(answer)
