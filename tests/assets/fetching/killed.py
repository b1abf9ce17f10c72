"""A transfer in a process that is killed while bytes arrive, as by the machine's owner."""

import os
import signal
from collections.abc import Callable


def killed_after(count: int, fetch: Callable[[Callable[[int], None]], object]) -> None:
    """Call `fetch` with a function that takes the number of bytes that came, in a process that
    kills itself once there are `count`. Fails if the process ends otherwise.
    """
    child = os.fork()
    if child == 0:
        came = 0

        def watch(more: int) -> None:
            nonlocal came
            came += more
            if came >= count:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            fetch(watch)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
