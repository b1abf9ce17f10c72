"""`hourllava convert`: checkpoints of others to an export, which transformers loads, and back."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from model.config import PRESETS

FORMS = {
    "released": "a released Hour-LLaVA checkpoint to an export",
    "publish": "an export to the released names and layout",
    "onevision": "LLaVA-OneVision (single-image) to an export with a new MemAug, for stage 1",
    "parts": "SigLIP and Qwen2.5 to an export in which all between them is new",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `hourllava convert` takes."""
    forms = parser.add_subparsers(dest="form", required=True, metavar="FORM")
    for form, what in FORMS.items():
        command = forms.add_parser(form, help=what, description=f"Convert {what}.")
        if form == "parts":
            command.add_argument("--siglip", type=Path, required=True, help="folder of SigLIP")
            command.add_argument("--llm", type=Path, required=True, help="folder of Qwen2.5")
        else:
            command.add_argument("source", type=Path, help="folder of the checkpoint to read")
        command.add_argument("out", type=Path, help="folder to write; it must not exist yet")
        if form != "publish":
            command.add_argument(
                "--variant", choices=sorted(PRESETS), required=True, help="the model's size"
            )


def convert(chosen: argparse.Namespace) -> int:
    """Run the command; returns its exit code. Nothing is written where a tensor does not fit."""
    read = [chosen.siglip, chosen.llm] if chosen.form == "parts" else [chosen.source]
    for folder in read:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
    from model.weights import convert as forms  # imports torch: not before it is needed

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if chosen.form == "publish":
        forms.publish(chosen.source, chosen.out)
    elif chosen.form == "parts":
        forms.convert_parts(chosen.siglip, chosen.llm, chosen.out, PRESETS[chosen.variant])
    elif chosen.form == "onevision":
        forms.convert_onevision(chosen.source, chosen.out, PRESETS[chosen.variant])
    else:
        forms.convert_released(chosen.source, chosen.out, PRESETS[chosen.variant])
    print(chosen.out)
    return 0
