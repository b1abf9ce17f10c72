"""Whether a stage learned, and whether its export can be used."""

import numpy as np
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


@pytest.mark.parametrize("steps", [4, 20, 40, 400])
def test_noise_of_a_model_that_has_learned_already_is_not_a_rise(steps):
    draw = np.random.default_rng(steps)
    blocked = [
        loss(records(list(0.08 * draw.lognormal(sigma=0.3, size=steps))))[0].blocks
        for _ in range(500)
    ]
    assert sum(blocked) <= 10


def test_an_arm_of_the_ablations_that_learns_nothing_more_is_no_fault():
    """The recorded losses of forty steps from a stage 2 that answers already."""
    long = [0.347, 0.213, 0.106, 0.084, 0.097, 0.247, 0.075, 0.27, 0.145, 0.122, 0.076, 0.077]
    long += [0.243, 0.082, 0.088, 0.072, 0.049]
    short = [0.066, 0.108, 0.036, 0.137, 0.082, 0.062, 0.11, 0.064, 0.076, 0.094, 0.071, 0.055]
    short += [0.066, 0.066, 0.117, 0.061, 0.083, 0.059, 0.107, 0.117, 0.069, 0.131, 0.068]
    sound, falls = loss(records(long, "long") + records(short, "short"))
    assert sound.passed
    assert (falls.passed, falls.blocks) == (False, False)


@pytest.mark.parametrize(
    ("steps", "shape"),
    [
        (20, lambda place: 1 + place),  # twice the loss in the end
        (40, lambda place: 1 + 0.5 * place),
        (400, lambda place: 1 + 0.2 * place),
        (40, lambda place: np.exp(8 * np.maximum(place - 0.8, 0))),  # diverged in the last fifth
        (10, lambda place: 10 ** (5 * np.maximum(place - 0.5, 0))),
    ],
)
def test_a_rise_is_seen_through_the_noise(steps, shape):
    draw = np.random.default_rng(steps)
    means = shape(np.linspace(0, 1, steps))
    blocked = [
        loss(records(list(means * draw.lognormal(sigma=0.1, size=steps))))[0].blocks
        for _ in range(200)
    ]
    assert sum(blocked) >= 190


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
