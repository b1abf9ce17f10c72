"""The memory plan: its arithmetic beside measured peaks, what it chooses, and what it says when
nothing fits.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.config import PRESETS
from model.hf import HourLlavaForCausalLM
from model.hf_config import HourLlavaHFConfig
from training.adapters import insert_adapters, is_adapter
from training.flops import Sizes, adapter_parameters, parameters, video_sizes
from training.footprint import Load
from training.memory_plan import plan_memory
from training.optimizer import module_of
from training.parallel import Savings
from training.rates import GIB
from training.recipes import MODULES, Lora
from training.run_config import parse_run

H200 = 139 * GIB
STAGE_3 = ("projector", "memaug", "llm")


def run(variant="3b", stage=3, **fields):
    streams = [{"name": "x", "root": "r", "indexes": ["i"]}]
    return parse_run(
        {"variant": variant, "stage": stage, "start": "s", "out": "o", "streams": streams, **fields}
    )


def plan(world, variant="3b", stage=3, available=H200, checkpointing=True, host=None, **fields):
    return plan_memory(
        run(variant, stage, **fields), PRESETS[variant], world, available, checkpointing, host
    )


def hour(variant, world, savings, recomputed, compiled=True):
    """The estimate for one hour-long sample."""
    config = PRESETS[variant]
    load = Load(config, STAGE_3, None, world, compiled)
    return load.footprint(video_sizes(3600, 400, 256, config), savings, recomputed)


@pytest.mark.parametrize(
    ("variant", "world", "recomputed", "compiled", "measured"),
    [
        ("3b", 1, 0, True, 91.4),
        ("3b", 2, 0, True, 61.4),
        ("7b", 2, 28, False, 81.4),
    ],
    ids=["3b on one", "3b on two", "7b on two, recomputed and not compiled"],
)
def test_the_estimate_is_near_peaks_measured_on_h200(
    variant, world, recomputed, compiled, measured
):
    # docs/performance.md, "Training": these runs recomputed the projector, which chunks do, too.
    found = hour(variant, world, Savings(chunks=True), recomputed, compiled)
    assert found.total / GIB == pytest.approx(measured, rel=0.1)


MEMAUG = Savings(chunks=True, memaug=True, optimizer_on_host=True)
COPIES = Savings(chunks=True, gathered_again=True)


@pytest.mark.parametrize(
    ("variant", "frames", "lora", "savings", "recomputed", "measured"),
    [
        ("3b", 3600, Lora(), MEMAUG, 28, 20.5),
        ("3b", 3600, None, replace(MEMAUG, gathered_again=True), 21, 42.3),
        ("3b", 3600, None, COPIES, 18, 73.4),
        ("7b", 3600, Lora(), Savings(chunks=True), 6, 73.1),
        ("3b", 14_400, None, Savings(chunks=True), 0, 100.9),
        ("3b", 3600, Lora(), Savings(), 0, 51.2),
        ("7b", 3600, Lora(), Savings(), 0, 84.4),
    ],
)
def test_the_estimate_is_within_five_percent_of_the_memory_table(
    variant, frames, lora, savings, recomputed, measured
):
    # docs/memory.md, "What fits which card".
    config = PRESETS[variant]
    load = Load(config, STAGE_3, lora, 1, True)
    found = load.footprint(video_sizes(frames, 1024, 512, config), savings, recomputed)
    assert found.total / GIB == pytest.approx(measured, rel=0.05)


def test_states_are_sixteen_bytes_for_each_tuned_parameter_over_all_devices():
    counts = parameters(PRESETS["7b"])
    tuned = sum(counts[module] for module in STAGE_3)
    for world in (1, 2, 8):
        found = hour("7b", world, Savings(), 0)
        assert found.states == pytest.approx(16 * tuned / world + 2 * counts["vision"])
        moved = hour("7b", world, Savings(optimizer_on_host=True), 0)
        assert found.states - moved.states == moved.host == pytest.approx(8 * tuned / world)


def test_adapters_are_counted_as_peft_makes_them():
    with torch.device("meta"):
        wrapper = HourLlavaForCausalLM(HourLlavaHFConfig.of(PRESETS["tiny"]))
    lora = Lora(rank=3, modules=MODULES)
    insert_adapters(wrapper.model, lora)
    found = dict.fromkeys(MODULES, 0)
    for name, parameter in wrapper.model.named_parameters():
        if is_adapter(name):
            found[module_of(name)] += parameter.numel()
    assert adapter_parameters(PRESETS["tiny"], lora) == found


def test_3b_fits_one_h200_with_all_its_activations():
    found = plan(1)
    hour = video_sizes(3600, 0, 0, PRESETS["3b"]).tokens
    assert found.budget.tokens == hour + 1024  # a sample about an hour and its text is one pack
    assert found.recomputed(found.budget.tokens) == 0
    assert not found.savings.memaug


@pytest.mark.parametrize("gib", [139, 80, 64])
def test_a_longer_pack_recomputes_as_much_as_it_needs_and_no_more(gib):
    available = gib * GIB
    found = plan(1, available=available)
    load = Load(PRESETS["3b"], STAGE_3, None, 1, True)
    numbers = []
    for tokens in range(1024, 32_769, 1024):
        layers = found.recomputed(tokens)
        largest = Sizes(pictures=found.budget.pictures, memory=found.budget.memory, queries=tokens)

        def fits(layers: int, largest: Sizes = largest) -> bool:
            needed = load.footprint(largest, found.savings, layers).total
            return needed * 1.04 + GIB <= available

        assert fits(layers)
        assert layers == 0 or not fits(layers - 1)
        numbers.append(layers)
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 5  # not all or nothing


def test_a_tuned_vision_encoder_recomputes_as_many_layers_as_a_pack_needs():
    video = replace(video_sizes(128, 400, 256, PRESETS["3b"]), pictures=128)
    image = replace(video, pictures=5)
    one, four = plan(1, stage=2, available=120 * GIB), plan(4, stage=2)
    assert 0 == four.vision_recomputed(video) < one.vision_recomputed(video) < 26
    assert plan(1, stage=2).vision_recomputed(video) == 0  # a whole H200
    assert one.vision_recomputed(image) == 0
    assert plan(1).vision_recomputed(video) == 0  # it is frozen
    layers, load = one.vision_recomputed(video), Load(PRESETS["3b"], MODULES, None, 1, True)

    def needed(vision):
        return load.footprint(video, one.savings, one.recomputed(video.tokens), vision).total

    assert one.keeps_gradients
    room = (0.92 * 120 - 1) * GIB / 1.04
    assert needed(layers) <= room < needed(layers - 1)
    # What is kept is exactly what lies between the estimates: so much of each layer and patch.
    patch = (6 * 1152 + 4304 - 1152) * 2
    assert needed(layers - 1) - needed(layers) == 128 * 729 * patch


@pytest.mark.parametrize(
    ("gib", "world", "variant", "fields"),
    [
        (24, 1, "3b", {"lora": {}}),
        (48, 1, "3b", {}),
        (80, 1, "7b", {"lora": {}}),
        (80, 1, "3b", {}),
        (141, 2, "7b", {}),
        (141, 1, "3b", {"longest_frames": 14_400}),
    ],
)
def test_an_hour_fits_the_cards_that_people_have(gib, world, variant, fields):
    available = (139 if gib == 141 else gib - 0.6) * GIB
    found = plan(world, variant, available=available, **fields)
    assert found.needed.total < available


def test_less_memory_never_makes_a_run_faster():
    costs = [plan(1, available=size * GIB).slower for size in (139, 96, 80, 64, 48, 40, 24)]
    assert costs == sorted(costs)
    assert costs[0] < 0.02 < costs[-1]


def test_moments_go_to_the_host_before_parameters_do_and_only_where_it_has_room():
    found = plan(1, available=47 * GIB)
    assert found.savings.optimizer_on_host
    assert not found.savings.parameters_on_host
    with pytest.raises(ValueError, match="give the host more memory"):
        plan(1, available=47 * GIB, host=8 * GIB)


def test_a_setting_forces_what_the_plan_would_choose_otherwise():
    forced = {"memaug": True, "layers": 5, "inputs_on_host": True, "optimizer_on_host": True}
    found = plan(1, savings=forced)
    assert found.layers == 5
    chosen = replace(plan(1).savings, memaug=True, inputs_on_host=True, optimizer_on_host=True)
    assert found.savings == chosen
    assert "5 of 36 layers of the LLM recomputed" in str(found)
    assert "the optimizer on the host" in str(found)


def test_what_fits_nowhere_is_answered_with_what_would():
    with pytest.raises(ValueError, match=r"on 1 device\(s\) of 23 GiB does not fit.*use \d+ dev"):
        plan(1, "7b", available=23 * GIB, lora={})
    forbidden = {"optimizer_on_host": False, "parameters_on_host": False}
    with pytest.raises(ValueError, match=r"leave out what 'savings' forbids; or tune the language"):
        plan(1, available=47 * GIB, savings=forbidden)
    with pytest.raises(ValueError, match="no number of such devices fits"):
        plan(1, "7b", available=4 * GIB)


def test_longer_samples_that_alone_do_not_fit_can_be_left_out():
    with pytest.raises(ValueError, match="set max_length to 9728, so that longer samples are left"):
        plan(1, available=15 * GIB, lora={})
    assert plan(1, available=15 * GIB, lora={}, max_length=9104).budget.tokens == 9104


def test_a_fixed_pack_that_is_too_large_is_answered_with_one_that_fits():
    with pytest.raises(ValueError, match=r"set micro_tokens to \d+"):
        plan(1, micro_tokens=800_000)


def test_kept_activations_that_do_not_fit_are_answered_with_recomputation():
    with pytest.raises(ValueError, match="set checkpointing to true"):
        plan(1, micro_tokens=60_000, checkpointing=False)


def test_without_a_device_that_counts_memory_the_limit_is_the_longest_sample():
    assert plan(1, available=None).budget.tokens == 32768
    assert plan(1, available=None, micro_tokens=1000).budget.tokens == 1000


def test_more_devices_need_less_each():
    totals = [plan(world, available=None).needed.total for world in (1, 2, 4, 8)]
    assert totals == sorted(totals, reverse=True)
