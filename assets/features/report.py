"""What an extraction tells of itself: counts, tables and the throughput of its processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from assets.features.coordinator import Coordinator
from assets.features.jobs import ExtractedVideo
from assets.features.quarantine import Quarantined
from training.formats.hashing import data_version


@dataclass(slots=True)
class FeatureReport:
    """What an extraction did.

    Attributes:
        version: content hash of the part's feature files.
        counts: videos, done, already_done, quarantined, damaged; and `quarantined <reason>` for
            each reason.
        frame_strip: PNG of pictures as the encoder saw them; empty when none was decoded.
        strip_table: its videos, and the times of their pictures.
        hours: of video, of all features of the part, new and old.
        bytes: of all feature files of the part.
        frames: of all features of the part.
        new_frames: of this run.
        seconds: that this run's processes worked.
        frames_per_second: of this run, from video files to feature files.
        table: one row for each outcome.
        throughput: what was measured, as rows `{"what", "value"}`.
        quarantine: one row for each quarantined video.
        facts: numbers behind `throughput`, by name; empty when nothing was decoded.
        videos: every video of the part that has features, by name.
    """

    version: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    frame_strip: bytes = b""
    strip_table: list[dict[str, str]] = field(default_factory=list)
    hours: float = 0.0
    bytes: int = 0
    frames: int = 0
    new_frames: int = 0
    seconds: float = 0.0
    frames_per_second: float = 0.0
    table: list[dict[str, Any]] = field(default_factory=list)
    throughput: list[dict[str, str]] = field(default_factory=list)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    videos: list[ExtractedVideo] = field(default_factory=list)


def report_extraction(
    existing: list[ExtractedVideo],
    extracted: list[ExtractedVideo],
    quarantined: list[Quarantined],
    coordinator: Coordinator,
    seconds: float,
) -> FeatureReport:
    """The report of an extraction.

    Args:
        existing: the videos whose features were there.
        extracted: the videos whose features were made.
        quarantined: the records of videos without features, new and old.
        coordinator: that did the work.
        seconds: that all of it took.
    """
    files = sorted(existing + extracted)
    by_reason = Counter(record.reason for record in quarantined)
    facts = _measure(coordinator, seconds)
    return FeatureReport(
        version=data_version([[file.video, file.content] for file in files]),
        counts={
            "videos": len(files) + len(quarantined),
            "done": len(extracted),
            "already_done": len(existing),
            "quarantined": len(quarantined),
            "damaged": sum(file.damaged for file in files),
            **{f"quarantined {reason}": count for reason, count in sorted(by_reason.items())},
        },
        frame_strip=coordinator.strip.png(),
        strip_table=coordinator.strip.table(),
        hours=_seconds(files) / 3600,
        bytes=sum(file.bytes for file in files),
        frames=_frames(files),
        new_frames=_frames(extracted),
        seconds=facts.get("wall_s", 0.0),
        frames_per_second=facts.get("end_to_end_fps", 0.0),
        table=[
            _outcome("done", extracted),
            _outcome("already done", existing),
            *(
                {"outcome": f"quarantined: {reason}", "videos": count, "frames": 0, "hours": 0.0}
                for reason, count in sorted(by_reason.items())
            ),
        ],
        throughput=_throughput(facts, coordinator),
        quarantine=[
            {"video": r.video, "reason": r.reason, "detail": r.detail, "attempts": r.attempts}
            for r in quarantined
        ],
        facts=facts,
        videos=files,
    )


def _outcome(outcome: str, files: list[ExtractedVideo]) -> dict[str, Any]:
    """A row of the table of outcomes."""
    hours = round(_seconds(files) / 3600, 3)
    return {"outcome": outcome, "videos": len(files), "frames": _frames(files), "hours": hours}


def _frames(files: Iterable[ExtractedVideo]) -> int:
    return sum(file.frames for file in files)


def _seconds(files: Iterable[ExtractedVideo]) -> float:
    return sum(file.duration for file in files)


def _measure(coordinator: Coordinator, seconds: float) -> dict[str, float]:
    """Numbers of this run's work; empty when there was none."""
    usage, decoders = coordinator.usage, len(coordinator.backends)
    if not usage.frames:
        return {}
    wall = max(usage.finished - usage.started, 1e-9)
    encoded = sum(stats["frames"] for stats in usage.encoders)
    busy = sum(stats["busy_s"] for stats in usage.encoders)
    filled = usage.buffer_used / usage.buffer_samples if usage.buffer_samples else 0.0
    return {
        "wall_s": wall,
        "start_up_s": seconds - wall,
        "end_to_end_fps": encoded / wall,
        "settled_fps": usage.settled_fps(),
        "encoder_fps": encoded / busy if busy else 0.0,
        "encoder_busy": busy / wall / max(1, len(usage.encoders)),
        "decode_busy": usage.decode_busy_s / wall / decoders,
        "nvdec_share": usage.on_gpu / usage.frames,
        "decode_cpu_ms": 1000 * usage.decode_cpu_s / usage.frames,
        "decode_fps_per_worker": usage.frames / usage.decode_busy_s if usage.decode_busy_s else 0.0,
        "buffer_filled": filled / coordinator.buffer.slots,
        "decoder_peak_bytes": usage.decoder_bytes,
        "device_peak_bytes": max(stats["device_bytes"] for stats in usage.encoders),
        "batches": sum(stats["batches"] for stats in usage.encoders),
    }


def _throughput(facts: dict[str, float], coordinator: Coordinator) -> list[dict[str, str]]:
    """The same numbers for people."""
    if not facts:
        return []
    said = coordinator.facts
    rows = {
        "encoder": f"{said['devices']} x {said['device']}, {said['precision']}, "
        f"torch {said['torch']}",
        "decoders": f"{len(coordinator.backends)} processes; {said['isolation']}",
        "frames a second, end to end": f"{facts['end_to_end_fps']:.0f}",
        "frames a second, encoder while busy": f"{facts['encoder_fps']:.0f}",
        "encoder busy": f"{facts['encoder_busy']:.0%}",
        "decoders busy": f"{facts['decode_busy']:.0%}",
        "decoded by NVDEC": f"{facts['nvdec_share']:.0%}",
        "decoding CPU": f"{facts['decode_cpu_ms']:.1f} ms a frame",
        "frames waiting for the encoder": f"{facts['buffer_filled']:.0%} of the frame buffer",
        "most memory of a decoder": f"{facts['decoder_peak_bytes'] / 2**20:.0f} MiB",
        "most memory on a device": f"{facts['device_peak_bytes'] / 2**30:.2f} GiB",
    }
    return [{"what": what, "value": value} for what, value in rows.items()]
