"""The jobs of one step: submitted, found again, watched, cancelled, followed by the next one.

A job is known by its name, that of the product, and by what it was asked (`request`), which stands
in its comment. So whoever starts the same step again, after a restart of Dagster too, finds the
job that waits or runs, and submits none beside it. A job is one attempt; when it was lost, or had
no time left, the step submits the next one, which goes on from what is there.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from assets.deployment.compute import Compute, Pool
from assets.engines import slurm
from assets.engines.messages import JobMessages
from assets.engines.script import CONTROL, LIMIT_NAME, LOG_NAME, STATUS_NAME, options, write_script
from assets.engines.telling import JobTeller, LogFollower, why
from training.supervise import (
    CONFIGURATION,
    FAILED,
    MACHINE,
    OK,
    PREEMPTED,
    STOP_NAME,
    read_failure,
)

MESSAGES_NAME = "messages.jsonl"
KEEP = 5  # folders of earlier jobs of a step: scripts and logs
END_S = 120.0  # for Slurm to end what was cancelled
_NODES_LIVE = (slurm.NO_TIME, slurm.PREEMPTED)  # ends that say nothing against a job's nodes
SIGNAL_S = 5.0  # from the mark of a terminated run to the signal


@dataclass(frozen=True, slots=True)
class Work:
    """What a step wants to be done by jobs.

    Attributes:
        product: what the step makes, `stage3[7b]`.
        request: hash of all that decides the work.
        command: what each node runs.
        variables: of its environment.
        nodes: most machines.
        fits: whether so many machines can do it together.
        grace_s: seconds that the work gets to write a checkpoint when the step is terminated; 0
            where it has nothing to save.
        reached: how far the work is; another value after a job means that the job helped. None:
            nothing tells how far unfinished work is.
        look: called at every look at a running job.
    """

    product: str
    request: str
    command: Callable[[Path], Sequence[str]]
    variables: Mapping[str, str] = field(default_factory=dict)
    nodes: int = 1
    fits: Callable[[int], bool] = lambda nodes: True
    grace_s: float = 0.0
    reached: Callable[[], object] | None = None
    look: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended.

    Attributes:
        why: in words.
        status: exit status of its tasks; None where it left none.
        folder: of the job.
        report: what `training.supervise` had to say, where it ran: `code`, `message`, `rank`.
    """

    job: slurm.Job
    why: str
    status: int | None
    folder: Path
    report: dict[str, Any] | None


class Jobs:
    """Runs work as jobs for a step.

    Args:
        context: of the step.
        compute: the folder of jobs, and how often to look.
        pool: how they are submitted.
    """

    def __init__(self, context: dg.AssetExecutionContext, compute: Compute, pool: Pool) -> None:
        self.context, self.compute, self.pool = context, compute, pool
        self._owner = os.getppid()

    def run(self, work: Work) -> Ended:
        """Do the work, in as many jobs as it takes.

        Returns:
            Of the first job that ended well, or with an exit status that says why it failed.

        Raises:
            dg.Failure: a job was cancelled by somebody else, or too many in a row were lost.
            ValueError: Slurm refuses the job.
        """
        _own_folder(self.compute.folder)
        measure = work.reached or (lambda: None)
        lost, reached, nodes = 0, measure(), work.nodes
        while True:
            ended = self._one(work, nodes)
            if not self._goes_on(ended, work):
                return ended
            now = measure()
            lost, reached = (lost + 1, reached) if now == reached else (0, now)
            if lost > self.pool.restarts:
                if ended.report is not None and ended.status != PREEMPTED:
                    return ended
                raise self._failure(
                    ended.job,
                    f"{ended.why}. {_in_a_row(work)}: {lost}; look at the log and the nodes, and "
                    "materialize again to go on, or raise the pool's restarts",
                )
            if ended.status != PREEMPTED and ended.job.state not in _NODES_LIVE:
                nodes = self._without_one(nodes, work)
            self.context.log.warning(
                f"job {ended.job.id} {ended.why}; the next job goes on from what is there, on "
                f"{nodes} {'node' if nodes == 1 else 'nodes'}. {_in_a_row(work)}: {lost}, of at "
                f"most {self.pool.restarts}"
            )

    def _without_one(self, nodes: int, work: Work) -> int:
        """On how many nodes the next job is, after one of so many lost one: the next lower number
        that fits the work; as many again where none does down to the pool's least.
        """
        least = self.pool.least_nodes or nodes
        return next((n for n in range(nodes - 1, least - 1, -1) if work.fits(n)), nodes)

    def _goes_on(self, ended: Ended, work: Work) -> bool:
        """Whether another job can do what this one did not.

        Raises:
            dg.Failure: a person has to decide: it was cancelled, or its memory ran out.
        """
        if ended.status == OK:
            return False
        if ended.job.state == slurm.CANCELLED:
            raise self._failure(
                ended.job, f"{ended.why}; materialize again to go on from what is there"
            )
        if ended.job.state == slurm.NO_MEMORY:
            raise self._failure(
                ended.job, f"{ended.why}; ask for more (extra: ['--mem=...']), or do less at a time"
            )
        if ended.status in (None, PREEMPTED) or ended.job.state in _NODES_LIVE:
            return True
        # Ended by a signal, so none of its tasks said why; or, of several nodes, one lost another.
        return ended.status >= 128 or (ended.status == FAILED and work.nodes > 1)

    def _one(self, work: Work, nodes: int) -> Ended:
        """One job to its end."""
        name = job_name(self.compute, work.product)
        found = self._found(name, work)
        folder = _job_folder(self.compute, name, found)
        messages = JobMessages(folder / MESSAGES_NAME)
        with dg.open_pipes_session(
            context=self.context,
            # In the environment, so that a job that is found again needs no file of this step.
            context_injector=dg.PipesEnvContextInjector(),
            message_reader=messages,
        ) as session:
            if found is None:
                variables = {**work.variables, **session.get_bootstrap_env_vars()}
                found = self._submit(name, folder, work, nodes, variables)
            try:
                job = self._watch(found, folder, messages, work)
            except BaseException:
                self._leave(found.id, folder, work)
                raise
        status, report = _status(folder), _weightiest(folder)
        if status not in (None, OK) and report is not None:
            status = int(report["code"])  # that of srun is the highest, a signal's for example
        preempted = status == PREEMPTED and self._answered(lambda: slurm.preempted(job.id))
        told = why(job, status, (folder / LIMIT_NAME).exists(), preempted)
        return Ended(job, told, status, folder, report)

    def _found(self, name: str, work: Work) -> slurm.Job | None:
        """The job that does this work already. Jobs that do other work for the same product are
        cancelled: both would write the same files.
        """
        for job in self._answered(lambda: slurm.find(name)):
            if job.comment.startswith(_comment(work)):
                self.context.log.info(
                    f"found job {job.id} of an earlier run, {job.state}; it is not started twice"
                )
                return job
            self.context.log.warning(
                f"job {job.id} makes {work.product} from other inputs or settings; it is cancelled"
            )
            self._cancel(job.id, _job_folder(self.compute, name, job), work)
        return None

    def _submit(
        self, name: str, folder: Path, work: Work, nodes: int, variables: Mapping[str, str]
    ) -> slurm.Job:
        comment = f"{_comment(work)} folder={folder.name} run={self.context.run_id}"
        script = write_script(self.pool, folder, work.command(folder), variables)
        given = options(self.pool, folder, name, comment, nodes)
        self.context.log.info(f"sbatch {' '.join(given)} {script}")

        def once() -> str:
            # One that was submitted although nobody answered is not submitted again.
            earlier = [job.id for job in slurm.find(name) if job.comment == comment]
            return earlier[0] if earlier else slurm.submit(given, str(script))

        return slurm.Job(self._answered(once), "PENDING")

    def _watch(self, job: slurm.Job, folder: Path, messages: JobMessages, work: Work) -> slurm.Job:
        """Hand on what the job says until it is over."""
        told = JobTeller(self.context, work.product)
        log = LogFollower(folder / LOG_NAME)
        while True:
            job = self._answered(partial(slurm.look, job.id), give_up=lambda: _status(folder) == OK)
            told.tell(job)
            log.forward()
            messages.forward()
            if not job.waits:
                work.look()
            if job.over or _status(folder) == OK:
                log.forward()
                return job
            if os.getppid() != self._owner:
                raise RuntimeError("the process that owns this step died")
            if self._terminated():
                # The signal follows and ends this sleep; but what a signal's handler raises inside
                # of a finalizer Python drops.
                time.sleep(SIGNAL_S)
                raise dg.DagsterExecutionInterruptedError("the run was terminated")
            time.sleep(self.compute.poll_s)

    def _answered(self, ask: Callable[[], Any], give_up: Callable[[], bool] = lambda: False) -> Any:
        """What Slurm answers. A controller that is away is waited for: jobs run on without it."""
        silent = False
        while True:
            try:
                answer = ask()
            except slurm.SlurmUnreachable as error:
                if give_up():
                    return slurm.Job("", slurm.FORGOTTEN)
                if not silent:
                    self.context.log.warning(
                        f"Slurm's controller does not answer ({error}); jobs go on without it, and "
                        "it is asked again until it does"
                    )
                silent = True
                time.sleep(self.compute.poll_s)
                continue
            if silent:
                self.context.log.info("Slurm's controller answers again")
            return answer

    def _leave(self, job_id: str, folder: Path, work: Work) -> None:
        """The step ends before its job: terminated, it takes the job with it; otherwise, as when
        Dagster is restarted, the job goes on and is found again.
        """
        if self._terminated():
            self.context.log.info(f"terminated: job {job_id} is cancelled")
            self._cancel(job_id, folder, work)
            self.context.log.info(f"job {job_id} has ended")
        else:
            self.context.log.warning(
                f"job {job_id} goes on without this step; materialize again to find it "
                f"(scancel {job_id} ends it)"
            )

    def _terminated(self) -> bool:
        """Whether a person ended the run."""
        run = self.context.instance.get_run_by_id(self.context.run_id)
        ended = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
        return run is not None and run.status in ended

    def _cancel(self, job_id: str, folder: Path, work: Work) -> None:
        """End a job, after a checkpoint where it has something to save; return when it is over."""
        job = self._answered(lambda: slurm.look(job_id))
        if work.grace_s and job.state == "RUNNING":
            for control in folder.glob(f"{CONTROL}*"):
                (control / STOP_NAME).touch()
            self._until_over(job_id, work.grace_s)
        self._answered(lambda: slurm.cancel(job_id))
        self._until_over(job_id, END_S)

    def _until_over(self, job_id: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._answered(lambda: slurm.look(job_id)).over:
                return
            time.sleep(min(1.0, self.compute.poll_s))

    def _failure(self, job: slurm.Job, text: str) -> dg.Failure:
        facts = {"slurm job": job.id, "state": job.state, "nodes": job.nodes or "none"}
        return dg.Failure(f"job {job.id} {text}", metadata=facts, allow_retries=False)


def job_name(compute: Compute, product: str) -> str:
    """The name of the jobs that make a product of this deployment."""
    deployment = hashlib.sha256(str(compute.folder).encode()).hexdigest()[:8]
    return f"hourllava-{deployment}-{re.sub(r'[^A-Za-z0-9._-]+', '-', product).strip('-')}"


def _in_a_row(work: Work) -> str:
    """What the jobs that are counted have in common."""
    known = "got no further" if work.reached else "did not finish (how far they got, nothing tells)"
    return f"Jobs in a row that {known}"


def _comment(work: Work) -> str:
    return f"request={work.request}"


def _own_folder(folder: Path) -> None:
    """Make the folder of jobs, for this user alone: what lies there is run.

    Raises:
        ValueError: it belongs to somebody else, or others may write in it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ValueError(
            f"{folder}: others may write here, and what lies here is run by jobs; make it "
            f"{getpass.getuser()}'s alone (chmod 700), or set compute.folder"
        )


def _job_folder(compute: Compute, name: str, job: slurm.Job | None) -> Path:
    """The folder of a job, a new one for a job that is still to be submitted; old ones go."""
    folder = compute.folder / name
    if job is not None and (named := re.search(r" folder=(\d+)\b", job.comment)):
        return folder / named[1]
    earlier = sorted(int(path.name) for path in folder.glob("[0-9]*")) if folder.exists() else []
    for number in earlier[:-KEEP]:
        shutil.rmtree(folder / str(number))
    new = folder / str(earlier[-1] + 1 if earlier else 1)
    new.mkdir(parents=True)
    return new


def _status(folder: Path) -> int | None:
    """Exit status that the batch script wrote; None where it did not come to that."""
    try:
        return int((folder / STATUS_NAME).read_text())
    except FileNotFoundError:
        return None


def _weightiest(folder: Path) -> dict[str, Any] | None:
    """Of the reports of a job's nodes the one that says why: ranks that only lost another one say
    little.
    """
    order = (CONFIGURATION, MACHINE, PREEMPTED)
    found = [read_failure(control) for control in sorted(folder.glob(f"{CONTROL}*"))]
    reports = [report for report in found if report is not None]
    weights = [order.index(r["code"]) if r["code"] in order else len(order) for r in reports]
    return reports[weights.index(min(weights))] if reports else None
