"""A checkpoint that training starts from, whatever its kind: recognised, checked, and written as
one of ours.

Only the configuration and the names of the tensors decide what a folder holds.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from model.config import PRESETS, HourLlavaConfig
from model.weights.convert import (
    TOKENIZER_FILES,
    check_own,
    convert_onevision,
    convert_released,
)
from model.weights.tensors import INDEX_NAME, checkpoint_files, stored_tensors

Kind = Literal["LLaVA-OneVision", "released Hour-LLaVA", "own export"]

ACCEPTED = (
    "an export of this project (its config.json has hour_llava), a released Hour-LLaVA checkpoint "
    "(tensors model.vision_resampler.layers.*), or LLaVA-OneVision single-image weights (tensors "
    "model.vision_tower.* and model.mm_projector.*, without a resampler)"
)
NAMED = 5  # tensors that a refusal names


def write_start(source: Path, out: Path, preset: str, finished: int | None, seed: str) -> Kind:
    """Write the checkpoint in `source` to `out` as one that `from_pretrained` loads.

    Args:
        preset: key of `PRESETS` that it has to be of.
        finished: the stage that it has finished; 0 where training begins.
        seed: what a MemAug is drawn from that it does not have.

    Raises:
        ValueError: it is of no kind that is known, of another preset, not of that stage, or has
            other tensors than it should; they are named.
    """
    kind = recognise(source)
    if kind == "own export":
        _take_own(source, out, preset)
    elif kind == "released Hour-LLaVA":
        if not finished:
            raise ValueError(
                f"{source}: a released Hour-LLaVA checkpoint, which has a trained MemAug: its "
                "start.stage is 1, 2 or 3"
            )
        convert_released(source, out, PRESETS[preset])
    else:
        if finished:
            raise ValueError(
                f"{source}: LLaVA-OneVision weights, which have no MemAug: their start.stage is 0, "
                f"not {finished}"
            )
        convert_onevision(source, out, PRESETS[preset], seed=seed)
    return kind


def recognise(folder: Path) -> Kind:
    """What the checkpoint in a folder is.

    Raises:
        ValueError: of no kind that is known; says what was found and what is accepted.
    """
    if "hour_llava" in _config(folder):
        return "own export"
    names = [tensor.name for tensor in stored_tensors(*checkpoint_files(folder))]
    if any(name.startswith("model.vision_resampler.layers.") for name in names):
        return "released Hour-LLaVA"
    if all(
        any(name.startswith(part) for name in names)
        for part in ("model.vision_tower.", "model.mm_projector.")
    ):
        return "LLaVA-OneVision"
    found = f"tensors {', '.join(names[:NAMED])}" if names else "no *.safetensors file"
    raise ValueError(
        f"{folder}: not a checkpoint to start from. Found {found}; accepted: {ACCEPTED}"
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        written = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(written, dict):
        raise ValueError(f"{path}: expected an object, found {type(written).__name__}")
    return written


def _take_own(source: Path, out: Path, preset: str) -> None:
    """Take one of our own exports as it is."""
    config, wanted = HourLlavaConfig.from_dict(_config(source)["hour_llava"]), PRESETS[preset]
    different = [
        f"{field.name} is {getattr(config, field.name)!r}, {preset} has "
        f"{getattr(wanted, field.name)!r}"
        for field in fields(config)
        if field.name != "max_length" and getattr(config, field.name) != getattr(wanted, field.name)
    ]
    if different:
        raise ValueError(f"{source}: an export of another model: {'; '.join(different)}")
    if not (source / "tokenizer_config.json").exists():
        raise ValueError(f"{source}: an export without its tokenizer (no tokenizer_config.json)")
    check_own(source, config)
    out.mkdir(parents=True)
    names = ("config.json", "generation_config.json", "chat_template.jinja", *TOKENIZER_FILES)
    plain = [source / name for name in (*names, INDEX_NAME) if (source / name).exists()]
    for file in (*plain, *checkpoint_files(source)):
        _link(file, out / file.name)


def _link(file: Path, target: Path) -> None:
    """The same bytes under another name where the disk can, a copy where not."""
    try:
        os.link(file.resolve(), target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(file, target)
