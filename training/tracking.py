"""A run's records in MLflow or Weights & Biases, for who compares runs there.

Which server, project and account: the libraries' own environment variables say it
(`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`; `WANDB_PROJECT`, `WANDB_MODE`, `WANDB_API_KEY`),
so that no secret stands in a run's file. A run keeps its id there over all its starts. Records go
through a thread and a bounded queue: a server that is slow or gone costs records there, never a
step here; `metrics.jsonl` stays the truth.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from model.atomic import writing_file

log = logging.getLogger(__name__)

TRACKER_NAME = "tracker.json"
DEFAULT_NAME = "hour-llava"  # of the experiment or project, unless the environment says another
WAITING = 1000  # records that wait for a slow server; more are left out
CLOSE_S = 15.0  # for what still waits at the end
MOST_CHARACTERS = 250  # of a parameter's value there


class Tracker(Protocol):
    """A run at a tracking server.

    Attributes:
        id: of the run there.
    """

    id: str

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record the numbers of one step."""

    def finish(self, facts: Mapping[str, str], finished: bool) -> None:
        """Tell what came of the run, and that it has ended or will go on later."""


def open_tracker(
    kind: str, out: Path, name: str, parameters: Mapping[str, Any]
) -> BackgroundTracker:
    """The tracker of a run, whose id is kept in its folder.

    Args:
        kind: "mlflow" or "wandb".
        name: of the run, for people.
        parameters: what decides the run.

    Raises:
        ValueError: the library is not installed.
    """
    classes: dict[str, Callable[[str, str | None, Mapping[str, str]], Tracker]] = {
        "mlflow": _MLflow,
        "wandb": _Wandb,
    }
    try:
        __import__(kind)
    except ImportError as error:
        raise ValueError(
            f"tracker: {kind} is not installed here ({error}); pip install 'hour-llava[{kind}]'"
        ) from error
    path = out / TRACKER_NAME
    known = json.loads(path.read_text()) if path.exists() else {}
    texts = {key: str(value)[:MOST_CHARACTERS] for key, value in parameters.items()}

    def start() -> Tracker:
        tracker = classes[kind](name, known.get(kind), texts)
        if known.get(kind) != tracker.id:
            with writing_file(path) as temporary:
                temporary.write_text(json.dumps({**known, kind: tracker.id}) + "\n")
        return tracker

    return BackgroundTracker(start)


class BackgroundTracker:
    """Hands records to a tracker from a thread; its failures are said once and end nothing.

    Args:
        start: connects to the server; runs in the thread, too.
    """

    def __init__(self, start: Callable[[], Tracker]) -> None:
        self._start = start
        self._records: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(WAITING)
        self._facts: dict[str, str] = {}
        self._finished = False
        self._said = False
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)
        self._thread.start()

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record the numbers of one step, as soon as the server takes them."""
        try:
            self._records.put_nowait((step, numbers))
        except queue.Full:
            self._say(f"it is too slow: more than {WAITING} records wait")

    def tell(self, facts: Mapping[str, str]) -> None:
        """What came of the run, which has ended; sent when this is closed."""
        self._facts.update(facts)
        self._finished = True

    def close(self) -> None:
        """Send what waits, for a bounded time."""
        deadline = time.monotonic() + CLOSE_S
        try:
            self._records.put(None, timeout=CLOSE_S)
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._say(f"it did not take the last records within {CLOSE_S:g} s")

    def _run(self) -> None:
        tracker: Tracker | None = None
        try:
            tracker = self._start()
        except Exception as error:  # whatever the library raises, training goes on
            self._say(f"{type(error).__name__}: {error}")
        while (item := self._records.get()) is not None:
            if tracker is not None:
                self._try(partial(tracker.log, *item))
        if tracker is not None:
            self._try(partial(tracker.finish, self._facts, self._finished))

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever the library raises, training goes on
            self._say(f"{type(error).__name__}: {error}")

    def _say(self, what: str) -> None:
        """Warn once."""
        if not self._said:
            self._said = True
            log.warning(
                "the tracker does not get everything, which changes nothing here (metrics.jsonl "
                "has it all): %s",
                what,
            )


class _MLflow:
    def __init__(self, name: str, id: str | None, parameters: Mapping[str, str]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient()
        if id is None:
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_NAME)
            found = self.client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else self.client.create_experiment(experiment)
            id = self.client.create_run(number, run_name=name).info.run_id
            values = [Param(key, value) for key, value in parameters.items()]
            self.client.log_batch(id, params=values)
        else:
            self.client.update_run(id, status="RUNNING")
        self.id: str = id

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_plain(key), value, now, step) for key, value in numbers.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def finish(self, facts: Mapping[str, str], finished: bool) -> None:
        for key, value in facts.items():
            self.client.set_tag(self.id, key, value)
        self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


class _Wandb:
    def __init__(self, name: str, id: str | None, parameters: Mapping[str, str]) -> None:
        import wandb

        self.id: str = id or uuid.uuid4().hex[:12]
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", DEFAULT_NAME),
            id=self.id,
            name=name,
            resume="allow",
            config=dict(parameters),
            settings=wandb.Settings(
                console="off", disable_git=True, disable_code=True, silent=True
            ),
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def finish(self, facts: Mapping[str, str], finished: bool) -> None:
        self.run.summary.update(dict(facts))
        self.run.finish(exit_code=0 if finished else 1)


def _plain(name: str) -> str:
    """A metric's name with the characters that MLflow takes."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "-" for letter in name)
