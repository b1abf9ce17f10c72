"""Runs a training stage under torchrun inside a Dagster step. When one of the two ends, the other
ends too; a stage that is a job of Slurm (`assets.engines`) is found again instead.

Dagster's own subprocess client leaves ranks alive when a child ignores signals or when the step is
killed. Here the command is `training.supervise`, which ends all processes below it and dies with
the step. This side reports while it runs, stops it with SIGINT, SIGTERM and SIGKILL in turn, and
turns its exit status into the right kind of failure.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from assets.checkpoints.nodes import ranks_of_node, refuse_nodes
from assets.checkpoints.runs import restore_results
from assets.checkpoints.uploads import uploading
from assets.deployment.compute import Compute
from assets.deployment.settings import Settings, Training
from assets.engines.jobs import Jobs, Work
from assets.engines.script import MEETING_VARIABLE, interpreter
from assets.records.publishing import failure_for_a_person, own_name
from training.checkpoint_folder import committed
from training.formats.hashing import hash_file_xxh64
from training.formats.storage import Storage
from training.metrics import METRICS_NAME
from training.recipes import MODULES
from training.run_config import RunConfig
from training.run_folder import RESULT_NAME, STATE_FOLDER
from training.supervise import (
    CONFIGURATION,
    CONTROL_VARIABLE,
    FAILED,
    OK,
    OWNER_VARIABLE,
    PREEMPTED,
    read_failure,
)

POLL_S = 0.5
# An observation is an event in the database, and there may be many steps a minute.
OBSERVE_EVERY_S = 60.0
MODULE = "training.train"


def thread_variables(threads: int) -> dict[str, str]:
    """Environment variables for ranks that compute in so many threads.

    The threads sleep while they wait for each other. By default they spin, and where another
    program wants the cores they spin in place of the thread that they wait for: seconds a step
    become minutes (docs/performance.md).
    """
    waiting = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": waiting}


def train_stage(
    context: dg.AssetExecutionContext,
    settings: Settings,
    storage: Storage,
    run: RunConfig,
    folder: str,
    inputs: Mapping[str, str],
) -> None:
    """Train in the run's folder to the end, from what a remote root has of it, beside its bill;
    meanwhile its checkpoints go to a remote root.

    Args:
        folder: of the run, below the root.
        inputs: versions of the products that it is made from.

    Raises:
        dg.Failure: as `Torchrun.run`.
    """
    from assets.checkpoints.bill import write_bill

    restore_results(settings, storage, folder)
    write_bill(storage, settings, run, own_name(context), inputs)
    pace = settings.training.upload_every_s
    with uploading(storage, folder, Path(run.out), pace, context.log.info) as look:
        Torchrun(settings.training, settings.compute, look=look).run(context, run)


@dataclass(slots=True)
class Torchrun:
    """Starts stages on this machine, or this machine's share of them.

    Attributes:
        settings: processes, nodes, rendezvous, threads.
        compute: whether stages are Slurm's jobs (`gpu`), and how they are submitted.
        grace_s: seconds that the training gets to write a checkpoint and end after SIGINT.
        force_s: seconds that it gets to end after SIGTERM, before it is killed.
        observe_every_s: seconds between two observations of the asset.
        look: called now and then while it trains.
        module: the module that the ranks run; it takes the run's JSON file.
        arguments: what it takes besides.
    """

    settings: Training
    compute: Compute = field(default_factory=Compute)
    grace_s: float = 120.0
    force_s: float = 20.0
    observe_every_s: float = OBSERVE_EVERY_S
    look: Callable[[], None] = field(default=lambda: None)
    module: str = MODULE
    arguments: tuple[str, ...] = ()
    _seen: int = field(default=0, init=False)
    _observed: float = field(default=float("-inf"), init=False)

    def run(self, context: dg.AssetExecutionContext, run: RunConfig) -> dict[str, Any]:
        """Train, report while it runs, and return what `result.json` holds.

        Raises:
            dg.Failure: the training failed or was stopped. It says why, and whether to try again.
        """
        out = Path(run.out)
        path = out / "run.json"
        run.write(path)
        metrics = out / METRICS_NAME
        self._seen = metrics.stat().st_size if metrics.exists() else 0
        if self.compute.gpu.is_slurm:
            status, failure = self._as_jobs(context, run, path, metrics)
        else:
            status, failure = self._here(context, path, metrics)
        self._observe(context, metrics, at_once=True)
        if status != OK:
            raise _failure(status, failure, out)
        return dict(json.loads((out / RESULT_NAME).read_text()))

    def _here(
        self, context: dg.AssetExecutionContext, path: Path, metrics: Path
    ) -> tuple[int, dict[str, Any] | None]:
        """Train on this machine: the exit status, and the report of a rank that failed."""
        with (
            tempfile.TemporaryDirectory(prefix="hourllava-control-") as control,
            dg.open_pipes_session(
                context=context,
                context_injector=dg.PipesTempFileContextInjector(),
                message_reader=dg.PipesTempFileMessageReader(),
            ) as session,
        ):
            variables = {
                **os.environ,
                **session.get_bootstrap_env_vars(),
                CONTROL_VARIABLE: control,
                OWNER_VARIABLE: str(os.getpid()),
                **thread_variables(self.settings.cpu_threads),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            }
            owner = os.getppid()
            context.log.info("starting: %s", " ".join(self.command(path)))
            process = subprocess.Popen(self.command(path), env=variables)
            try:
                while process.poll() is None:
                    time.sleep(POLL_S)
                    self._look(context, metrics)
                    if os.getppid() != owner:
                        raise RuntimeError(
                            "the process that owns this step died; the training is stopped"
                        )
            finally:
                self._stop(context, process)
            return process.returncode, read_failure(Path(control))

    def _as_jobs(
        self, context: dg.AssetExecutionContext, run: RunConfig, path: Path, metrics: Path
    ) -> tuple[int, dict[str, Any] | None]:
        """Train as jobs of Slurm, each from the newest checkpoint on: the same.

        Raises:
            ValueError: the pool's numbers of nodes do not fit the run.
        """
        pool = self.compute.gpu
        ranks = ranks_of_node(self.settings, pool)
        refuse_nodes(run, pool, ranks)
        meeting = [
            "--nnodes=$SLURM_JOB_NUM_NODES",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint=${MEETING_VARIABLE}",
            "--rdzv-id=$SLURM_JOB_ID",
        ]
        command = self._torchrun(interpreter(pool), meeting, ranks, path)
        ended = Jobs(context, self.compute, pool).run(
            Work(
                product=own_name(context),
                request=hash_file_xxh64(path),
                command=lambda folder: command,
                variables=thread_variables(self.settings.cpu_threads),
                nodes=pool.nodes,
                fits=lambda nodes: run.is_shared_by(nodes * ranks),
                grace_s=self.grace_s,
                reached=lambda: [step.name for step in committed(path.parent / STATE_FOLDER)][-1:],
                look=lambda: self._look(context, metrics),
            )
        )
        return FAILED if ended.status is None else ended.status, ended.report

    def command(self, path: Path) -> list[str]:
        """The command line; the other machines of a run over several start the same one with the
        same rendezvous.

        Raises:
            ValueError: several nodes without a place to meet.
        """
        settings = self.settings
        if settings.nodes == 1:
            meeting = ["--standalone"]
        elif settings.rendezvous is None:
            raise ValueError(
                "training.nodes is above 1: set training.rendezvous to host:port of the first node"
            )
        else:
            meeting = [
                f"--nnodes={settings.nodes}",
                "--rdzv-backend=c10d",
                f"--rdzv-endpoint={settings.rendezvous}",
            ]
        return self._torchrun(sys.executable, meeting, settings.processes, path)

    def _torchrun(self, python: str, meeting: list[str], ranks: int, path: Path) -> list[str]:
        torchrun = [python, "-m", "torch.distributed.run", *meeting, f"--nproc-per-node={ranks}"]
        module = ["-m", self.module, str(path), *self.arguments]
        return [python, "-m", "training.supervise", *torchrun, *module]

    def _look(self, context: dg.AssetExecutionContext, metrics: Path) -> None:
        self._observe(context, metrics)
        self.look()

    def _observe(
        self, context: dg.AssetExecutionContext, metrics: Path, at_once: bool = False
    ) -> None:
        """Report the newest record as an observation of the asset, now and then."""
        if not at_once and time.monotonic() - self._observed < self.observe_every_s:
            return
        if not metrics.exists() or metrics.stat().st_size == self._seen:
            return
        self._seen = metrics.stat().st_size
        with open(metrics, "rb") as file:
            file.seek(max(0, self._seen - 65536))
            lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
        if not lines:
            return
        self._observed = time.monotonic()
        record = json.loads(lines[-1])
        context.log_event(
            dg.AssetObservation(
                asset_key=context.asset_key,
                partition=context.partition_key if context.has_partition_key else None,
                metadata=_flat(record),
            )
        )

    def _stop(self, context: dg.AssetExecutionContext, process: subprocess.Popen[bytes]) -> None:
        """End the training if it still runs: ask for a checkpoint, then to end, then kill it."""
        for number, timeout in (
            (signal.SIGINT, self.grace_s),
            (signal.SIGTERM, self.force_s),
            (signal.SIGKILL, 10.0),
        ):
            if process.poll() is not None:
                return
            context.log.warning("stopping the training (pid %d) with %s", process.pid, number.name)
            process.send_signal(number)
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                continue


def _failure(status: int, failure: dict[str, Any] | None, out: Path) -> dg.Failure:
    message = f"the training ended with status {status} and left no word"
    if failure:
        message = str(failure["message"])
    if status == PREEMPTED:
        message += "; materialize again to continue"
    elif status != CONFIGURATION:
        message += "; materialize again to continue from the newest complete checkpoint"
    metadata: dict[str, Any] = {"exit status": status, "folder": dg.MetadataValue.path(str(out))}
    if status == CONFIGURATION:
        return failure_for_a_person(message, metadata)
    return dg.Failure(message, metadata, allow_retries=status != PREEMPTED)


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Names and numbers of a metrics record, with its learning rates and what was measured of
    held-out samples one by one.
    """
    rates = record.get("rates", {})
    flat = {f"rate/{module}": rates[module] for module in MODULES if module in rates}
    return {
        **{key: value for key, value in record.items() if isinstance(value, int | float | str)},
        **flat,
        **{f"held out/{name}": value for name, value in record.get("held_out", {}).items()},
    }
