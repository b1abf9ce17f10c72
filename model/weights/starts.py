"""A checkpoint that training starts from, whatever its kind: recognised, checked, and written as
one of ours.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from model.config import PRESETS, HourLlavaConfig
from model.weights.convert import (
    TOKENIZER_FILES,
    check_own,
    convert_onevision,
    convert_released,
)
from model.weights.kinds import Kind, differences, read_config, recognise
from model.weights.tensors import INDEX_NAME, checkpoint_files


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


def _take_own(source: Path, out: Path, preset: str) -> None:
    """Take one of our own exports as it is."""
    config = HourLlavaConfig.from_dict(read_config(source)["hour_llava"])
    if different := differences(config, PRESETS[preset]):
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
