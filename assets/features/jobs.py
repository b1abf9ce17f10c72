"""What passes through an extraction: videos, the jobs they become, and how each of them ends."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from assets.features.processes import EncoderProcess


class Video(NamedTuple):
    """One present video: ``<source>/<id>``, seconds, hash, and where its file is below the storage
    root.
    """

    video: str
    duration: float
    sha256: str
    relpath: str


class Failure(NamedTuple):
    """A video that gave no features."""

    video: Video
    reason: str
    detail: str
    stderr: str = ""


class Success(NamedTuple):
    """A published feature file."""

    video: Video
    frames: int
    duration: float
    damaged: bool
    content: str
    bytes: int
    facts: dict[str, Any]


@dataclass(slots=True)
class Job:
    """One video between its decoder and its file."""

    number: int
    video: Video
    local: Path
    encoder: EncoderProcess | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    publishing: ExitStack = field(default_factory=ExitStack)
    damaged: bool = False
    frames: int = 0  # that came so far


@dataclass(slots=True)
class Usage:
    """Sums for the throughput table."""

    started: float = 0.0
    finished: float = 0.0
    frames: int = 0
    decode_cpu_s: float = 0.0
    decode_busy_s: float = 0.0
    worker_bytes: int = 0
    ring_used: int = 0
    ring_samples: int = 0
    encoders: list[dict[str, float]] = field(default_factory=list)


class Abandoned(Exception):
    """Thrown into ``Storage.writing`` so that a temporary file is removed instead of published."""
