"""Opens video files and says what they hold. A child process of `probe.py`.

Files of strangers are opened here and not in the parent: the parent kills this process when it
hangs, and goes on when it crashes. It has no secrets, no network where the system allows that, and
limits on memory and on what it may write. What it asks of a file is `model.media.examination`.

Reads one JSON object a line (`path`, `max_pixels`) and answers with one: `{"facts": {...}}`
or `{"invalid": [reason, message]}`. The first line that it writes says how it is locked up.
"""

import json
import resource
import sys
from typing import Any

from assets.fetching.isolation import gain_no_privileges, leave_network

MEMORY_BYTES = 6 << 30


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


def main() -> None:
    """Answer the requests on standard input, one a line."""
    isolation = leave_network()  # before anything is imported that starts threads
    gain_no_privileges()
    for limit, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    import av

    from model.media.refusals import MediaError

    av.logging.set_level(av.logging.PANIC)
    print(json.dumps({"isolation": isolation}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"facts": probe(request["path"], request["max_pixels"])}
        except MediaError as error:
            answer = {"invalid": [error.reason, error.detail[:300]]}
        except MemoryError:
            answer = {"invalid": ["oom", f"more than {MEMORY_BYTES >> 30} GiB needed"]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
