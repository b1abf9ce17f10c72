"""What is asked of Slurm, through its own commands: submit, find, look at, cancel.

Any Slurm has these commands, and their output formats are chosen here (`-o`), so no version's JSON
is read. Accounting (`sacct`) is asked only for jobs that the controller has forgotten, and may be
missing.
"""

from __future__ import annotations

import getpass
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

# https://slurm.schedmd.com/job_state_codes.html
WAITING = (
    "PENDING", "CONFIGURING", "EXPEDITING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD",
    "RESV_DEL_HOLD", "SPECIAL_EXIT",
)  # fmt: skip
ENDING = "COMPLETING"
CANCELLED = "CANCELLED"
NO_TIME = "TIMEOUT"
PREEMPTED = "PREEMPTED"
NO_MEMORY = "OUT_OF_MEMORY"
FORGOTTEN = "FORGOTTEN"  # neither the controller nor accounting knows how the job ended
# The ends are listed and not what lives: a job of a state that is not known here, which a newer
# Slurm may have, can still write. REVOKED is no end: so the cluster where a job was submitted calls
# it while another cluster of its federation runs it.
ENDS = (
    "BOOT_FAIL", CANCELLED, "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", NO_MEMORY, PREEMPTED,
    NO_TIME, FORGOTTEN,
)  # fmt: skip

_TIMEOUT_S = 120
_FIELDS = "%i|%T|%r|%N|%P|%S|%k"
# Of a job that ended long ago, or never was.
_UNKNOWN_JOB = "Invalid job id"


class SlurmUnreachable(RuntimeError):
    """The controller does not answer."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as Slurm tells it.

    Attributes:
        state: one of Slurm's, such as `PENDING`, or `FORGOTTEN`.
        reason: why it waits, or ended.
        nodes: list of its nodes, as Slurm abbreviates it; empty while it waits.
        start: when it is expected to begin, where the scheduler has planned it.
        comment: what it was submitted with.
    """

    id: str
    state: str
    reason: str = ""
    nodes: str = ""
    partition: str = ""
    start: str = ""
    comment: str = ""

    @property
    def waits(self) -> bool:
        return self.state in WAITING

    @property
    def over(self) -> bool:
        """Whether none of it runs any more, or will."""
        return self.state in ENDS


def submit(options: Sequence[str], script: str) -> str:
    """Submit a batch script; the job's id.

    Raises:
        ValueError: Slurm refuses it; the sentence is Slurm's.
        SlurmUnreachable: nobody answers. It may have been submitted all the same.
    """
    status, output, error = _run("sbatch", "--parsable", *options, script)
    if status:
        _refuse_unreachable(error)
        raise ValueError(f"sbatch: {error.strip()}")
    return output.strip().partition(";")[0]


def find(name: str) -> list[Job]:
    """This user's jobs of that name that wait or run, the oldest first.

    Raises:
        SlurmUnreachable: the controller does not answer.
    """
    found = _jobs(f"--user={getpass.getuser()}", f"--name={name}", "--sort=i")
    return [job for job in found if not job.over and job.state != ENDING]


def look(job_id: str) -> Job:
    """How a job is.

    Raises:
        SlurmUnreachable: the controller does not answer.
    """
    found = _jobs(f"--jobs={job_id}", "--states=all")
    if found:
        return found[0]
    status, output, _ = _run(
        "sacct", "-n", "-X", "-P", f"--jobs={job_id}", "--format=State,NodeList,Reason"
    )
    if status or not output.strip():  # no accounting here, or nothing in it yet
        return Job(job_id, FORGOTTEN)
    told, nodes, reason = output.strip().splitlines()[-1].split("|")
    state = told.split()[0]  # "CANCELLED by 1000"
    # Accounting that missed the end still says RUNNING; the controller knows better.
    return Job(job_id, state if state in ENDS else FORGOTTEN, reason, nodes)


def preempted(job_id: str) -> bool:
    """Whether a job had to make room for another one. One that then ended by itself, within the
    time that its partition grants, has another state.

    Raises:
        SlurmUnreachable: the controller does not answer.
    """
    status, output, error = _run("scontrol", "--oneliner", "show", "job", job_id)
    if status:
        if _UNKNOWN_JOB in error:
            return False
        raise SlurmUnreachable(f"scontrol: {error.strip()}")
    return re.search(r" PreemptTime=\d", output) is not None


def position(job: Job) -> tuple[int, int]:
    """The place of a waiting job in its partition, by priority, from 1; and how many wait there.

    Raises:
        SlurmUnreachable: the controller does not answer.
    """
    waiting = _jobs(f"--partition={job.partition}", "--states=PENDING", "--sort=-p,i")
    ids = [other.id for other in waiting]
    return (ids.index(job.id) + 1 if job.id in ids else len(ids), len(ids))


def cancel(job_id: str) -> None:
    """Cancel a job; one that ended already is no error.

    Raises:
        SlurmUnreachable: the controller does not answer.
    """
    status, _, error = _run("scancel", job_id)
    if status and _UNKNOWN_JOB not in error:
        raise SlurmUnreachable(f"scancel: {error.strip()}")


def _jobs(*options: str) -> list[Job]:
    # `--all`: jobs of hidden partitions too, and those that another cluster of a federation runs.
    status, output, error = _run("squeue", "--all", "--noheader", f"--format={_FIELDS}", *options)
    if status:
        if _UNKNOWN_JOB in error:
            return []
        raise SlurmUnreachable(f"squeue: {error.strip()}")
    return [Job(*_cells(line)) for line in output.splitlines() if line.strip()]


def _cells(line: str) -> list[str]:
    """The columns of a line of squeue; what it has no value for is empty."""
    empty = ("(null)", "N/A", "None", "n/a")
    return ["" if cell in empty else cell for cell in line.split("|", _FIELDS.count("|"))]


def _refuse_unreachable(error: str) -> None:
    # A refusal is `Batch job submission failed: why`; so is a controller that is away.
    away = ("Unable to contact", "Connection refused", "timed out", "Zero Bytes", "Socket")
    if any(sign in error for sign in away):
        raise SlurmUnreachable(f"sbatch: {error.strip()}")


def _run(*command: str) -> tuple[int, str, str]:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise SlurmUnreachable(f"{command[0]}: no answer in {_TIMEOUT_S} s") from None
    except FileNotFoundError:
        if command[0] == "sacct":
            return 1, "", ""
        raise ValueError(
            f"{command[0]} is not installed here; run Dagster on a machine that submits to Slurm, "
            "or set compute's engine to local"
        ) from None
    return ended.returncode, ended.stdout, ended.stderr
