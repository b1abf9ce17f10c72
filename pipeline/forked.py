"""Imported by the process that steps are forked from, and by nothing else: whatever kills a run
kills its steps.

Such a process lives on as long as one of its steps does, also when the run's worker was killed. The
step would go on, training for days, while Dagster says that its run failed, frees its slot and lets
the next one have the GPU.
"""

from __future__ import annotations

import os
import signal

from training.supervise import die_with_parent

_SERVER = os.getpid()


def _die_with_server() -> None:
    if os.getppid() == _SERVER:  # a step; what a step forks is the step's own business
        die_with_parent(signal.SIGKILL, expected_parent=_SERVER)


die_with_parent(signal.SIGKILL)  # the run's worker
os.register_at_fork(after_in_child=_die_with_server)
