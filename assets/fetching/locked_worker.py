"""What every child of `locked_children.py` does: lock itself up, then answer one request a line."""

import json
import resource
import sys
from collections.abc import Callable
from typing import Any

from assets.fetching.isolation import gain_no_privileges, leave_network

MEMORY_BYTES = 6 << 30


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer the requests on standard input, one a line.

    It has no secrets, no network where the system allows that, and limits on memory and on what it
    may write. `answer` may raise MediaError.
    """
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
        said: dict[str, Any]
        try:
            said = answer(json.loads(line))
        except MediaError as error:
            said = {"invalid": [error.reason, error.detail[:300]]}
        except MemoryError:
            said = {"invalid": ["oom", f"more than {MEMORY_BYTES >> 30} GiB needed"]}
        print(json.dumps(said), flush=True)
