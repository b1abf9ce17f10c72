"""What makes a run the run it is: the contents that it reads, and the settings that change its
steps. Nothing else.

A run that was interrupted goes on wherever its identity is found again: under another path, on
another machine, with other limits, after an upgrade. `COUNTED` lists the settings that count. A
setting is written with its value only, and left out where the value is the one of `NEUTRAL`: so a
release that adds a setting with a default does not part a run from its checkpoints.

The asset graph names a stage's folder after the same identity. Every checkpoint and `result.json`
carry it, with its parts by name, so that a difference can be told in words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from model.changes import ModelChanges
from model.config import HourLlavaConfig
from model.weights.tensors import checkpoint_files
from training.formats.hashing import data_version, hash_file
from training.formats.storage import Storage
from training.run_config import RunConfig

Identity = dict[str, Any]  # parts by name, plain JSON values

# Fields of a run, and of its recipe after the run's deviations, that change its steps.
COUNTED = (
    "variant", "stage", "seed", "max_steps", "loss", "canonical_nodes", "shuffle_block",
    "held_out_share", "stream_batch", "lora", "rows",
)  # fmt: skip
COUNTED_OF_RECIPE = (
    "rates", "global_batch", "max_length", "epochs", "warmup", "clip", "betas", "weight_decay",
)  # fmt: skip
# Values that are left out. They never change, also when a default does: that default then stands in
# the identity, as it should, because the steps are others.
NEUTRAL: Mapping[str, Any] = {
    "seed": "hour-llava",
    "max_steps": None,
    "loss": "tokens",
    "canonical_nodes": 1,
    "shuffle_block": 8192,
    "betas": [0.9, 0.999],
    "weight_decay": 0.0,
    "micro_tokens": None,
    "features": None,
    "short_videos": "pixels",
    "held_out_share": 0.0,
    "stream_batch": None,
    "lora": None,
    "rows": None,
    "vision_start": None,
}


def identity_of(run: RunConfig, start_version: str) -> Identity:
    """The identity of a run.

    Args:
        start_version: `weights_version` of what it starts from.

    Raises:
        ValueError: the start or an index does not exist.
    """
    parts = {name: getattr(run, name) for name in COUNTED}
    parts |= {name: getattr(run.recipe, name) for name in COUNTED_OF_RECIPE}
    if run.loss == "micro_batch":  # their size weighs the samples
        parts |= {"micro_batch": run.recipe.micro_batch, "micro_tokens": run.micro_tokens}
    parts |= {"start": start_version, **_start_parts(Path(run.start), run.model)}
    parts["vision_start"] = weights_version(Path(run.vision_start)) if run.vision_start else None
    parts |= {"features": run.features_version, "shards": _shards(run)}
    parts["short_videos"] = "features" if run.short_video_features_root else "pixels"
    plain = json.loads(json.dumps(parts, default=_plain))
    return {
        name: value
        for name, value in sorted(plain.items())
        if name not in NEUTRAL or value != NEUTRAL[name]
    }


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else dict(value)


def short_name(identity: Identity) -> str:
    """Twelve characters that stand for an identity: the name of a run's folder."""
    return data_version(identity)[:12]


def differences(theirs: Identity, ours: Identity) -> list[str]:
    """What two identities differ in, a clause for each part: `max_steps is 8 there and 2 here`."""

    def shown(identity: Identity, name: str) -> str:
        value = identity.get(name, NEUTRAL.get(name, "nothing"))
        return json.dumps(value, sort_keys=True)

    return [
        f"{name} is {shown(theirs, name)} there and {shown(ours, name)} here"
        for name in sorted({*theirs, *ours})
        if shown(theirs, name) != shown(ours, name)
    ]


def weights_version(folder: Path) -> str:
    """Hash of the safetensors files of a checkpoint's folder: the version of what it holds.

    Raises:
        ValueError: there are none, or one of its index is not there.
    """
    files = checkpoint_files(folder)
    if not files:
        raise ValueError(
            f"start: {folder} holds no *.safetensors file; make what comes before this stage first"
        )
    with ThreadPoolExecutor(len(files)) as pool:
        hashes = list(pool.map(hash_file, files))
    return version_of_weights(dict(zip((file.name for file in files), hashes, strict=True)))


def version_of_weights(hashes: Mapping[str, str]) -> str:
    """The same from the SHA-256 of each file, by name."""
    return data_version({name: hashes[name] for name in sorted(hashes)})


def _start_parts(start: Path, changes: ModelChanges | None) -> Identity:
    """The model's configuration, with the run's changes, and the vocabulary of the start: small,
    and read in any case.
    """
    config = start / "config.json"
    if not config.exists():
        raise ValueError(
            f"start: {start} holds no checkpoint (no config.json); make what comes before this "
            "stage first"
        )
    described = json.loads(config.read_text()).get("hour_llava")
    model = HourLlavaConfig.from_dict(described) if described else None
    if model is not None and changes is not None:
        model = changes.applied(model)
    return {"model": data_version(_without_defaults(model)), "vocabulary": _vocabulary(start)}


def _without_defaults(value: Any) -> Any:
    """A configuration as plain values, without those that are at their default: so a release that
    adds a field does not change what was written before.
    """
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return {
        field.name: _without_defaults(found)
        for field in fields(value)
        if (found := getattr(value, field.name)) != field.default or field.default is MISSING
    }


def _vocabulary(start: Path) -> str:
    """Hash of the tokenizer's words and merges, whatever else its files say."""
    whole = start / "tokenizer.json"
    if whole.exists():
        return data_version(json.loads(whole.read_bytes()).get("model"))
    return data_version(
        {
            path.name: hash_file(path)
            for path in sorted(start.glob("*"))
            if path.name in ("vocab.json", "merges.txt")
        }
    )


def _shards(run: RunConfig) -> list[list[str]]:
    """SHA-256 of each index, stream by stream: an index holds the hash of each of its shards."""
    hashes = []
    for stream in run.streams:
        storage = Storage(stream.root)
        hashes.append([_hash_of_index(storage, stream.name, index) for index in stream.indexes])
    return hashes


def _hash_of_index(storage: Storage, stream: str, index: str) -> str:
    if not storage.exists(index):
        raise ValueError(
            f"stream {stream!r}: {storage.path(index)} does not exist; write its shards first"
        )
    return hashlib.sha256(storage.read_bytes(index)).hexdigest()
