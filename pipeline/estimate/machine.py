"""The machine that an estimate is for: its card, and what a stage does to fit into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from assets.checkpoints.nodes import ranks_of_stage
from assets.deployment.overrides import unplaced_run
from assets.deployment.settings import Settings
from model.config import PRESETS
from pipeline.estimate.installed import Gpu, free_disk
from training.host_memory import free_memory_of_host
from training.memory_plan import MemoryPlan, plan_memory
from training.rates import Card, card_called, card_of
from training.run_config import RunConfig


@dataclass(frozen=True, slots=True)
class Machine:
    """Cards of one kind.

    Attributes:
        card: whose rates are taken.
        count: how many.
        memory: bytes of one that a run may take.
        host: bytes of the host's memory that one rank may take; None: as much as it wants.
        disk: bytes that are free on its disk; None: nobody knows.
        note: what was taken for granted about the card; empty where nothing was.
    """

    card: Card
    count: int
    memory: float
    host: float | None = None
    disk: float | None = None
    note: str = ""

    def __str__(self) -> str:
        return f"{self.count} x {self.card.name}, {self.memory / 2**30:.0f} GiB"


def machine_of(text: str, count: int, host: float | None = None) -> Machine:
    """The machine with a card that a person named, by its name or by its memory (`24GiB`).

    Raises:
        ValueError: no such card; names the known ones.
    """
    card, by_memory = card_of(text)
    note = ""
    if by_memory:
        note = f"only the memory is known: as slow as the slowest known card of it, {card.name}"
    return Machine(card, count, card.memory, host, note=note)


def machine_here(settings: Settings, gpus: Sequence[Gpu]) -> Machine:
    """The machine that the settings name (`estimate.card`), else this one.

    Raises:
        ValueError: nobody says which card, or no rate is known of it.
    """
    count = ranks_of_stage(settings)
    if settings.estimate.card is not None:
        return replace(machine_of(settings.estimate.card, count), disk=free_disk(settings))
    if not gpus:
        raise ValueError("for which card? This machine has none, and estimate.card is not set")
    card = card_called(gpus[0].name)
    if card is None:
        raise ValueError(
            f"no rate is known of {gpus[0].name}; estimate.card names a card to take in its place"
        )
    free = free_memory_of_host()
    host = None if free is None else free / settings.training.processes
    return Machine(card, count, min(gpu.memory for gpu in gpus), host, free_disk(settings))


def run_of(settings: Settings, variant: str, stage: int) -> RunConfig:
    """The run of a variant's stage as the settings have it; see `unplaced_run`."""
    changes = settings.training.overrides.get(f"stage{stage}", {})
    return unplaced_run(settings.variants[variant].preset, stage, changes)


def plan_of(
    run: RunConfig, world: int, memory: float | None, host: float | None = None
) -> MemoryPlan:
    """A run's memory plan on so many devices.

    Args:
        memory: bytes of one device; None tells how much a device needs.
        host: bytes of the host's memory that one rank may take; None: any.

    Raises:
        ValueError: it does not fit; says what would.
    """
    return plan_memory(
        run,
        PRESETS[run.variant],
        world,
        memory,
        checkpointing=run.checkpointing is not False,
        host=host,
    )
