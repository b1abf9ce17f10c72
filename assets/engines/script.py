"""The batch script of a job, and the options that it is submitted with.

The batch shell starts one task on each node and waits for it. It alone gets the signal before the
time limit, and turns it into the file that `training.supervise` on every node asks for: a signal to
the ranks themselves would also reach the processes that read their data.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from assets.deployment.compute import Pool
from training.supervise import CONTROL_VARIABLE, STOP_NAME

LOG_NAME = "log.txt"
LIMIT_NAME = "time-limit-near"  # there once Slurm sent the signal before the time limit
STATUS_NAME = "status"  # exit status of the task that failed worst; 0 when all ended well
SCRIPT_NAME = "job.sh"
TASK_NAME = "task.sh"
CONTROL = "control-"  # and the number of a node: a folder of training.supervise
FOLDER_VARIABLE = "HOURLLAVA_JOB"
MEETING_VARIABLE = "HOURLLAVA_MEETING"  # host:port on the first node, for torchrun
# Seconds that the other nodes get to end after the first did: its ranks are missed only by then.
WAIT_S = 60

_FREE_PORT = 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'


def interpreter(pool: Pool) -> str:
    """The Python of the nodes."""
    return pool.python or sys.executable


def options(pool: Pool, folder: Path, name: str, comment: str, nodes: int) -> list[str]:
    """What `sbatch` is told. A lost job is not requeued by Slurm: the step submits the next one, so
    that it can count them, and say why.

    Args:
        folder: of the job.
        nodes: how many.
    """
    given = {
        "--job-name": name,
        "--comment": comment,
        "--output": str(folder / LOG_NAME),
        "--nodes": str(nodes),
        "--ntasks-per-node": "1",
        "--signal": f"B:USR1@{pool.stop_before_s}",
        "--partition": pool.partition,
        "--account": pool.account,
        "--time": pool.time_limit,
        "--gpus-per-node": pool.gpus_per_node,
        "--cpus-per-task": pool.cpus_per_task,
    }
    chosen = [f"{flag}={value}" for flag, value in given.items() if value is not None]
    return [*chosen, "--no-requeue", *pool.extra]


def write_script(
    pool: Pool, folder: Path, command: Sequence[str], variables: Mapping[str, str]
) -> Path:
    """Write the script of a job into its folder.

    Args:
        command: what each node runs; `$NAME` in it is replaced there.
        variables: of the environment, besides that of the step.
    """
    if pool.python is None:  # the code of the UI's interpreter
        paths = os.pathsep.join(path for path in sys.path if path)
        variables = {"PYTHONPATH": paths, **variables}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    cores = f" --cpus-per-task={pool.cpus_per_task}" if pool.cpus_per_task else ""
    job = f'"${FOLDER_VARIABLE}"'
    lines = [
        "#!/bin/bash",
        f"export {FOLDER_VARIABLE}={shlex.quote(str(folder))}",
        *exports,
        *pool.setup,
        f'export {MEETING_VARIABLE}="$(hostname):'
        f'$({shlex.quote(interpreter(pool))} -c {shlex.quote(_FREE_PORT)})"',
        f"trap 'touch {job}/{LIMIT_NAME}; "
        f'for node in {job}/{CONTROL}*; do touch "$node/{STOP_NAME}"; done\' USR1',
        f"srun --wait={WAIT_S}{cores} bash {job}/{TASK_NAME} &",
        "srun=$!",
        # The signal ends the first wait; srun goes on.
        'while kill -0 "$srun" 2> /dev/null; do wait "$srun"; status=$?; done',
        f'echo "$status" > {job}/{STATUS_NAME}.partial',
        f"mv {job}/{STATUS_NAME}.partial {job}/{STATUS_NAME}",
        'exit "$status"',
    ]
    task = [
        f'export {CONTROL_VARIABLE}={job}/{CONTROL}"$SLURM_NODEID"',
        f'mkdir -p "${CONTROL_VARIABLE}"',
        f"exec {' '.join(_quoted(word) for word in command)}",
    ]
    (folder / TASK_NAME).write_text("\n".join(task) + "\n")
    script = folder / SCRIPT_NAME
    script.write_text("\n".join(lines) + "\n")
    return script


def _quoted(word: str) -> str:
    """A word of a command line; variables of `--flag=$NAME` are left to the shell."""
    flag, separator, value = word.partition("=")
    if separator and value.startswith("$") and value[1:].isidentifier():
        return f'{shlex.quote(flag)}="{value}"'
    return shlex.quote(word)
