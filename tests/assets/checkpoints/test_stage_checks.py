"""Whether a stage learned, and whether its export can be used."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from assets.checkpoints.checks import export_loads, loss


def records(losses: list[float | None], stream: str = "images") -> list[dict]:
    return [{"step": step, "loss": value, "stream": stream} for step, value in enumerate(losses, 1)]


def falling(first: float, last: float, steps: int = 40) -> list[float]:
    return [first + (last - first) * step / (steps - 1) for step in range(steps)]


def test_a_loss_that_falls_passes_and_is_told_for_each_stream():
    verdicts = loss(records(falling(5, 1), "stream0") + records(falling(3, 2), "stream1"))
    assert [(verdict.passed, verdict.message) for verdict in verdicts] == [
        (True, "stream0: 4.846 -> 1.154; stream1: 2.962 -> 2.038")
    ] * 2


def test_a_loss_that_rises_in_one_stream_stops_the_next_stage():
    sound, _ = loss(records(falling(5, 1), "stream0") + records(falling(2, 3), "stream1"))
    assert sound.blocks
    assert "stream1: 2.038 -> 2.962" in sound.message


def test_a_run_that_ends_without_a_finite_loss_stops_the_next_stage():
    assert loss(records([5.0, 4.0, None]))[0].blocks
    assert loss(records([None, None]))[0].blocks
    assert loss([])[0].blocks


def test_a_loss_that_stands_still_is_for_a_person_to_judge():
    sound, falls = loss(records([2.0] * 40))
    assert sound.passed
    assert (falls.passed, falls.blocks) == (False, False)


def test_skipped_steps_are_for_a_person_to_judge():
    sound, falls = loss(records([*falling(5, 1), None, *falling(1, 0.9)]))
    assert sound.passed
    assert (falls.passed, falls.blocks) == (False, False)
    assert falls.message == "1 of 81 steps were skipped"


@pytest.fixture
def export(tmp_path):
    from model.weights.tiny import build_tiny

    build_tiny(tmp_path / "export")
    return tmp_path / "export"


def test_a_file_that_is_cut_short_is_named_before_anything_is_loaded(export):
    file = export / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    verdict = export_loads(export)
    assert verdict.blocks
    assert "model.safetensors has" in verdict.message


@pytest.mark.slow
def test_an_export_is_loaded_for_real_and_every_number_in_it_looked_at(export):
    good = export_loads(export)
    assert good.passed, good.message
    tensors = load_file(export / "model.safetensors")
    name = next(name for name in tensors if "memaug" in name)
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, export / "model.safetensors", metadata={"format": "pt"})
    bad = export_loads(export)
    assert bad.blocks
    assert f"{name} is not finite" in bad.message


@pytest.mark.slow
def test_an_export_that_lacks_a_tensor_does_not_pass(export):
    tensors = load_file(export / "model.safetensors")
    name = next(name for name in tensors if "memaug" in name)
    del tensors[name]
    save_file(tensors, export / "model.safetensors", metadata={"format": "pt"})
    verdict = export_loads(export)
    assert verdict.blocks
    assert name in verdict.message
