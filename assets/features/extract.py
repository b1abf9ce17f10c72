"""Features of one part: which videos still need them, having them made, and what came of it."""

from __future__ import annotations

import fcntl
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from assets.annotations.catalogue import PresentVideo
from assets.features.coordinator import Coordinator
from assets.features.jobs import ExtractedVideo, FailedVideo
from assets.features.options import FEATURE_FILES, ExtractionOptions, VideoLength
from assets.features.quarantine import Quarantined, read_record, write_record
from assets.features.report import FeatureReport, report_extraction
from assets.records.product_files import KnownFiles, set_files_aside
from model.atomic import TEMPORARY_PREFIX
from model.media.reading import reading
from training.formats import layout
from training.formats.feature_file import SUFFIX, FeatureHeader, hash_both, read_header
from training.formats.hashing import hash_file, hash_value
from training.formats.receipts import Damage, FileEntry
from training.formats.storage import Storage
from training.progress import Progress

if TYPE_CHECKING:
    from assets.deployment.settings import Settings

SAVED_EVERY_S = 30.0  # how often it is written down which files were made and are whole
STALE_S = 60.0  # a temporary file is left alone for so long, even if no process writes to it


def extract_part(
    storage: Storage,
    settings: Settings,
    variant: str,
    videos: Iterable[PresentVideo],
    encoder: Path,
    log: Callable[[str], None],
    name: str,
    length: VideoLength = "long",
) -> FeatureReport:
    """Make the feature files of these videos that are missing or out of date.

    Args:
        storage: where videos are and features go.
        settings: the deployment's; `settings.features.encoder` takes precedence over `encoder`.
        variant: one of the settings'.
        videos: of the part.
        encoder: folder with `config.json` and safetensors of the vision encoder.
        log: takes lines.
        name: of the product, whose receipt says which files are whole.
        length: whether they are long or short videos.

    Raises:
        ValueError: an unknown variant, or a folder that holds no SigLIP encoder.
        RuntimeError: an encoder died (its last words are in the message); what is published stays.
    """
    if variant not in settings.variants:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(settings.variants)}")
    options = ExtractionOptions.of(settings.features, settings.variants[variant].preset, length)
    chosen = Path(settings.features.encoder or encoder)
    folder = FEATURE_FILES[length].folder(variant)
    return extract(storage, options, folder, videos, chosen, log, name=name)


def extract(
    storage: Storage,
    options: ExtractionOptions,
    folder: str,
    videos: Iterable[PresentVideo],
    encoder: Path,
    log: Callable[[str], None],
    backends: Sequence[str] | None = None,
    *,
    name: str = "features",
) -> FeatureReport:
    """Like `extract_part`, with options of its own.

    Args:
        folder: that takes the feature files, below the root.
        backends: the decoder of each decoding process, in place of what the options choose.
    """
    started = time.monotonic()
    videos = sorted({video.video: video for video in videos}.values(), key=lambda v: v.video)
    remove_stale_files(
        storage, {layout.feature_file(folder, video.video).rpartition("/")[0] for video in videos}
    )
    metadata = common_metadata(options, encoder)
    known = KnownFiles(storage, name)
    look = _Look(storage, name, folder, options, metadata, known, log)
    existing, waiting, quarantined = look.sort_out(videos)
    known.save()
    log(
        f"{len(videos):,} videos: {len(existing):,} have features, {len(quarantined):,} are "
        f"quarantined, {len(waiting):,} to do ({sum(v.duration for v, _ in waiting) / 3600:.1f} "
        "hours)"
    )
    for why, count in sorted(Counter(look.outdated).items()):
        log(f"{count:,} feature files are made again: {why}")
    attempts = {video.video: record.attempts for video, record in waiting if record is not None}
    expected = sum(options.expected_frames(video.duration) for video, _ in waiting)

    @cache
    def progress() -> Progress:  # made late: its clock starts with the first picture
        return Progress(log, expected, "frames")

    coordinator = Coordinator(
        storage,
        folder,
        options,
        encoder,
        metadata,
        None if backends is None else list(backends),
        log,
        lambda frames: progress().advance(frames),
    )
    extracted: list[ExtractedVideo] = []
    saved = time.monotonic()
    try:
        for outcome in coordinator.run([video for video, _ in waiting]) if waiting else ():
            if isinstance(outcome, ExtractedVideo):
                extracted.append(outcome)
                known.add(outcome.entry(folder))
                if outcome.video in attempts:
                    storage.remove(layout.feature_quarantine(folder, outcome.video))
            else:
                quarantined.append(_quarantine(storage, folder, options, outcome, attempts, log))
            if time.monotonic() - saved > SAVED_EVERY_S:
                known.save()
                saved = time.monotonic()
    finally:
        known.save()
    seconds = time.monotonic() - started
    return report_extraction(existing, extracted, quarantined, coordinator, seconds)


def reached(
    storage: Storage, variant: str, videos: Iterable[PresentVideo], length: VideoLength = "long"
) -> list[tuple[str, bool]]:
    """How far the features of these videos are: another value as soon as a file is made, or made
    again, or another video is quarantined.
    """
    folder = FEATURE_FILES[length].folder(variant)
    storage.forget_listings()

    def look_up(video: PresentVideo) -> tuple[str, bool]:
        file = layout.feature_file(folder, video.video)
        stamp = storage.stamp(file) if storage.exists(file) else ""
        # No stamp of a record: every run that fails again with the same video writes it anew.
        return stamp, storage.exists(layout.feature_quarantine(folder, video.video))

    with ThreadPoolExecutor(16) as pool:  # remote roots answer slowly, but many at once
        return list(pool.map(look_up, videos))


def common_metadata(options: ExtractionOptions, encoder: Path) -> dict[str, str]:
    """What the header of every feature file of an extraction says.

    Args:
        options: of the extraction.
        encoder: folder of the vision encoder.

    Raises:
        ValueError: there is no encoder in the folder.
    """
    return {
        "encoder": hash_encoder(encoder),
        "config": options.config_hash(),
        "reading": reading(),
        "pooled_side": str(options.pooled_side),
    }


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


def why_outdated(header: FeatureHeader, video: PresentVideo, metadata: dict[str, str]) -> str:
    """Why a feature file is not one of this video's file, made by this encoder in this way; empty
    where it is.

    Args:
        header: of the feature file.
        video: that it should be of.
        metadata: as `common_metadata` gives it.
    """
    facts = header.metadata
    if facts.get("source_sha256") != video.sha256:
        return "made from another file of the video"
    if facts.get("encoder") != metadata["encoder"]:
        return "made by another encoder"
    if facts.get("config") != metadata["config"]:
        return "made with other settings of frames, size or pooling"
    if (before := facts.get("reading", "rules 1")) != metadata["reading"]:
        return f"read in another way ({before}; now {metadata['reading']})"
    return ""


def remove_stale_files(storage: Storage, folders: Iterable[str]) -> None:
    """Remove temporary files that killed runs have left in these folders. Those of living runs are
    locked by their writers and stay.
    """
    if not storage.is_local:
        return
    for folder in folders:
        for path in Path(storage.path(folder)).glob(f"{TEMPORARY_PREFIX}*{SUFFIX}"):
            try:
                with open(path, "rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if time.time() - path.stat().st_mtime > STALE_S:
                        path.unlink()
            except (BlockingIOError, FileNotFoundError):  # in use, or gone meanwhile
                continue


@dataclass(frozen=True, slots=True)
class _Look:
    """A look at what is there of a part before anything is made."""

    storage: Storage
    name: str
    folder: str
    options: ExtractionOptions
    metadata: dict[str, str]
    known: KnownFiles
    log: Callable[[str], None]
    outdated: list[str] = field(default_factory=list)  # why files are there and cannot be used

    def sort_out(
        self, videos: list[PresentVideo]
    ) -> tuple[
        list[ExtractedVideo], list[tuple[PresentVideo, Quarantined | None]], list[Quarantined]
    ]:
        """Three groups: videos whose features are there; videos to do, with the record of an
        earlier failure; records of videos that are not worth another try.
        """

        def look_up(video: PresentVideo) -> tuple[ExtractedVideo | None, Quarantined | None]:
            return self._existing(video), read_record(self.storage, self.folder, video.video)

        with ThreadPoolExecutor(16) as pool:  # remote roots answer slowly, but many at once
            found = list(pool.map(look_up, videos))
        existing: list[ExtractedVideo] = []
        waiting: list[tuple[PresentVideo, Quarantined | None]] = []
        quarantined: list[Quarantined] = []
        for video, (features, record) in zip(videos, found, strict=True):
            decoding = self.options.decode_hash(video.sha256)
            if features is not None:
                existing.append(features)
            elif record is not None and record.final(
                decoding, self.options.settings.limits.attempts
            ):
                quarantined.append(record)
            else:
                waiting.append((video, record))
        return existing, waiting, quarantined

    def _existing(self, video: PresentVideo) -> ExtractedVideo | None:
        """What is there of a video's features, where they are right and whole."""
        path = layout.feature_file(self.folder, video.video)
        header = _read_header(self.storage, path)
        if header is None:
            return None
        if why := why_outdated(header, video, self.metadata):
            self.outdated.append(why)
            return None
        if header.damaged and self.options.settings.damaged == "skip":
            return None
        entry = self.known.entry(path) or self._unrecorded(path, header)
        if entry is None:
            return None
        return ExtractedVideo(
            video.video,
            header.frames,
            header.duration,
            header.damaged,
            header.content,
            header.bytes,
            entry.hash,
        )

    def _unrecorded(self, path: str, header: FeatureHeader) -> FileEntry | None:
        """The entry of a file that no receipt names, because its run was ended: it is read, and
        compared with the hash in its own header. A damaged one is set aside.
        """
        with self.storage.open(path) as file:
            content, digest = hash_both(file)
        if content != header.content:
            damage = Damage(path, "has other content than its header says")
            set_files_aside(self.storage, self.name, [damage], self.log)
            return None
        entry = FileEntry(path, header.bytes, digest)
        self.known.add(entry)
        return entry


def _read_header(storage: Storage, path: str) -> FeatureHeader | None:
    try:
        with storage.open(path) as file:
            return read_header(file, storage.size(path), path)
    except FileNotFoundError:
        return None
    except ValueError:  # of another format, or cut short by something else: made again
        return None


def _quarantine(
    storage: Storage,
    folder: str,
    options: ExtractionOptions,
    failed: FailedVideo,
    attempts: dict[str, int],
    log: Callable[[str], None],
) -> Quarantined:
    """Write down why a video gave no features. An outdated feature file of it is removed.

    Args:
        attempts: earlier runs that failed, by video.
    """
    video = failed.video.video
    record = Quarantined(
        video,
        failed.reason,
        failed.detail,
        attempts.get(video, 0) + 1,
        options.decode_hash(failed.video.sha256),
        failed.stderr,
    )
    write_record(storage, folder, record)
    storage.remove(layout.feature_file(folder, video))
    log(f"{video}: quarantined, {failed.reason} ({failed.detail})")
    return record
