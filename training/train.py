"""The torchrun entry: `torchrun ... -m training.train run.json`.

Exit status 0: finished. 2: the configuration cannot work, trying again cannot help. 74: a disk or
store is at fault; once that is mended, the same command continues. 75: asked to stop, a checkpoint
was written, the same command continues. 1: anything else; the same command continues from the
newest checkpoint.

torch is imported, which takes seconds, only after this process has asked the kernel to end it with
its parent: until then a parent that is killed would leave it behind.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path

from training.data.fork_server import start_fork_server
from training.formats.machine_faults import machine_fault
from training.run_config import load_run
from training.supervise import (
    CONFIGURATION,
    FAILED,
    MACHINE,
    OK,
    PREEMPTED,
    die_with_torchrun,
    report_failure,
)

log = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Train as the JSON file says and return the exit status."""
    die_with_torchrun()
    if len(arguments) != 1:
        print("usage: torchrun ... -m training.train RUN.json", file=sys.stderr)
        return CONFIGURATION
    from training.reporting import open_reporter

    with open_reporter() as reporter:
        try:
            run = load_run(Path(arguments[0]))
            if run.workers != 0:
                start_fork_server()
            from training.data.loader import build_loader
            from training.loop import Preempted, train
            from training.ranks import join_ranks, leave_ranks

            ranks = join_ranks(run.device)
            try:
                train(run, ranks, reporter, build_loader)
            except Preempted as preempted:
                report_failure(PREEMPTED, str(preempted))
                reporter.note(str(preempted))
                return PREEMPTED
            leave_ranks()
        except ValueError as error:
            traceback.print_exc()
            report_failure(CONFIGURATION, str(error))
            return CONFIGURATION
        except Exception as error:
            traceback.print_exc()
            if fault := machine_fault(error):
                report_failure(MACHINE, fault)
                return MACHINE
            report_failure(FAILED, f"{type(error).__name__}: {error}")
            return FAILED
    return OK


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads that wait for ranks which are gone must not keep a failed rank, and its
    # GPU, alive.
    os._exit(status)
