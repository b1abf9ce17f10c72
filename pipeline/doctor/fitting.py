"""Whether the stages of the settings' variants fit into the GPUs, what is done for it and what that
costs, on which cards they fit, and what own videos should need.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from assets.checkpoints.nodes import ranks_of_stage
from assets.deployment.addresses import config_option
from assets.deployment.settings import Settings
from assets.sources.findings import Finding, missing, note, ok
from pipeline.doctor.gpus import large_variants
from pipeline.doctor.machine import GIB
from pipeline.estimate.installed import Gpu
from training.host_memory import free_memory_of_host
from training.rates import CARDS


def check_fitting(settings: Settings, gpus: list[Gpu]) -> Iterator[Finding]:
    """For each stage of each variant: what the memory plan does on this machine, and which cards
    it fits into.
    """
    smallest = min((gpu.memory for gpu in gpus), default=None)
    for variant in large_variants(settings):
        for stage in settings.variants[variant].stages:
            yield _here(settings, variant, stage, smallest)
            yield _on_cards(settings, variant, stage)


def _here(settings: Settings, variant: str, stage: int, memory: float | None) -> Finding:
    """Whether a stage's largest pack fits into a device.

    Args:
        memory: bytes of the smallest device; None tells how much a device needs.
    """
    from pipeline.estimate.machine import plan_of, run_of

    world, what = ranks_of_stage(settings), f"{variant}, stage {stage}"
    run, host = run_of(settings, variant, stage), None
    if memory is not None and (free := free_memory_of_host()) is not None:
        host = free / settings.training.processes
    try:
        plan = plan_of(run, world, memory, host)
    except ValueError as error:
        problem, _, rest = str(error).partition(";")
        return missing(what, problem, rest.removeprefix(" "))
    if memory is None:
        advice = "choose GPUs with that much, or more of them"
        return note(what, f"needs an estimated {plan.needed} on each of {world} device(s)", advice)
    shared = f", {host / GIB:.0f} GiB of the host free for each" if host is not None else ""
    return ok(what, f"{world} device(s) of {memory / GIB:.0f} GiB{shared}: {plan}")


def _on_cards(settings: Settings, variant: str, stage: int) -> Finding:
    """Into which sizes of cards a stage fits, whatever the host has, and what that costs."""
    from pipeline.estimate.machine import plan_of, run_of

    world = ranks_of_stage(settings)
    run, found = run_of(settings, variant, stage), []
    for gib in sorted({card.gib for card in CARDS.values()}):
        try:
            plan = plan_of(run, world, float(gib * GIB))
        except ValueError:
            found.append(f"{gib} GiB: no")
            continue
        host = f", {plan.needed.host / GIB:.0f} GiB of the host" if plan.needed.host else ""
        found.append(f"{gib} GiB: {100 * plan.slower:.0f} % slower{host}")
    return ok(f"{variant}, stage {stage}, fits", f"{world} x {'; '.join(found)}")


def check_estimate(
    settings: Settings, gpus: list[Gpu], config: Path | None = None
) -> Iterator[Finding]:
    """What each large variant should need on own videos: hours, disk, money.

    Args:
        config: file of the settings, where one was chosen.
    """
    for variant in large_variants(settings):
        from pipeline.estimate.needs import needs_here

        what = f"estimate of {variant}"
        try:
            needs = needs_here(settings, variant, gpus, lambda line: print(line, file=sys.stderr))
        except ValueError as error:
            yield note(what, str(error), "hourllava estimate --help tells what can be given")
            continue
        if needs.lacking:
            advice = (
                f"{needs.lacking / 1e9:,.0f} GB more below the root, less what is there already"
            )
            yield note(what, needs.summary(), advice)
            continue
        yield ok(
            what, f"{needs.summary()}; hourllava estimate{config_option(config)} has the steps"
        )
