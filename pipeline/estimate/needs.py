"""All that a variant needs on one's own videos, step by step: hours, disk, money."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from assets.deployment.settings import Settings
from model.config import PRESETS, HourLlavaConfig
from pipeline.estimate import arithmetic
from pipeline.estimate.arithmetic import HOUR, rate
from pipeline.estimate.installed import Gpu
from pipeline.estimate.machine import Machine, machine_here, plan_of, run_of
from pipeline.estimate.material import Material, measured_material
from pipeline.estimate.scope import refuse_others
from training.flops import SUPERVISED, TEXT, adapter_parameters, flops, parameters, video_sizes
from training.footprint import weights_of
from training.memory_plan import MemoryPlan
from training.recipes import MODULES
from training.run_config import RunConfig

MEASURED_READING = PRESETS["3b"]  # the model whose reading of an hour was measured
PASSES = 3  # of the evaluation: the start, the tuned checkpoint, and that one with nothing shown
WRITTEN = 16  # tokens of an answer that the last checkpoint writes
LENGTH_STEP = 10  # seconds to which lengths are rounded, so that few kinds of samples are counted


@dataclass(frozen=True, slots=True)
class Step:
    """What is done one after the other.

    Attributes:
        on_card: whether the card is held for it.
        by: what its hours were computed from.
    """

    name: str
    hours: float
    on_card: bool
    by: str


@dataclass(frozen=True, slots=True)
class Room:
    """Disk that something takes, in bytes; `by` says how it was counted."""

    name: str
    size: float
    by: str


@dataclass(frozen=True, slots=True)
class Needs:
    """An estimate.

    Attributes:
        plans: for each trained stage, what the memory plan does.
        price: of a card and an hour, in whatever money; None: nobody said.
    """

    variant: str
    preset: str
    material: Material
    machine: Machine
    plans: dict[int, MemoryPlan]
    steps: tuple[Step, ...]
    rooms: tuple[Room, ...]
    price: float | None

    @property
    def hours(self) -> float:
        """Of all steps, one after the other."""
        return sum(step.hours for step in self.steps)

    @property
    def card_hours(self) -> float:
        """Hours of a card that are paid: all cards are held while one of them works."""
        return self.machine.count * sum(step.hours for step in self.steps if step.on_card)

    @property
    def size(self) -> float:
        """Bytes of disk, all of it there at the same time."""
        return sum(room.size for room in self.rooms)

    @property
    def lacking(self) -> float:
        """Bytes of disk that are not free; what was made already is counted again."""
        free = self.machine.disk
        return 0.0 if free is None else max(0.0, self.size - free)

    @property
    def money(self) -> float | None:
        return None if self.price is None else self.price * self.card_hours

    def summary(self) -> str:
        """One line."""
        paid = f", {self.money:,.2f} at {self.price:g} an hour" if self.money is not None else ""
        return (
            f"about {_hours(self.hours)}, {_hours(self.card_hours)} of a card{paid}, "
            f"{self.size / 1e9:,.0f} GB of disk, for {_material(self.material)} on {self.machine}"
        )

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        stages = ", ".join(f"stage {stage}" for stage in self.plans)
        yield f"{self.variant}: {self.preset}, {stages}, on {self.machine}"
        yield f"{_material(self.material)} ({'; '.join(self.material.origins)})"
        yield ""
        for step in self.steps:
            yield f"{step.name:34}{_hours(step.hours):>10}   {step.by}"
        yield f"{'all, one after the other':34}{_hours(self.hours):>10}"
        yield f"{'paid, hours of a card':34}{_hours(self.card_hours):>10}   {self._paid()}"
        yield ""
        for room in self.rooms:
            yield f"{room.name:34}{room.size / 1e9:>7,.1f} GB   {room.by}"
        yield f"{'disk':34}{self.size / 1e9:>7,.1f} GB{self._free()}"
        yield ""
        for stage, plan in self.plans.items():
            yield f"stage {stage}: {plan}"
        yield ""
        yield from _grounds(self)

    def _free(self) -> str:
        """What the disk has for it, where that is known."""
        if self.machine.disk is None:
            return ""
        free = f"   {self.machine.disk / 1e9:,.1f} GB are free"
        return f"{free}: {self.lacking / 1e9:,.1f} GB too few" if self.lacking else free

    def _paid(self) -> str:
        if self.money is None:
            return "give --price for what that costs"
        return f"{self.money:,.2f} at {self.price:g} for a card and an hour"


def needs_of(
    settings: Settings, variant: str, material: Material, machine: Machine, price: float | None
) -> Needs:
    """What a variant needs.

    Raises:
        ValueError: see `refuse_others`; or it does not fit, with what would.
    """
    refuse_others(settings, variant)
    chosen = settings.variants[variant]
    config = PRESETS[chosen.preset]
    runs = {stage: run_of(settings, variant, stage) for stage in chosen.stages}
    plans = {
        stage: plan_of(run, machine.count, machine.memory, machine.host)
        for stage, run in runs.items()
    }
    steps = [*_prepared(settings, material, machine)]
    for stage, run in runs.items():
        steps.append(_trained(settings, material, machine, run, plans[stage]))
    steps.append(_evaluated(settings, material, machine, config))
    rooms = tuple(_disk(material, config, runs))
    return Needs(variant, chosen.preset, material, machine, plans, tuple(steps), rooms, price)


def _prepared(settings: Settings, material: Material, machine: Machine) -> Iterator[Step]:
    decoders = settings.features.decode_workers
    yield Step(
        "videos, examined and published",
        arithmetic.examination_hours(material.size),
        False,
        f"{rate('download'):g} MiB/s; a host or link may be slower",
    )
    yield Step(
        "features",
        arithmetic.feature_hours(material.hours, decoders, machine.card),
        True,
        f"{decoders} decoding processes, a core each; one card encodes",
    )
    yield Step(
        "conversations and shards",
        arithmetic.grouping_hours(material.questions),
        False,
        "grouping alone; each Dagster run takes some seconds besides",
    )


def _trained(
    settings: Settings, material: Material, machine: Machine, run: RunConfig, plan: MemoryPlan
) -> Step:
    config, recipe = PRESETS[run.variant], run.recipe
    utilised = arithmetic.utilisation(run.variant, run.stage)
    assert utilised is not None  # measured for every preset that is no demo
    shown = 1 - settings.held_out_share
    samples = math.ceil(
        material.questions / material.videos / settings.shards.turns_per_sample
    )  # of each video
    work = shown * samples * recipe.epochs * _work(material, config, run.modules)
    hours = arithmetic.training_hours(work, utilised, machine.card) / machine.count
    # What the plan costs is the share of a step that it takes.
    hours /= 1 - plan.slower
    number = round(shown * samples * material.videos)
    stated = utilised * machine.card.products / machine.card.stated
    adapted = "; adapters are counted as whole modules" if run.lora else ""
    return Step(
        f"stage {run.stage}",
        hours,
        True,
        f"{number:,} samples, {recipe.epochs} times, {100 * utilised:.1f} % MFU "
        f"({100 * stated:.1f} % by the datasheet) less "
        f"{100 * plan.slower:.0f} %{adapted}",
    )


def _work(material: Material, config: HourLlavaConfig, modules: tuple[str, ...]) -> float:
    """Operations of one sample about each video."""
    kinds: dict[int, int] = {}
    for seconds in material.durations:
        length = max(LENGTH_STEP, LENGTH_STEP * round(seconds / LENGTH_STEP))
        kinds[length] = kinds.get(length, 0) + 1
    return sum(
        count * flops(video_sizes(length, TEXT, SUPERVISED, config), config, modules)
        for length, count in kinds.items()
    )


def _evaluated(
    settings: Settings, material: Material, machine: Machine, config: HourLlavaConfig
) -> Step:
    share = settings.held_out_share
    asked = share * material.questions
    if settings.evaluation.limit is not None:
        asked = min(asked, settings.evaluation.limit)
    mean = round(material.hours * HOUR / material.videos)
    read = arithmetic.reading_seconds(mean, config, MEASURED_READING, machine.card)
    heavier = sum(_of_modules(config).values()) / sum(_of_modules(MEASURED_READING).values())
    written = WRITTEN * rate("a written token, 3B, H200") / 1000 * heavier / machine.card.share
    looked = share * material.hours
    hours = PASSES * (
        arithmetic.decoding_hours(looked) + arithmetic.encoding_hours(looked, machine.card)
    )
    hours += asked * (PASSES * read + written) / HOUR
    return Step(
        "evaluation",
        hours,
        True,
        f"{asked:,.0f} questions about {share:.0%} of the videos, {PASSES} times, one core decodes",
    )


def _disk(
    material: Material, config: HourLlavaConfig, runs: dict[int, RunConfig]
) -> Iterator[Room]:
    whole = sum(_of_modules(config).values())
    seconds = material.hours * HOUR
    yield Room("videos", material.size, "links where the folder is on the same disk")
    yield Room(
        "features", arithmetic.feature_bytes(seconds, material.videos, config), "a frame a second"
    )
    yield Room("start", 2 * arithmetic.export_bytes(whole), "as fetched, and converted")
    for stage, run in runs.items():
        adapters = sum(adapter_parameters(config, run.lora).values())
        exported = arithmetic.export_bytes(whole + adapters)
        yield Room(f"export of stage {stage}", exported, "bfloat16, merged, adapters beside it")
        trained = weights_of(config, run.modules, run.lora).trained
        yield Room(
            f"state of the running stage {stage}",
            arithmetic.state_bytes(trained),
            f"{arithmetic.KEPT} x 12 bytes of each tuned parameter",
        )


def _of_modules(config: HourLlavaConfig) -> dict[str, int]:
    counts = parameters(config)
    return {module: counts[module] for module in MODULES}


def _grounds(needs: Needs) -> Iterator[str]:
    """Which rate was measured where, and what was taken from it for this card."""
    preset = needs.preset.upper()
    used = [
        "download",
        "features, one H200 and 16 cores",
        "vision encoder alone, H200",
        "CPU time of one sampled second of video",
        "grouping of all rows",
        *(f"MFU of stage {stage}, {preset}" for stage in needs.plans),
        "rate of a matrix product, H200",
        "reading an hour, 3B, H200",
        "a written token, 3B, H200",
    ]
    yield "measured (docs/performance.md):"
    for name in used:
        found = arithmetic.RATES[name]
        yield f"  {name}: {found.value:g} {found.unit}".rstrip() + f" ({found.on})"
    card = needs.machine.card
    if card.share != 1:
        yield (
            f"scaled: what a card does, by {card.teraflops:g} of the H200's 989 TFLOP/s as the "
            f"makers state them; nothing was measured on {card.name}"
        )
    if needs.machine.count > 1:
        yield f"scaled: training, as if {needs.machine.count} cards were as many times as fast"
    if needs.machine.note:
        yield f"assumed: {needs.machine.note}"
    yield (
        f"assumed: {TEXT} tokens of text in a sample, {SUPERVISED} of them supervised; questions "
        "spread evenly over the videos; what the plan's savings cost is its own estimate"
    )
    yield "not counted: queues, Dagster's own start-up, fetching the start, trying things"


def _material(material: Material) -> str:
    videos = f"{material.videos:,} videos of {material.hours:,.1f} h"
    return f"{videos} and {material.questions:,} questions"


def _hours(hours: float) -> str:
    """`1.5 h`, `12 min`."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else "< 1 min"


def needs_here(
    settings: Settings, variant: str, gpus: Sequence[Gpu], log: Callable[[str], None]
) -> Needs:
    """What a variant needs by the settings alone: the material that is there, on the card that they
    name or this machine has.

    Raises:
        ValueError: it cannot be estimated; says why.
    """
    refuse_others(settings, variant)
    machine = machine_here(settings, gpus)
    material = measured_material(settings, None, log)
    return needs_of(settings, variant, material, machine, settings.estimate.price)
