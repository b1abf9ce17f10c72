"""What makes a run the run it is, and what it leaves behind when it is done.

A run is known by a hash of all that decides its steps. Started again with the same hash it goes on,
or is done already; with another one in the same folder, what lies there is not its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.formats.storage import Storage
from training.metrics import METRICS_NAME, read_metrics
from training.run_config import RunConfig
from training.state import TrainState

log = logging.getLogger(__name__)

RESULT_NAME = "result.json"
NONFINITE_NAME = "nonfinite.jsonl"  # samples of steps that were not taken
FINGERPRINT_NAME = "fingerprint"

# Fields of a run that change how fast it goes or what it keeps, never which steps it takes.
SPEED_ONLY = (
    "out", "device", "compile", "checkpointing", "micro_batch", "micro_tokens", "workers",
    "prefetch", "save_every", "data_timeout_s", "features_cache", "features_cache_bytes", "keep",
    "nonfinite_limit", "tensorboard",
)  # fmt: skip


def fingerprint_of(run: RunConfig) -> str:
    """Hash of what decides the steps of a run: its configuration, its recipe, and what the shard
    indexes say.

    Raises:
        ValueError: an index does not exist.
    """
    values = json.loads(run.to_json())
    values["recipe"] = asdict(run.recipe)
    for fields in (values, values["recipe"]):
        for name in SPEED_ONLY:
            fields.pop(name, None)
    values["indexes"] = {}
    for stream in run.streams:
        storage = Storage(stream.root)
        for index in stream.indexes:
            if not storage.exists(index):
                raise ValueError(
                    f"stream {stream.name!r}: {storage.path(index)} does not exist; write its "
                    "shards first"
                )
            digest = hashlib.sha256(storage.read_bytes(index)).hexdigest()
            values["indexes"][f"{stream.name}/{index}"] = digest
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=dict).encode()).hexdigest()


def finished(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """The result of this very run, if it was finished in `out`."""
    path = out / RESULT_NAME
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    return dict(result) if result["fingerprint"] == fingerprint else None


def remove_foreign_state(out: Path, fingerprint: str) -> None:
    """Remove what a run of another configuration left in `out`, and sign the folder."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / FINGERPRINT_NAME
    if path.exists() and path.read_text() == fingerprint:
        return
    for name in (RESULT_NAME, "state", METRICS_NAME, "samples", "tensorboard", NONFINITE_NAME):
        target = out / name
        if target.exists():
            log.info(
                "%s: removed, it belongs to a run with another configuration or other data", target
            )
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
    Storage(str(out)).write_bytes(FINGERPRINT_NAME, fingerprint.encode())


def write_result(
    out: Path,
    state: TrainState,
    fingerprint: str,
    export: str,
    world: int,
    dropped: dict[str, int],
) -> dict[str, Any]:
    """Write `result.json`, which says that the run is complete, and return its content.

    Losses are means over the first and the last tenth of the steps.

    Args:
        state: of all ranks, after the last step.
        export: name of the export's folder below `out`.
        world: number of ranks.
        dropped: samples that could not be used, by reason.
    """
    losses = [
        record["loss"] for record in read_metrics(out / METRICS_NAME) if record["loss"] is not None
    ]
    tenth = max(1, len(losses) // 10)
    result = {
        "first_loss": sum(losses[:tenth]) / tenth if losses else None,
        "last_loss": sum(losses[-tenth:]) / tenth if losses else None,
        "steps": state.step,
        "samples": state.samples,
        "tokens": state.tokens,
        "supervised": state.supervised,
        "seconds": state.seconds,
        "skipped_steps": state.skipped,
        "dropped": dropped,
        "ranks": world,
        "export": export,
        "fingerprint": fingerprint,
    }
    Storage(str(out)).write_json(RESULT_NAME, result)
    return result
