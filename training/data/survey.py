"""What of a run's data cannot be used, found out before the first step.

A missing feature file is known as soon as somebody looks. Found in the middle of a stage it would
cost a day; so all samples' videos are looked up at the start, in one listing of each folder, and
what will be left out is told then. Ranks share the shards; rank 0 looks into the folders.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from training.data.shard_index import Gather, ShardIndex
from training.formats.feature_file import HEADER_ROOM, SUFFIX, read_header
from training.formats.file_cache import DamagedFileError
from training.formats.kinds import LONG_VIDEO_KIND
from training.formats.layout import QUARANTINE_SUFFIX
from training.formats.machine_faults import wait_out
from training.formats.storage import Storage
from training.run_config import RunConfig

log = logging.getLogger(__name__)

THREADS = 16
NAMED = 3  # files that a line names for each reason
PROBES = 3  # files that are asked for by name where a folder cannot be listed

Losses = Mapping[str, tuple[str, str]]  # video -> (reason, detail)
Uses = Counter[tuple[str, str]]  # (kind, video) -> samples

_MEND = {
    "damaged shard": "materialize these parts again",
    "features missing": "materialize features, or short_video_features, of their parts",
    "features damaged": "materialize features, or short_video_features, of their parts again",
    "video missing": "materialize llava_video again",
    "video unreadable": "materialize llava_video again",
}


@dataclass(frozen=True, slots=True)
class KnownLosses:
    """What will be left out of training.

    Attributes:
        samples: of all shards.
        videos: those that cannot be used.
        counts: samples that are lost, by reason.
        examples: some of what is at fault, by reason.
    """

    samples: int
    videos: Losses
    counts: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]]

    @property
    def share(self) -> float:
        """Of all samples."""
        return sum(self.counts.values()) / max(self.samples, 1)

    def refuse_above(self, limit: float) -> None:
        """Stop where more is lost than allowed.

        Raises:
            ValueError: it names what is at fault, and what to do.
        """
        if self.share > limit:
            raise ValueError(
                f"before training: {self}. That is more than max_dropped_share ({limit:g}) allows, "
                "so nothing was trained. Mend them and start again, or accept the loss with a "
                "larger max_dropped_share"
            )

    def table(self) -> str:
        """What will be left out, as a table for the log."""
        rows = [
            (
                reason,
                f"{count:,}",
                f"{count / max(self.samples, 1):.3%}",
                *self.examples[reason][:1],
            )
            for reason, count in self.counts.items()
        ]
        heads = ("reason", "samples", "share", "for example")
        widths = [max(len(row[place]) for row in (heads, *rows)) for place in range(len(heads))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in (heads, *rows)
        ]
        return "\n".join(["these samples will be left out:", *(line.rstrip() for line in lines)])

    def __str__(self) -> str:
        lost = sum(self.counts.values())
        lines = [
            f"{reason}: {count:,} samples ({', '.join(self.examples[reason])}): {_MEND[reason]}"
            for reason, count in self.counts.items()
        ]
        return (
            f"{lost:,} of {self.samples:,} samples ({self.share:.2%}) cannot be used: "
            f"{'; '.join(lines)}"
        )


def find_losses(
    run: RunConfig, index: ShardIndex, rank: int, world_size: int, gather: Gather | None
) -> KnownLosses:
    """Look up what all samples of a verified index need. All ranks have to call it together, and
    get the same.

    Remote shards of videos are fetched for it, so those that are damaged are found, too, and added
    to `index.damaged`.

    Raises:
        MachineFault: a disk or store did not answer for `machine_wait_s`.
    """
    everything = range(len(index.shards))
    mine = everything[rank::world_size] if gather else everything
    look = partial(_video_uses, run, index, mine)
    together: Uses = Counter()
    for part, faults in gather(look) if gather else [look()]:
        together.update(part)
        index.damaged.update(faults)
    look_up = partial(_lost_videos, run, together if rank == 0 or not gather else Counter())
    lost = (gather(look_up) if gather else [look_up()])[0]

    counts: Counter[str] = Counter()
    examples: defaultdict[str, list[str]] = defaultdict(list)
    for number, fault in sorted(index.damaged.items()):
        counts["damaged shard"] += index.shards[number].samples
        examples["damaged shard"].append(fault)
    for (_, video), samples in sorted(together.items()):
        if video in lost:
            reason, detail = lost[video]
            counts[reason] += samples
            examples[reason].append(f"{video}: {detail}" if detail else video)
    return KnownLosses(
        len(index), lost, dict(sorted(counts.items())), {r: _some(n) for r, n in examples.items()}
    )


def _some(names: list[str]) -> tuple[str, ...]:
    more = len(names) - NAMED
    return (*names[:NAMED], f"and {more:,} more") if more > 0 else tuple(names)


def _video_uses(
    run: RunConfig, index: ShardIndex, numbers: Iterable[int]
) -> tuple[Uses, dict[int, str]]:
    """How many samples need each video, and the shards that turned out damaged."""
    chosen = [
        number
        for number in numbers
        if number not in index.damaged and index.shards[number].may_hold_videos
    ]
    uses: Uses = Counter()
    damaged: dict[int, str] = {}

    def read(number: int) -> Uses | str:
        return wait_out(partial(_uses_of_shard, index, number), run.machine_wait_s)

    with ThreadPoolExecutor(THREADS) as pool:
        for number, found in zip(chosen, pool.map(read, chosen), strict=True):
            if isinstance(found, str):
                damaged[number] = found
            else:
                uses.update(found)
    return uses, damaged


def _uses_of_shard(index: ShardIndex, number: int) -> Uses | str:
    """The videos of one shard, or what is wrong with it."""
    shard = index.shards[number]
    try:
        columns = index.columns(number)
        kinds, videos = columns.counts("kind"), columns.counts("video")
        # Of others, or not all is read.
        if len(kinds) > 1 or shard.samples < index.readers[number].samples:
            named = zip(columns.text("kind"), columns.text("video"), strict=True)
            pairs = Counter(islice(named, shard.samples))
        else:
            pairs = Counter({(next(iter(kinds)), video): n for video, n in videos.items()})
    except FileNotFoundError as error:
        return f"{shard.rel}: {error}"
    except (DamagedFileError, ValueError) as error:
        return str(error)
    return Counter({(kind, video): count for (kind, video), count in pairs.items() if video})


def _lost_videos(run: RunConfig, uses: Uses) -> dict[str, tuple[str, str]]:
    """The videos that cannot be used, and why."""
    long = sorted(video for kind, video in uses if kind == LONG_VIDEO_KIND)
    short = sorted(video for kind, video in uses if kind != LONG_VIDEO_KIND)
    lost: dict[str, tuple[str, str]] = {}
    if long:
        lost.update(_in_folder("features_root", "features", long, run, _features_fault))
    if short and run.short_video_features_root:
        found = _in_folder("short_video_features_root", "features", short, run, _features_fault)
        lost.update(found)
    elif short:
        lost.update(_in_folder("videos_root", "video", short, run, _video_fault))
    return lost


def _in_folder(
    key: str,
    what: str,
    videos: list[str],
    run: RunConfig,
    fault: Callable[[Storage, dict[str, int | None], str], tuple[str, str] | None],
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Each video that cannot be used, and why, by one listing of the folder that holds them all.

    Args:
        key: of the run, that names the folder.
        what: "features" or "video", as reasons begin.
        fault: tells it of one video, from the files there with their sizes.
    """
    missing, root = f"{what} missing", getattr(run, key)
    if not root:
        return ((video, (missing, f"the run's {key} is empty")) for video in videos)
    storage = Storage(root)
    try:
        sizes = wait_out(storage.sizes, run.machine_wait_s)
    except FileNotFoundError:  # a store over HTTP that lists no folders
        sizes = {}
    largest = max((size or 0 for size in sizes.values()), default=0)
    limit, room = (
        ("features_cache_bytes", run.features_cache_bytes)
        if what == "features"
        else ("shard_cache_bytes", run.shard_cache_bytes)
    )
    if not storage.is_local and largest > room:
        raise ValueError(
            f"{limit} is {room:,}, but a file in {root} has {largest:,}; set it to several times "
            "that"
        )
    if not sizes:
        if storage.is_local and not Path(storage.root).is_dir():
            return ((video, (missing, f"{root} is not there")) for video in videos)
        suffix = SUFFIX if what == "features" else ""
        for video in videos[:PROBES]:
            if wait_out(partial(storage.exists, video + suffix), run.machine_wait_s):
                log.warning("%s cannot be listed: what is missing is noticed in training", root)
                return iter(())
    with ThreadPoolExecutor(THREADS) as pool:
        faults = pool.map(
            lambda video: wait_out(lambda: fault(storage, sizes, video), run.machine_wait_s), videos
        )
        found = [(video, why) for video, why in zip(videos, faults, strict=True) if why]
    return iter(found)


def _features_fault(
    storage: Storage, sizes: dict[str, int | None], video: str
) -> tuple[str, str] | None:
    name = video + SUFFIX
    if name not in sizes:
        set_aside = video + QUARANTINE_SUFFIX in sizes
        return "features missing", "quarantined by the extraction" if set_aside else ""
    if not storage.is_local:  # a header of each would be as many requests
        size = sizes[name]
        small = size is not None and size <= HEADER_ROOM
        return ("features damaged", f"{size:,} bytes") if small else None
    try:
        read_header(Path(storage.path(name)))
    except ValueError as error:
        return "features damaged", str(error)
    return None


def _video_fault(
    storage: Storage, sizes: dict[str, int | None], video: str
) -> tuple[str, str] | None:
    if video not in sizes:
        return "video missing", ""
    return ("video unreadable", "0 bytes") if sizes[video] == 0 else None
