"""`hourllava checkpoints`: which there are, and one of them fetched."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


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
        "name", nargs="?", help="with fetch: 3b-tuning, or namespace/name[@revision]"
    )
    parser.add_argument("--to", type=Path, help="with fetch: the folder")


def checkpoints(chosen: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from assets.checkpoints.named import fetch_released, own_checkpoints, released_rows
    from assets.deployment.settings import load_settings
    from pipeline.demo.summary import text_table

    settings = load_settings(chosen.config)
    if chosen.action == "fetch":
        if not chosen.name:
            raise ValueError("say which one to fetch; hourllava checkpoints lists them")

        def log(line: str) -> None:
            print(line, file=sys.stderr, flush=True)

        folder, stage = fetch_released(settings, chosen.name, chosen.to, log)
        print(f"{folder}\nas a start: {{folder: {folder.resolve()}, stage: {stage or 'N'}}}")
        return 0
    print(
        "released, on the hub; hourllava checkpoints fetch NAME takes one to this machine. These "
        "names were never checked against the hub: any repository can be named instead"
    )
    print(text_table(list(released_rows())))
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
