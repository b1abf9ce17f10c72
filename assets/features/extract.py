"""Features of one part: which videos still need them, having them made, and what came of it."""

from __future__ import annotations

import fcntl
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.features.decoders import DECORD, NVDEC, PYAV
from assets.features.jobs import Failure, Success, Usage, Video
from assets.features.options import Options
from assets.features.pool import Pool
from assets.features.quarantine import Quarantined, read_record, record_path, write_record
from model.atomic import TEMPORARY_PREFIX
from model.config import PRESETS
from training.formats import layout
from training.formats.feature_file import SUFFIX, FeatureHeader, feature_path, read_header
from training.formats.hashing import data_version, hash_file, hash_value
from training.formats.storage import Storage
from training.progress import Progress

if TYPE_CHECKING:
    from assets.deployment.settings import Settings

STALE_S = 60.0  # a temporary file is left alone for this long, however dead it looks


@dataclass(slots=True)
class FeatureReport:
    """What an extraction did.

    Attributes:
        version: content hash of the part's feature files.
        counts: videos, done, already_done, quarantined, damaged; and ``quarantined <reason>`` for
            each reason.
        hours, bytes, frames: of all features of the part, new and old.
        new_frames, seconds, frames_per_second: of this run's encoding.
        table: one row for each outcome.
        throughput: what was measured, as rows ``{"what", "value"}``.
        quarantine: one row for each quarantined video.
        frame_strip: PNG of pictures as the encoder saw them; empty when none was decoded.
        facts: numbers behind ``throughput``, by name.
    """

    version: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    frame_strip: bytes = b""
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


def extract_part(
    storage: Storage,
    settings: Settings,
    variant: str,
    rows: Iterable[tuple[str, float, str, str]],
    encoder_dir: Path,
    log: Callable[[str], None],
) -> FeatureReport:
    """Make the feature files of the given videos that are not there yet, or are no longer right.

    Args:
        settings: the deployment's; ``settings.features.encoder`` takes precedence over
            ``encoder_dir``.
        variant: tiny, 3b or 7b.
        rows: ``(video "<source>/<id>", seconds, sha256, path of the file below the root)``.
        encoder_dir: folder with ``config.json`` and safetensors of the vision encoder.
        log: takes progress lines.

    Raises:
        ValueError: an unknown variant, or a folder that holds no SigLIP encoder.
        RuntimeError: an encoder died (its last words are in the message); what is published stays.
    """
    if variant not in PRESETS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(PRESETS)}")
    options = Options.of(settings.features, variant)
    return extract(
        storage, options, variant, rows, Path(settings.features.encoder or encoder_dir), log
    )


def extract(
    storage: Storage,
    options: Options,
    variant: str,
    rows: Iterable[tuple[str, float, str, str]],
    encoder: Path,
    log: Callable[[str], None],
    backends: Sequence[str] | None = None,
) -> FeatureReport:
    """:func:`extract_part` with its settings spelled out; ``backends`` names each worker's decoder."""
    videos = sorted({row[0]: Video(*row) for row in rows}.values())
    started = time.monotonic()
    sweep(storage, variant, {video.video.split("/")[0] for video in videos})
    metadata = {
        "encoder": hash_encoder(encoder),
        "config": options.config_hash(),
        "pooled_side": str(options.pooled_side),
    }
    done, waiting, quarantined = _sort_out(storage, variant, options, videos, metadata)
    log(
        f"{len(videos):,} videos: {len(done):,} have features, {len(quarantined):,} are "
        f"quarantined, {len(waiting):,} to do ({sum(v.duration for v, _ in waiting) / 3600:.1f} "
        "hours)"
    )
    attempts = {video.video: record.attempts for video, record in waiting if record is not None}
    expected = sum(options.expected_frames(video.duration) for video, _ in waiting)
    progress = cache(
        lambda: Progress(log, expected, "frames")
    )  # its clock starts with the first frame
    made: list[Success] = []
    decoders = list(backends or _backends(options, log))
    pool = Pool(
        storage, variant, options, encoder, metadata, decoders, log, lambda n: progress().advance(n)
    )
    if waiting:
        for outcome in pool.run([video for video, _ in waiting]):
            if isinstance(outcome, Success):
                made.append(outcome)
                if outcome.video.video in attempts:
                    storage.remove(record_path(variant, outcome.video.video))
            else:
                quarantined.append(_quarantine(storage, variant, options, outcome, attempts, log))
    return _report(videos, done, made, quarantined, pool, time.monotonic() - started)


def hash_encoder(folder: Path) -> str:
    """Content hash of a vision encoder: of its configuration and its tensors.

    Raises:
        ValueError: there is none in the folder.
    """
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if len(files) < 2 or not files[0].exists():
        raise ValueError(
            f"{folder}: no vision encoder (config.json and *.safetensors); materialize "
            "vision_encoder"
        )
    return hash_value([[file.name, hash_file(file)] for file in files])


def is_current(header: FeatureHeader, video: Video, metadata: dict[str, str]) -> bool:
    """Whether a feature file was made from this very video by this very encoder and configuration."""
    facts = header.metadata
    return facts.get("source_sha256") == video.sha256 and all(
        facts.get(name) == metadata[name] for name in ("encoder", "config")
    )


def sweep(storage: Storage, variant: str, sources: Iterable[str]) -> None:
    """Remove temporary files that killed runs have left; those of living runs are locked by their
    writers.
    """
    if not storage.is_local:
        return
    for source in sources:
        folder = Path(storage.path(layout.features(variant, source)))
        for path in folder.glob(f"{TEMPORARY_PREFIX}*{SUFFIX}"):
            try:
                with open(path, "rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if time.time() - path.stat().st_mtime > STALE_S:
                        path.unlink()
            except (BlockingIOError, FileNotFoundError):  # in use, or gone by itself
                continue


def _backends(options: Options, log: Callable[[str], None]) -> list[str]:
    """The decoder of each worker. Pixels are the same whichever it is, so a video may go to any of
    them.

    Planned PyAV is what "auto" means: it was right on every clip tried and is the cheapest on CPUs.
    There is no falling back from it to decord, which needs PyAV's timeline and does not tell of
    damage.
    """
    workers = options.decode_workers
    if options.decoder == "decord":
        return [DECORD] * workers
    if options.decoder == "nvdec":
        if find_spec("PyNvVideoCodec"):
            engines = max(1, workers // 3)  # the others keep the CPU's cores busy beside it
            return [NVDEC] * engines + [PYAV] * (workers - engines)
        log(
            "settings say features.decoder: nvdec, but PyNvVideoCodec is not installed; decoding "
            "with PyAV"
        )
    return [PYAV] * workers


def _sort_out(
    storage: Storage, variant: str, options: Options, videos: list[Video], metadata: dict[str, str]
) -> tuple[dict[str, FeatureHeader], list[tuple[Video, Quarantined | None]], list[Quarantined]]:
    """Videos that have features, those to do (with the record of an earlier failure), and those not
    worth a try.
    """

    def look(video: Video) -> tuple[FeatureHeader | None, Quarantined | None]:
        return _existing(storage, variant, video), read_record(storage, variant, video.video)

    with ThreadPoolExecutor(16) as pool:  # remote roots answer slowly, but many at once
        found = list(pool.map(look, videos))
    done: dict[str, FeatureHeader] = {}
    waiting: list[tuple[Video, Quarantined | None]] = []
    quarantined: list[Quarantined] = []
    for video, (header, record) in zip(videos, found, strict=True):
        decoding = options.decode_hash(video.sha256)
        refused = header is not None and header.damaged and options.damaged == "skip"
        if header is not None and is_current(header, video, metadata) and not refused:
            done[video.video] = header
        elif record is not None and record.final(decoding, options.limits.attempts):
            quarantined.append(record)
        else:
            waiting.append((video, record))
    return done, waiting, quarantined


def _existing(storage: Storage, variant: str, video: Video) -> FeatureHeader | None:
    rel = feature_path(variant, video.video)
    try:
        with storage.open(rel) as file:
            return read_header(file, storage.size(rel), rel)
    except FileNotFoundError:
        return None
    except ValueError:  # another format, or cut short by something that is not us: made again
        return None


def _quarantine(
    storage: Storage,
    variant: str,
    options: Options,
    failure: Failure,
    attempts: dict[str, int],
    log: Callable[[str], None],
) -> Quarantined:
    """Write down why a video gave no features; an outdated feature file of it does not stay."""
    name = failure.video.video
    record = Quarantined(
        name,
        failure.reason,
        failure.detail,
        attempts.get(name, 0) + 1,
        options.decode_hash(failure.video.sha256),
        failure.stderr,
    )
    write_record(storage, variant, record)
    storage.remove(feature_path(variant, name))
    log(f"{name}: quarantined, {failure.reason} ({failure.detail})")
    return record


def _report(
    videos: list[Video],
    done: dict[str, FeatureHeader],
    made: list[Success],
    quarantined: list[Quarantined],
    pool: Pool,
    seconds: float,
) -> FeatureReport:
    old = [(name, h.frames, h.duration, h.damaged, h.content, h.bytes) for name, h in done.items()]
    new = [(s.video.video, s.frames, s.duration, s.damaged, s.content, s.bytes) for s in made]
    files = sorted(old + new)
    by_reason = Counter(record.reason for record in quarantined)
    counts = {
        "videos": len(videos),
        "done": len(made),
        "already_done": len(done),
        "quarantined": len(quarantined),
        "damaged": sum(damaged for _, _, _, damaged, _, _ in files),
        **{f"quarantined {reason}": count for reason, count in sorted(by_reason.items())},
    }
    table = [
        _row("done", new),
        _row("already done", old),
        *(
            {"outcome": f"quarantined: {r}", "videos": n, "frames": 0, "hours": 0.0}
            for r, n in sorted(by_reason.items())
        ),
    ]
    usage = pool.usage
    facts = _facts(usage, pool, seconds)
    return FeatureReport(
        version=data_version([[name, content] for name, _, _, _, content, _ in files]),
        counts=counts,
        hours=sum(duration for _, _, duration, _, _, _ in files) / 3600,
        bytes=sum(size for *_, size in files),
        frames=sum(frames for _, frames, *_ in files),
        new_frames=sum(s.frames for s in made),
        seconds=facts.get("wall_s", 0.0),
        frames_per_second=facts.get("end_to_end_fps", 0.0),
        table=table,
        throughput=_throughput(facts, pool),
        quarantine=[
            {"video": r.video, "reason": r.reason, "detail": r.detail, "attempts": r.attempts}
            for r in quarantined
        ],
        frame_strip=pool.strip.png(),
        facts=facts,
    )


def _row(outcome: str, files: list[Any]) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "videos": len(files),
        "frames": sum(frames for _, frames, *_ in files),
        "hours": round(sum(duration for _, _, duration, *_ in files) / 3600, 3),
    }


def _facts(usage: Usage, pool: Pool, seconds: float) -> dict[str, float]:
    """Numbers of this run's work; empty when there was none."""
    if not usage.frames:
        return {}
    wall = max(usage.finished - usage.started, 1e-9)
    encoded = sum(stats["frames"] for stats in usage.encoders)
    busy = sum(stats["busy_s"] for stats in usage.encoders)
    return {
        "wall_s": wall,
        "start_up_s": seconds - wall,
        "end_to_end_fps": encoded / wall,
        "encoder_fps": encoded / busy if busy else 0.0,
        "encoder_busy": busy / wall / max(1, len(usage.encoders)),
        "decode_busy": usage.decode_busy_s / wall / len(pool.backends),
        "decode_cpu_ms": 1000 * usage.decode_cpu_s / usage.frames,
        "decode_fps_per_worker": usage.frames / usage.decode_busy_s if usage.decode_busy_s else 0.0,
        "ring_filled": usage.ring_used / usage.ring_samples / pool.ring.slots
        if usage.ring_samples
        else 0.0,
        "worker_peak_bytes": usage.worker_bytes,
        "device_peak_bytes": max(stats["device_bytes"] for stats in usage.encoders),
        "batches": sum(stats["batches"] for stats in usage.encoders),
    }


def _throughput(facts: dict[str, float], pool: Pool) -> list[dict[str, str]]:
    if not facts:
        return []
    device = pool.facts
    rows = {
        "encoder": f"{device['devices']} x {device['device']}, {device['precision']}, torch {device['torch']}",
        "decoders": f"{len(pool.backends)} processes; {device['isolation']}",
        "frames a second, end to end": f"{facts['end_to_end_fps']:.0f}",
        "frames a second, encoder while busy": f"{facts['encoder_fps']:.0f}",
        "encoder busy": f"{facts['encoder_busy']:.0%}",
        "decoders busy": f"{facts['decode_busy']:.0%}",
        "decoding CPU": f"{facts['decode_cpu_ms']:.1f} ms a frame",
        "frames waiting for the encoder": f"{facts['ring_filled']:.0%} of the ring",
        "most memory of a decoder": f"{facts['worker_peak_bytes'] / 2**20:.0f} MiB",
        "most memory on a device": f"{facts['device_peak_bytes'] / 2**30:.2f} GiB",
    }
    return [{"what": what, "value": value} for what, value in rows.items()]
