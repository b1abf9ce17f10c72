"""Sizes and operations, against the model itself and torch's own counter of operations."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.changes import ModelChanges
from model.config import PRESETS
from model.hour_llava import HourLlava
from model.inputs import IMAGE_TOKEN_INDEX, SampleInputs, Visual
from model.packing import plan_sample
from training.flops import Sizes, flops, parameters, sizes_of, total, video_sizes

CONFIG = PRESETS["tiny"]


def sample(*visuals, text=40, supervised=10):
    count = sum(visual.placeholders for visual in visuals)
    ids = torch.tensor([5] * 8 + [IMAGE_TOKEN_INDEX] * count + [7] * (text - 8))
    labels = torch.full_like(ids, -100)
    labels[-supervised:] = 7
    return SampleInputs("x", ids, labels, list(visuals), seed=3)


def pixels(count):
    side = CONFIG.vision.image_size
    return torch.zeros(count, 3, side, side, dtype=torch.uint8)


SAMPLES = {
    "text": sample(),
    "video": sample(Visual("frames", pixels=pixels(40))),
    "short video": sample(Visual("frames", pixels=pixels(3))),
    "features": sample(Visual("features", features=torch.zeros(300, 16, 64))),
    "images": sample(Visual("images", pixels=pixels(3))),
    "one image": sample(Visual("anyres", pixels=pixels(3), image_size=(224, 112))),
    "large image": sample(Visual("anyres", pixels=pixels(21), image_size=(560, 430))),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_length_is_the_models(name):
    plan = plan_sample(SAMPLES[name], CONFIG, "random")
    found = sizes_of(SAMPLES[name], CONFIG)
    assert found.tokens == pytest.approx(
        plan.length, abs=2
    )  # a row that kept no token has no newline
    assert found.supervised == 10


ALL = ("vision", "projector", "memaug", "llm")
CASES = [
    (name, tuned)
    for name in ("text", "video", "images", "features")
    for tuned in (("memaug",), ALL, ALL[1:])
]


@pytest.mark.parametrize(
    ("name", "tuned"), [case for case in CASES if case != ("text", ("memaug",))]
)
def test_the_operations_are_those_that_torch_counts(name, tuned):
    assert_operations(CONFIG, SAMPLES[name], tuned)


@pytest.mark.parametrize(
    "changes",
    [
        ModelChanges(memory_scale=0.5),
        ModelChanges(memory_scale=0.25, temporal_forgetting="keyframe"),
        ModelChanges(memory_scale=0.0),
        ModelChanges(memaug_blocks=0),
        ModelChanges(memaug_blocks=3, memaug_positions=False),
    ],
    ids=str,
)
def test_so_are_those_of_a_model_with_changes(changes):
    config = changes.applied(CONFIG)
    # Newlines are counted as if they were projected; of a model that does little else it shows.
    newlines = 2 * 300 * (2 * 64 * 128 + 3 * 128 * 128)
    assert_operations(config, SAMPLES["features"], ALL[1:], newlines)


def assert_operations(config, given, tuned, not_done=0):
    model = HourLlava(config)
    for part, parameter in model.named_parameters():
        owner = "llm" if part == "image_newline" else part.split(".")[0]
        parameter.requires_grad_(owner in tuned)
    counter = FlopCounterMode(display=False)
    with counter:
        model([given]).loss_sum.backward()
    counted = {
        str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()
    }
    attention = {name: count for name, count in counted.items() if "attention" in name}
    expected = sum(counted.values()) - sum(attention.values())
    # A fused backward pass forms the scores anew, a fifth of what torch counts for it; that is
    # recomputation.
    expected += sum(count * (0.8 if "backward" in name else 1) for name, count in attention.items())
    size, llm = sizes_of(given, config), config.llm
    # torch counts causal scores as if nothing were masked, and the head's chunks, which are
    # recomputed, twice.
    expected -= 3 * 4 * llm.hidden_size * size.token_pairs / 2 * llm.num_layers
    expected -= 2 * size.supervised * llm.hidden_size * llm.vocab_size
    # Where MemAug is the lowest tuned module, its first block forms no gradient for its input: one
    # block of two here.
    assert flops(size, config, tuned) - not_done == pytest.approx(
        expected, rel=0.04 if tuned == ("memaug",) else 0.01
    )


@pytest.mark.parametrize("variant", ["tiny", "3b", "7b"])
def test_the_parameters_are_the_models(variant):
    with torch.device("meta"):
        model = HourLlava(PRESETS[variant])
    counted = parameters(PRESETS[variant])
    found = dict.fromkeys(("vision", "projector", "memaug", "llm"), 0)
    for name, parameter in model.named_parameters():
        head = name.split(".")[0]
        found["llm" if head == "image_newline" else head] += parameter.numel()
    assert {name: counted[name] for name in found} == found


def test_an_hour_on_3b_costs_what_was_worked_out_by_hand():
    hour = video_sizes(3600, text=400, supervised=256, config=PRESETS["3b"])
    assert hour.memory == 234_000
    assert hour.queries == 8_704
    forward = flops(hour, PRESETS["3b"], ())
    assert forward / 1e12 == pytest.approx(3.0 + 2.0 + 67.9 + 6.2 + 62.7 + 0.16, rel=0.02)


def test_sizes_add_up():
    one, two = Sizes(*range(1, 11)), Sizes(*range(10, 110, 10))
    assert total([one, two]) == Sizes(*range(11, 121, 11))
    assert total([]) == Sizes()
