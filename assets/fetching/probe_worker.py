"""Opens video files and says what they hold. A child process of `probe.py`.

Files of strangers are opened here and not in the parent: the parent kills this process when it
hangs, and goes on when it crashes. What it asks of a file is `model.media.examination`.

A request is `path` and `max_pixels`; the answer is `{"facts": {...}}`.
"""

from typing import Any

from assets.fetching.locked_worker import serve


def probe(path: str, max_pixels: int) -> dict[str, Any]:
    """What the file holds: the fields of `probe.VideoFacts`.

    Raises:
        MediaError: it is no readable video.
    """
    from model.media.examination import examine

    found = examine(path, max_pixels=max_pixels)
    line = found.timeline
    return {
        "suffix": found.suffix,
        "duration": line.duration,
        "frames": line.frames,
        "missing_s": found.missing_s,
        "losses": line.losses,
        "codec": line.codec,
        "width": line.width,
        "height": line.height,
        "bad_places": found.bad_places,
    }


if __name__ == "__main__":
    serve(lambda request: {"facts": probe(request["path"], request["max_pixels"])})
