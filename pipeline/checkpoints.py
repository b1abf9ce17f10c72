"""`hourllava checkpoints`: which there are, and one of them fetched."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from model.weights.released import AUTHOR

if TYPE_CHECKING:
    from assets.deployment.settings import Settings

WIDEST = 400  # characters of a cell: what a person copies has to be whole


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `hourllava checkpoints` takes."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=["list", "fetch"],
        default="list",
        help="list those there are (the default), or fetch one from the hub",
    )
    parser.add_argument(
        "name",
        nargs="?",
        help="with fetch: 3b-tuning, or namespace/name[@revision]; with list: whose (default: "
        f"{AUTHOR})",
    )
    parser.add_argument("--to", type=Path, help="with fetch: the folder")


def checkpoints(chosen: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from assets.checkpoints.named import fetch_released, own_checkpoints
    from assets.deployment.addresses import config_option
    from assets.deployment.settings import load_settings
    from assets.fetching.errors import TransferError
    from pipeline.demo.summary import text_table

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    settings = load_settings(chosen.config)
    if chosen.action == "fetch":
        if not chosen.name:
            listing = f"hourllava checkpoints{config_option(chosen.config)}"
            raise ValueError(f"say which one to fetch; {listing} lists them")
        try:
            folder, stage = fetch_released(settings, chosen.name, chosen.to, log)
        except TransferError as error:
            raise ValueError(f"{error}. {_offline()}") from error
        known = "N" if stage is None else stage
        print(f"{folder}\nas a start: {{folder: {folder.resolve()}, stage: {known}}}")
        return 0
    _list_released(settings, chosen, log)
    print("\nthe deployment's own; --checkpoint takes them by name")
    rows = [
        {
            "name": own.name,
            "parameters": f"{own.parameters:,}" if own.made else "not made yet",
            "folder below the root": own.folder,
        }
        for own in own_checkpoints(settings)
    ]
    print(text_table(rows))
    return 0


def _list_released(
    settings: Settings, chosen: argparse.Namespace, log: Callable[[str], None]
) -> None:
    """Print what the hub has of the chosen author; what is expected and what is here, where it
    does not answer.
    """
    from assets.checkpoints.named import guessed_rows, released_rows
    from assets.checkpoints.on_hub import look_at, models_of
    from assets.deployment.addresses import config_option
    from assets.fetching.errors import TransferError
    from assets.fetching.hub import Hub
    from pipeline.demo.summary import text_table

    author = chosen.name or AUTHOR
    once = settings.download.model_copy(update={"attempts": 1})
    hub = Hub(settings.hub_endpoint, once, log)
    try:
        there = models_of(hub, author)
    except TransferError as error:
        print(f"{hub.api.endpoint} does not answer: {error}\n")
        print("expected there, by names that were never checked against it:")
        print(text_table(list(guessed_rows()), WIDEST))
        print(f"\n{_offline()}")
        return
    print(
        f"of {author}, on {hub.api.endpoint}; hourllava checkpoints fetch REPOSITORY"
        f"{config_option(chosen.config)} takes one to this machine. The stage is the name's; N: it "
        "does not say"
    )
    print(text_table(list(released_rows(look_at(hub, repo) for repo in there)), WIDEST))


def _offline() -> str:
    """What of the hub is on this machine."""
    from assets.checkpoints.on_hub import cached_models
    from pipeline.demo.summary import text_table

    rows = cached_models()
    if not rows:
        return "The hub's cache on this machine holds no model"
    return f"In the hub's cache on this machine:\n{text_table(rows, WIDEST)}"
