"""Records of a run: JSON lines first, everything else from them."""

from __future__ import annotations

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from assets.checkpoints.curve import draw, loss_curve
from tests.training.generated_samples import make_run, train_in_process
from training.metrics import MetricsWriter, read_metrics, step_line
from training.rates import CARDS


def record(step, loss=1.5):
    return {"step": step, "loss": loss, "rates": {"llm": 1e-5, "memaug": 1e-4}, "stream": "long"}


def test_records_are_read_back_in_order(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(record(1))
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == [
        record(1)
    ]  # at once, not when the file is closed
    writer.write(record(2, None))
    writer.close()
    assert [r["loss"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1.5, None]
    assert list(read_metrics(tmp_path / "nothing.jsonl")) == []


def test_steps_that_are_done_again_are_recorded_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(json.dumps(record(step)) + "\n" for step in range(1, 8)) + '{"step": 8, "lo'
    )
    writer = MetricsWriter(tmp_path, after=4, tensorboard=False)
    writer.write(record(5, 9.0))
    writer.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(path)] == [
        (s, 1.5) for s in (1, 2, 3, 4)
    ] + [(5, 9.0)]


def test_a_number_that_json_does_not_know_is_refused(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    with pytest.raises(ValueError, match="JSON compliant"):
        writer.write(record(1, float("nan")))
    writer.close()


def test_tensorboard_shows_the_same_numbers(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write(record(step, step / 2))
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "rates/llm", "rates/memaug"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (1, 0.5),
        (2, 1.0),
        (3, 1.5),
    ]
    assert events.Scalars("rates/memaug")[0].value == pytest.approx(1e-4)


def test_a_run_records_what_the_loop_promises(tmp_path):
    run = make_run(tmp_path, max_steps=2)
    train_in_process(run)
    records = list(read_metrics(tmp_path / "out" / "metrics.jsonl"))
    assert [r["step"] for r in records] == [1, 2]
    for found in records:
        assert set(found["rates"]) == set(run.modules)
        assert found["samples"] == 8
        assert found["stream"] == "generated"
        assert 0 < found["supervised"] < found["tokens"]
        assert 0 <= found["data_wait_s"] <= found["step_s"]
        assert found["tokens_per_s"] == pytest.approx(found["tokens"] / found["step_s"])


@pytest.mark.slow
def test_the_curve_is_a_small_picture_of_the_losses(tmp_path):
    run = make_run(tmp_path, max_steps=3)
    train_in_process(run)
    png = loss_curve(run)
    assert png.startswith(b"\x89PNG")
    assert len(png) < 60_000
    many = [record(step, 3 / step if step % 50 else None) for step in range(1, 20_001)]
    assert 5_000 < len(draw(many, "many")) < 60_000
    assert draw(many, "many") == draw(many, "many")


def test_a_run_without_steps_has_no_curve(tmp_path):
    with pytest.raises(ValueError, match="no step"):
        loss_curve(make_run(tmp_path))


def test_a_line_of_a_step_has_both_utilisations_and_none_where_the_device_is_unknown():
    numbers = {"steps": 9, "grad_norm": 1.0, "step_s": 2.0, "data_wait_s": 0.0, "tokens_per_s": 5}
    assert "MFU" not in step_line(record(1) | numbers)
    card = CARDS["H200"]
    shares = {"mfu": 395e12 / card.products, "mfu_datasheet": 395e12 / card.stated}
    assert step_line(record(1) | numbers | shares).endswith("MFU 50.0 % (39.9 % by the datasheet)")
