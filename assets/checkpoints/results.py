"""What a checkpoint folder holds, and what a finished stage tells about its run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from model.weights.tensors import checkpoint_files, stored_tensors
from training.formats import layout
from training.formats.receipts import FileEntry
from training.formats.storage import Storage
from training.metrics import METRICS_NAME, read_metrics
from training.run_config import RunConfig
from training.run_folder import EXPORT_NAME, RESULT_NAME
from training.run_identity import version_of_weights, weights_version


@dataclass(frozen=True, slots=True)
class Weights:
    """The safetensors files of one folder.

    Attributes:
        version: hash of their content.
        tensors: number of tensors.
        parameters: number of numbers in them.
    """

    version: str
    tensors: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Results:
    """How a stage ended.

    Attributes:
        version: hash of the exported weights.
        files: of the export, below the run's folder, hashed when they were written.
        counts: steps, samples, tokens and parameters.
        first_loss, last_loss: means over supervised tokens; None where no step had a finite one.
        seconds: of the whole run.
        dropped: samples that could not be used, by reason.
        throughput: speed of the steps but the first tenth, as rows `{"what", "value"}`.
    """

    version: str
    files: list[FileEntry]
    counts: dict[str, int]
    first_loss: float | None
    last_loss: float | None
    seconds: float
    dropped: dict[str, int]
    throughput: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class EncoderReport:
    """The exported vision encoder; `folder` is below the storage root."""

    version: str
    folder: str
    tensors: int
    parameters: int


def read_weights(folder: Path) -> Weights:
    """Describe the weights in `folder`.

    Raises:
        FileNotFoundError: there are none.
    """
    files = checkpoint_files(folder)
    if not files:
        raise FileNotFoundError(
            f"{folder}: no safetensors file; the checkpoint is not complete, materialize it again"
        )
    tensors = list(stored_tensors(*files))
    return Weights(weights_version(folder), len(tensors), sum(tensor.count for tensor in tensors))


def read_results(run: RunConfig) -> Results:
    """What the finished run in `run.out` tells.

    Raises:
        FileNotFoundError: it is not finished.
    """
    out = Path(run.out)
    if not (out / RESULT_NAME).exists():
        raise FileNotFoundError(
            f"{out}: no {RESULT_NAME}; the stage is not finished, materialize it again to go on"
        )
    result = json.loads((out / RESULT_NAME).read_text())
    # The hashes of what was written, not of what lies there now: a version has a receipt.
    files = [FileEntry(**entry) for entry in result["files"]]
    weights = {
        PurePosixPath(entry.path).name: entry.hash.partition(":")[2]
        for entry in files
        if entry.path.endswith(".safetensors")
    }
    tensors = stored_tensors(*checkpoint_files(out / EXPORT_NAME))
    counts = {
        name: result[name] for name in ("steps", "samples", "tokens", "supervised", "skipped_steps")
    }
    return Results(
        version_of_weights(weights),
        files,
        counts | {"parameters": sum(tensor.count for tensor in tensors)},
        result["first_loss"],
        result["last_loss"],
        result["seconds"],
        result["dropped"],
        _throughput(list(read_metrics(out / METRICS_NAME)), result["ranks"]),
    )


def _throughput(records: list[dict[str, Any]], ranks: int) -> list[dict[str, str]]:
    """How fast the steps were; the first tenth, which compiles and fills caches, is left out."""
    steady = records[len(records) // 10 :]
    if not steady:
        return []
    seconds = sum(record["step_s"] for record in steady)
    rows = {
        "ranks": f"{ranks}",
        "a step": f"{seconds / len(steady):,.2f} s",
        "samples a second": f"{sum(record['samples'] for record in steady) / seconds:,.2f}",
        "tokens a second": f"{sum(record['tokens'] for record in steady) / seconds:,.0f}",
        "waiting for data": f"{sum(record['data_wait_s'] for record in steady) / seconds:.1%}",
    }
    return [{"what": what, "value": value} for what, value in rows.items()]


def publish_vision_encoder(storage: Storage, stage_folder: str, variant: str) -> EncoderReport:
    """Export the vision encoder of a stage's checkpoint to
    `checkpoints/<variant>/vision_encoder`.
    """
    from training.export import export_vision_encoder

    folder = layout.vision_encoder(variant)
    with storage.writing_folder(folder) as temporary:
        export_vision_encoder(storage.local_folder(f"{stage_folder}/export"), temporary)
        weights = read_weights(temporary)
    return EncoderReport(weights.version, folder, weights.tensors, weights.parameters)


def below(folder: str, entries: Sequence[FileEntry]) -> list[FileEntry]:
    """Entries of files below a folder, as files below the root."""
    return [FileEntry(f"{folder}/{entry.path}", entry.size, entry.hash) for entry in entries]
