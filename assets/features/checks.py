"""Whether every video of a part has the features that training will ask for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from assets.annotations.catalogue import PresentVideo
from assets.deployment.settings import Settings
from assets.features.extract import hash_encoder, is_current
from assets.features.jobs import Video
from assets.features.options import Options
from assets.features.quarantine import read_record
from assets.records.verdict import Verdict
from training.formats.feature_file import HEADER_ROOM, FeatureHeader, feature_path, read_header
from training.formats.hashing import stable_hash
from training.formats.storage import Storage

COMPLETE, NONE_QUARANTINED = "complete", "none_quarantined"
OPENED = 64  # files of which some frames are read; the headers of all are
FRAMES = 8  # frames that are read of each
SLACK = 0.02  # of a video's frames: containers and frame rates are not exact to the second
NAMED = 10


def complete(
    storage: Storage,
    settings: Settings,
    variant: str,
    present: Sequence[PresentVideo],
    encoder: Path,
) -> list[Verdict]:
    """Every video has a whole feature file, made from these very bytes by this very encoder, or a
    record why not.

    A second verdict tells of the ones with a record.

    Frames must fit the duration. Of a bounded number of files, always the same, some frames are
    read: no number in them may be infinite, and not all may be alike.

    Args:
        present: the videos of the part that are there.
        encoder: folder of the variant's vision encoder; the settings' own takes precedence, as in
            ``extract_part``.
    """
    videos = list(present)
    options = Options.of(settings.features, variant)
    metadata = {
        "encoder": hash_encoder(Path(settings.features.encoder or encoder)),
        "config": options.config_hash(),
    }
    opened = {
        video.video
        for video in sorted(videos, key=lambda v: stable_hash("opened", v.video))[:OPENED]
    }

    def look(video: PresentVideo) -> tuple[str, str]:
        return _look(storage, variant, video, options, metadata, video.video in opened)

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(look, videos))
    faults = [
        f"{video.video}: {detail}"
        for video, (kind, detail) in zip(videos, found, strict=True)
        if kind == "bad"
    ]
    reasons = Counter(detail for kind, detail in found if kind == "quarantined")
    lost = sum(reasons.values())
    facts = {
        "videos": len(videos),
        "whole": len(videos) - lost - len(faults),
        "quarantined": [
            {"reason": reason, "videos": count} for reason, count in reasons.most_common()
        ],
        "files of which frames were read": len(opened),
    }
    return [
        _complete(settings, len(videos), faults, lost, facts),
        _none_quarantined(len(videos), reasons),
    ]


def _complete(
    settings: Settings, videos: int, faults: list[str], lost: int, facts: dict[str, Any]
) -> Verdict:
    if faults:
        says = f"{len(faults):,} of {videos:,} videos lack sound features: {'; '.join(faults[:NAMED])}. "
        return Verdict(COMPLETE, f"{says}Materialize this part again", passed=False, facts=facts)
    if lost > (most := settings.shards.max_drop_share) * videos:
        says = f"{lost:,} of {videos:,} videos are quarantined; shards.max_drop_share allows {most:g}. Their records "
        return Verdict(COMPLETE, f"{says}say why", passed=False, facts=facts)
    return Verdict(
        COMPLETE, f"{videos - lost:,} of {videos:,} videos have sound features", facts=facts
    )


def _none_quarantined(videos: int, reasons: Counter[str]) -> Verdict:
    if not reasons:
        return Verdict(NONE_QUARANTINED, f"none of {videos:,} videos", blocking=False)
    told = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    says = f"{reasons.total():,} of {videos:,} videos are quarantined: {told}. Training leaves them out"
    return Verdict(NONE_QUARANTINED, says, passed=False, blocking=False)


def _look(
    storage: Storage,
    variant: str,
    video: PresentVideo,
    options: Options,
    metadata: dict[str, str],
    read: bool,
) -> tuple[str, str]:
    """("whole", ""), ("quarantined", why) or ("bad", what is wrong)."""
    name = feature_path(variant, video.video)
    if not storage.exists(name):
        record = read_record(storage, variant, video.video)
        return ("quarantined", record.reason) if record else ("bad", f"{name} is not there")
    try:
        with storage.open(name) as file:
            header = read_header(file, storage.size(name), name)
    except ValueError as error:
        return "bad", str(error)
    if not is_current(
        header, Video(video.video, video.duration, video.sha256, video.rel), metadata
    ):
        return "bad", "was made from another video, by another encoder or in another way"
    expected = min(options.expected_frames(video.duration), video.packets or header.frames)
    if abs(header.frames - expected) > max(2, SLACK * expected):
        return (
            "bad",
            (
                f"{header.frames:,} frames, but {video.duration:.1f} s of video make about "
                f"{expected:,}"
            ),
        )
    if read and (wrong := _insane(storage, name, header)):
        return "bad", wrong
    return "whole", ""


def _insane(storage: Storage, name: str, header: FeatureHeader) -> str | None:
    """What is wrong with some frames of a file, if anything is; they are bfloat16, looked at as
    bits.
    """
    values = header.tokens * header.width
    with storage.open(name) as file:
        for frame in sorted({place * header.frames // FRAMES for place in range(FRAMES)}):
            file.seek(HEADER_ROOM + frame * values * 2)
            bits = np.frombuffer(file.read(values * 2), np.uint16)
            if ((bits & 0x7F80) == 0x7F80).any():
                return f"frame {frame} holds numbers that are not finite"
            if (bits == bits[0]).all():
                return f"all numbers of frame {frame} are the same"
    return None
