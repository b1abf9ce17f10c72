"""A deployment in a temporary folder: question-answer rows, catalogued, ready to be fetched."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from assets.annotations.build import build_catalogue
from assets.annotations.catalogue import Catalogue
from assets.annotations.collect import collect_annotations
from assets.deployment.settings import Settings
from assets.sources.base import VideoRow
from assets.videos.acquire import AcquireReport, acquire_part
from training.formats.storage import Storage

QUICK = {
    "workers": 4,
    "min_interval_s": 0.0,
    "attempts": 3,
    "backoff_s": 0.01,
    "hub_backoff_s": 0.01,
    "cooldown_s": 0.05,
    "timeout_s": 2.0,
    "min_free_bytes": 0,
    "coverage_threshold": 0.0,
}


def quiet(_: str) -> None:
    """Takes log lines that a test does not look at."""


def make_settings(
    folder: Path, sources: Mapping[str, Any], rows: Iterable[Mapping[str, Any]] = (), **changes: Any
) -> Settings:
    """Settings with one part and quick retries, and an annotation file with `rows` where they are
    given.
    """
    rows = list(rows)
    file = folder / "qa.jsonl"
    if rows:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    download = {**QUICK, **changes.pop("download", {})}
    defaults: dict[str, Any] = {
        "root": str(folder / "root"),
        "parts": 1,
        "annotations": {"paths": [str(file)]},
        "sources": sources,
        "download": download,
    }
    return Settings.model_validate({**defaults, **changes})


def question(video: str, source: str, url: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "video": video,
        "data_source": source,
        "URL": url,
        "question": f"What is {video}?",
        "answer": "A",
        **more,
    }


def catalogued(settings: Settings) -> Storage:
    """The storage, with annotations collected and the catalogue built."""
    storage = Storage(settings.root)
    collect_annotations(storage, settings, quiet)
    build_catalogue(storage, settings, quiet)
    return storage


def acquire(
    storage: Storage, settings: Settings, source: str, part: str = "part0"
) -> AcquireReport:
    return acquire_part(storage, settings, source, part, quiet)


def row(storage: Storage, source: str, identifier: str, part: str = "part0") -> VideoRow:
    with Catalogue(storage, source, part) as catalogue:
        return catalogue.row(identifier)


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
