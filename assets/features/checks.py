"""Whether every video of a part has the features that training will ask for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from assets.annotations.catalogue import PresentVideo
from assets.deployment.settings import Settings
from assets.features.extract import common_metadata, why_outdated
from assets.features.options import FEATURE_FILES, ExtractionOptions, VideoLength
from assets.features.quarantine import read_record
from assets.records.verdict import Verdict
from model.media.sampling import feature_frame_count
from training.formats import layout
from training.formats.feature_file import HEADER_ROOM, FeatureHeader, read_header
from training.formats.hashing import stable_hash
from training.formats.storage import Storage

COMPLETE, NONE_QUARANTINED = "complete", "none_quarantined"
SAMPLED_FILES = 64  # files of which some frames are read; the headers of all are
SAMPLED_FRAMES = 8  # frames that are read of each
TOLERANCE = 0.02  # of a video's seconds, for telling that the catalogue has another length
MAX_NAMED = 10  # videos that a verdict names

EXPONENT_BITS = 0x7F80  # of a bfloat16; all of them are set where it is infinite or not a number


def complete(
    storage: Storage,
    settings: Settings,
    variant: str,
    present: Sequence[PresentVideo],
    encoder: Path,
    length: VideoLength = "long",
) -> list[Verdict]:
    """Whether every video has a whole feature file, made from its file by this encoder, or a record
    why not.

    Frames must be as many as the rule makes of the video's pictures and seconds. Of a bounded
    number of files, always the same, some frames are read: no number in them may be infinite, and
    not all may be alike.

    Args:
        storage: where features are.
        settings: the deployment's.
        variant: whose features are looked at.
        present: the videos of the part that are there.
        encoder: folder of the variant's vision encoder; the settings' own takes precedence, as in
            `extract_part`.
        length: whether they are long or short videos.

    Returns:
        That verdict, and a second one about the videos with a record.
    """
    options = ExtractionOptions.of(settings.features, settings.variants[variant].preset, length)
    folder = FEATURE_FILES[length].folder(variant)
    metadata = common_metadata(options, Path(settings.features.encoder or encoder))
    by_hash = sorted(present, key=lambda video: stable_hash("opened", video.video))
    sampled = {video.video for video in by_hash[:SAMPLED_FILES]}

    def inspect(video: PresentVideo) -> FileFinding:
        return _inspect(storage, folder, video, options, metadata, video.video in sampled)

    with ThreadPoolExecutor(16) as pool:  # remote roots answer slowly, but many at once
        findings = list(pool.map(inspect, present))
    faults = [
        f"{video.video}: {finding.fault}"
        for video, finding in zip(present, findings, strict=True)
        if finding.fault
    ]
    reasons = Counter(finding.quarantined for finding in findings if finding.quarantined)
    facts = {
        "videos": len(present),
        "whole": len(present) - reasons.total() - len(faults),
        "quarantined": [
            {"reason": reason, "videos": count} for reason, count in reasons.most_common()
        ],
        "files of which frames were read": len(sampled),
        "of another length than the catalogue says": sum(one.remeasured for one in findings),
    }
    return [
        _judge_files(settings, len(present), faults, reasons.total(), facts),
        _judge_quarantined(len(present), reasons),
    ]


class FileFinding(NamedTuple):
    """What was found of one video; nothing is set where its feature file is sound.

    Attributes:
        fault: what is wrong with the file, for people.
        quarantined: the reason in the record that stands in its place.
        remeasured: its timeline is of another length than the catalogue says, which an earlier
            release may have measured by another clock. It is told, and stops nothing.
    """

    fault: str = ""
    quarantined: str = ""
    remeasured: bool = False


def _judge_files(
    settings: Settings, videos: int, faults: list[str], quarantined: int, facts: dict[str, Any]
) -> Verdict:
    allowed = settings.shards.max_drop_share
    if faults:
        message = (
            f"{len(faults):,} of {videos:,} videos lack sound features: "
            f"{'; '.join(faults[:MAX_NAMED])}. Materialize this part again"
        )
    elif quarantined > allowed * videos:
        message = (
            f"{quarantined:,} of {videos:,} videos are quarantined; shards.max_drop_share allows "
            f"{allowed:g}. Their records say why"
        )
    else:
        message = f"{videos - quarantined:,} of {videos:,} videos have sound features"
        return Verdict(COMPLETE, message, facts=facts)
    return Verdict(COMPLETE, message, passed=False, facts=facts)


def _judge_quarantined(videos: int, reasons: Counter[str]) -> Verdict:
    if not reasons:
        return Verdict(NONE_QUARANTINED, f"none of {videos:,} videos", blocking=False)
    counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    message = (
        f"{reasons.total():,} of {videos:,} videos are quarantined: {counts}. Training leaves "
        "them out"
    )
    return Verdict(NONE_QUARANTINED, message, passed=False, blocking=False)


def _inspect(
    storage: Storage,
    folder: str,
    video: PresentVideo,
    options: ExtractionOptions,
    metadata: dict[str, str],
    read_frames: bool,
) -> FileFinding:
    path = layout.feature_file(folder, video.video)
    if not storage.exists(path):
        record = read_record(storage, folder, video.video)
        if record is None:
            return FileFinding(fault=f"{path} is not there")
        return FileFinding(quarantined=record.reason)
    try:
        with storage.open(path) as file:
            header = read_header(file, storage.size(path), path)
    except ValueError as error:
        return FileFinding(fault=str(error))
    if why := why_outdated(header, video, metadata):
        return FileFinding(fault=f"was {why}")
    # By the timeline that the extraction read from the same bytes, and not by what the catalogue
    # says: an earlier release may have measured that by another clock.
    pictures = int(header.metadata.get("pictures", header.frames))
    if options.sampling == "one a second":
        least = most = feature_frame_count(pictures, header.duration, min_frames=options.min_frames)
    else:  # every so many-th picture, which the frame rate decides
        least, most = min(pictures, options.min_frames), pictures
    if not least <= header.frames <= most:
        makes = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        return FileFinding(
            fault=f"{header.frames:,} frames, but {pictures:,} pictures in {header.duration:.1f} s "
            f"make {makes}"
        )
    # Of a short video nobody has said how long it is.
    apart = abs(header.duration - video.duration) if video.duration else 0.0
    return FileFinding(
        fault=_wrong_numbers(storage, path, header) if read_frames else "",
        remeasured=apart > max(1.0, TOLERANCE * header.duration),
    )


def _wrong_numbers(storage: Storage, path: str, header: FeatureHeader) -> str:
    """What is wrong with the numbers of some frames, if anything is. They are bfloat16, looked at
    as bits.
    """
    values = header.tokens * header.width
    frames = {i * header.frames // SAMPLED_FRAMES for i in range(SAMPLED_FRAMES)}
    with storage.open(path) as file:
        for frame in sorted(frames):
            file.seek(HEADER_ROOM + frame * values * 2)
            bits = np.frombuffer(file.read(values * 2), np.uint16)
            if ((bits & EXPONENT_BITS) == EXPONENT_BITS).any():
                return f"frame {frame} holds numbers that are not finite"
            if (bits == bits[0]).all():
                return f"all numbers of frame {frame} are the same"
    return ""
