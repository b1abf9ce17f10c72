"""Imported by the fork server and by nothing else, so that steps die with their run.

Dagster's multiprocess executor forks every step from one fork server (`multiprocessing`'s
`forkserver`), which lives as long as one of its steps does, also when the run's worker was killed.
Without this module such a step would go on, training for days, while Dagster says that its run
failed, frees its slot and lets the next one have the GPU.
"""

from __future__ import annotations

import os
import signal

from training.supervise import die_with_parent

_FORK_SERVER = os.getpid()


def _die_with_fork_server() -> None:
    """In every process forked below: die with the fork server, if that is the parent.

    What a step forks has another parent. How long it lives is the step's own business.
    """
    if os.getppid() == _FORK_SERVER:
        die_with_parent(signal.SIGKILL, expected_parent=_FORK_SERVER)


die_with_parent(signal.SIGKILL)  # the fork server's parent is the run's worker
os.register_at_fork(after_in_child=_die_with_fork_server)
