"""A tracker shows what the metrics file says, keeps its run over restarts, and never ends one."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from tests.training.generated_samples import LoaderBehaviour, make_run, train_in_process
from training import tracking
from training.metrics import MetricsWriter, read_metrics
from training.tracking import TRACKER_NAME, BackgroundTracker, open_tracker


@pytest.fixture
def mlflow_client(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    return mlflow.MlflowClient()


@pytest.mark.slow
def test_mlflow_has_the_records_of_a_run_that_was_interrupted_as_one_run(mlflow_client, tmp_path):
    run = make_run(tmp_path, tracker="mlflow", held_out_share=0.0)
    with pytest.raises(RuntimeError, match="told to fail"):
        train_in_process(run, LoaderBehaviour(crash_at=6))
    train_in_process(run)
    (experiment,) = [
        found for found in mlflow_client.search_experiments() if found.name == "hour-llava"
    ]
    (found,) = mlflow_client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    identity = json.loads((Path(run.out) / "result.json").read_text())["identity"]
    assert found.data.params["start"] == identity["start"]
    assert found.data.params["variant"] == "tiny"
    assert found.data.tags["checkpoint"] == f"{found.data.params['identity']}/step-8"
    logged = {
        metric.step: metric.value
        for metric in mlflow_client.get_metric_history(found.info.run_id, "loss")
    }
    records = list(read_metrics(Path(run.out) / "metrics.jsonl"))
    assert logged == {record["step"]: pytest.approx(record["loss"]) for record in records}
    assert "rates/llm" in found.data.metrics


def test_weights_and_biases_takes_records_offline_under_one_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for after in (0, 2):
        tracker = open_tracker("wandb", tmp_path, "tiny stage 3", {"start": "abc"})
        writer = MetricsWriter(tmp_path, after=after, tensorboard=False, tracker=tracker)
        for step in (after + 1, after + 2):
            writer.write({"step": step, "loss": 1 / step})
        tracker.tell({"checkpoint": "x/step-2"})
        writer.close()
        assert not tracker._said
    id = json.loads((tmp_path / TRACKER_NAME).read_text())["wandb"]
    folders = [path.name for path in tmp_path.rglob("offline-run-*") if path.is_dir()]
    assert folders
    assert all(name.endswith(id) for name in folders)


class Stub:
    id = "1"

    def __init__(self, fail=False, wait=0.0):
        self.fail, self.wait, self.got = fail, wait, []

    def log(self, step, numbers):
        time.sleep(self.wait)
        if self.fail:
            raise ConnectionError("no route to the server")
        self.got.append((step, dict(numbers)))

    def finish(self, facts, finished):
        self.got.append((dict(facts), finished))


def test_failures_of_a_tracker_are_said_once_and_end_nothing(tmp_path, caplog):
    def unreachable():
        raise ConnectionError("no route to the server")

    for start in (unreachable, lambda: Stub(fail=True)):
        caplog.clear()
        writer = MetricsWriter(tmp_path, tensorboard=False, tracker=BackgroundTracker(start))
        for step in range(1, 6):
            writer.write({"step": step, "loss": 1.0})
        writer.close()
        warnings = [r for r in caplog.records if "tracker does not get everything" in r.message]
        assert len(warnings) == 1
        assert "no route to the server" in warnings[0].message
        assert len(list(read_metrics(tmp_path / "metrics.jsonl"))) == 5
        (tmp_path / "metrics.jsonl").unlink()


def test_a_slow_tracker_holds_nothing_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "CLOSE_S", 0.5)
    blocked = threading.Event()
    tracker = BackgroundTracker(lambda: blocked.wait(20) and Stub())
    began = time.monotonic()
    for step in range(3000):
        tracker.log(step, {"loss": 1.0})
    tracker.close()
    assert time.monotonic() - began < 5
    blocked.set()


def test_all_records_arrive_in_order_and_a_run_that_stops_is_not_finished():
    stub = Stub()
    tracker = BackgroundTracker(lambda: stub)
    for step in range(5):
        tracker.log(step, {"loss": float(step)})
    tracker.close()
    assert stub.got == [(step, {"loss": float(step)}) for step in range(5)] + [({}, False)]


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'hour-llava\[wandb\]'"):
        open_tracker("wandb", tmp_path, "x", {})
