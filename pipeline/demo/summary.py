"""What a run of the demo made, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from assets.annotations.catalogue import read_catalogue
from assets.records.lineage import Lineage, all_records
from assets.sources.base import OK
from pipeline.demo.client import DagsterClient
from training.formats import layout
from training.formats.storage import Storage

# Which of an asset's counts are its rows in and its rows out.
ROWS = {
    "annotations": ("rows_read", "rows"),
    "catalogue": ("questions", "videos"),
    "llava_onevision": ("rows_read", "rows"),
    "llava_video": ("rows_read", "rows"),
    "videos": ("expected", "ok"),
    "conversations": ("rows_in", "samples"),
    "videomarathon_json": ("samples", "samples"),
    "llava_ov_si_onlyimg": ("rows_in", "samples"),
    "llavavideo_text": ("rows_in", "samples"),
    "llavavideo_si": ("rows_in", "samples"),
    "llavavideo_mi": ("rows_in", "samples"),
    "llavavideo_video": ("rows_in", "samples"),
    "videomarathon_video": ("rows_in", "samples"),
    "hourllava_s3": ("samples", "samples"),
    "features": ("videos", "done"),
    "stage1": ("samples", "steps"),
    "stage2": ("samples", "steps"),
    "stage3": ("samples", "steps"),
    "evaluation": ("questions", "asked"),
}


ACCURACY = (
    "questions",
    "asked",
    "chance",
    "base_model",
    "stage1",
    "stage2",
    "stage3",
    "nothing shown",
    "gain",
)


def print_summary(client: DagsterClient, storage: Storage) -> None:
    """Print a row for each asset and what each stage and the evaluation came to."""
    by_asset: dict[str, list[Lineage]] = {}
    for record in all_records(storage):
        by_asset.setdefault(record.asset, []).append(record)
    runs = client.runs(
        sorted({record.run_id for records in by_asset.values() for record in records})
    )
    rows = []
    for asset, records in by_asset.items():
        counts: dict[str, int] = {}
        for record in records:
            for what, count in record.counts.items():
                counts[what] = counts.get(what, 0) + count
        came_in, went_out = ROWS.get(asset, ("", ""))
        rows.append(
            {
                "asset": asset,
                "products": len(records),
                "in": counts.get(came_in, ""),
                "out": counts.get(went_out, ""),
                "seconds": round(sum(_seconds(asset, record, runs) for record in records), 1),
                "what": ", ".join(
                    f"{what} {count:,}"
                    for what, count in counts.items()
                    if count and what not in (came_in, went_out)
                ),
            }
        )
    print(f"\n{text_table(rows)}")
    for title, part in (
        ("what is missing, and why", _missing(storage)),
        (
            "losses, mean of the first and of the last tenth of the steps",
            _losses(storage, by_asset),
        ),
    ):
        if part:
            print(f"\n{title}\n{text_table(part)}")
    if "evaluation" in by_asset:
        (record,) = by_asset["evaluation"]
        summary = storage.read_json(f"{record.folder}/summary.json")
        accuracy = [{name: row[name] for name in ACCURACY} for row in summary["accuracy"]]
        print(f"\nshare of held-out questions answered right\n{text_table(accuracy)}")
        print(f"\none of them\n{text_table(summary['example'])}")


def _missing(storage: Storage) -> list[dict[str, Any]]:
    """Every question-answer row and every video that could not be used."""
    found = []
    for row in (
        pq.read_table(storage.local(layout.REJECTED_ANNOTATIONS)).to_pylist()
        if storage.exists(layout.REJECTED_ANNOTATIONS)
        else []
    ):
        found.append(
            {
                "what": f"row {row['row']} of {row['file']}",
                "reason": row["reason"],
                "detail": row["content"],
            }
        )
    for name in storage.list(layout.CATALOGUE, ".parquet"):
        source, part = name.removesuffix(".parquet").split("/")[-2:]
        for row in read_catalogue(storage, source, part).to_pylist():
            if row["status"] != OK:
                found.append(
                    {"what": row["video"], "reason": row["reason"], "detail": row["message"]}
                )
    return found


def _losses(storage: Storage, by_asset: Mapping[str, Sequence[Lineage]]) -> list[dict[str, Any]]:
    rows = []
    for stage in ("stage1", "stage2", "stage3"):
        for record in by_asset.get(stage, []):
            result = storage.read_json(f"{record.folder}/result.json")
            rows.append(
                {
                    "stage": record.product,
                    "steps": result["steps"],
                    "first": round(result["first_loss"], 3),
                    "last": round(result["last_loss"], 3),
                    "seconds": round(result["seconds"], 1),
                }
            )
    return rows


def text_table(rows: Sequence[Mapping[str, Any]], widest: int = 90) -> str:
    """Rows as aligned columns, numbers to the right; cells are cut to `widest` characters."""
    if not rows:
        return "(nothing)"
    cells = [
        [str(name) for name in rows[0]],
        *([f"{value}"[:widest] for value in row.values()] for row in rows),
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    right = [
        all(isinstance(row[name], int | float) or row[name] == "" for row in rows)
        for name in rows[0]
    ]
    lines = []
    for line in cells:
        columns = zip(line, widths, right, strict=True)
        lines.append(
            "  ".join(c.rjust(w) if to_right else c.ljust(w) for c, w, to_right in columns).rstrip()
        )
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _seconds(asset: str, record: Lineage, runs: Mapping[str, Mapping[str, Any]]) -> float:
    for step in runs.get(record.run_id, {}).get("stepStats", []):
        if step["stepKey"] == asset and step["startTime"] and step["endTime"]:
            return float(step["endTime"] - step["startTime"])
    return 0.0
