"""`hourllava estimate`: hours, disk and money for one's own videos."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from assets.deployment.settings import load_settings
from assets.deployment.variants import one_of
from pipeline.estimate.scope import refuse_others


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `hourllava estimate` takes."""
    parser.add_argument("--variant", help="which, where the settings name several")
    parser.add_argument(
        "--card",
        help="its name (RTX 4090), or its memory (24GiB); default: estimate.card, else the "
        "machine's own",
    )
    parser.add_argument("--cards", type=int, help="how many; default: training.processes")
    parser.add_argument(
        "--host-memory", type=float, metavar="GIB", help="of the machine; default: any"
    )
    parser.add_argument(
        "--disk", type=float, metavar="GB", help="free on the machine; default: below the root"
    )
    parser.add_argument(
        "--price", type=float, help="of a card and an hour; default: estimate.price"
    )
    parser.add_argument(
        "--hours", type=float, help="of video; default: those of the catalogue or the folders"
    )
    parser.add_argument("--videos", type=int, help="with --hours: how many they are")
    parser.add_argument("--questions", type=int, help="rows about all of the videos")


def estimate(chosen: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from pipeline.estimate.installed import installed_gpus
    from pipeline.estimate.machine import machine_here, machine_of
    from pipeline.estimate.material import given_material, measured_material
    from pipeline.estimate.needs import needs_of

    settings = load_settings(chosen.config)
    variant = one_of(settings.variants, chosen.variant)
    refuse_others(settings, variant)
    machine = (
        machine_here(settings, installed_gpus())
        if chosen.card is None
        else machine_of(chosen.card, settings.training.processes * settings.training.nodes)
    )
    if chosen.cards is not None:
        machine = replace(machine, count=chosen.cards)
    if chosen.host_memory is not None:
        machine = replace(machine, host=chosen.host_memory * 2**30 / machine.count)
    if chosen.disk is not None:
        machine = replace(machine, disk=chosen.disk * 1e9)
    if chosen.hours is not None:
        if chosen.questions is None:
            raise ValueError("--hours needs --questions as well: how many there are about them")
        material = given_material(chosen.hours, chosen.videos, chosen.questions)
    else:
        material = measured_material(
            settings, chosen.questions, lambda line: print(line, file=sys.stderr)
        )
    price = settings.estimate.price if chosen.price is None else chosen.price
    print(needs_of(settings, variant, material, machine, price))
    return 0
