"""Withdrawing one long video: it leaves every product, and is never fetched again.

This is the one place where data are deleted on purpose: a takedown request asks for it. The order
makes it safe to be killed at any moment and begun again:

1. `withdrawals.json` says that the video is withdrawn: from now on nothing fetches or uses it.
2. A record says what is about to be removed, with sizes and hashes, and what must be made again.
3. The files are removed, and the catalogue says why.
4. Whoever called has the products made again that hold rows about it, then the record is finished.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq

from assets.annotations.catalogue import Catalogue, snapshot_name
from assets.captions.tables import VIDEOS
from assets.deployment.settings import Settings
from assets.evaluation.questions import read_questions
from assets.records.lineage import Lineage, is_recorded, product, record_name, split_product
from assets.records.withdrawals import Withdrawal, Withdrawals, active_parts, record_withdrawn
from assets.sources.base import PERMANENT, composed
from assets.sources.drop import DropSource
from assets.tracing.holdings import (
    Holdings,
    find_holdings,
    leftovers,
    question_files,
    set_aside_copies,
)
from model.atomic import remove_unfinished
from training.formats import layout
from training.formats.hashing import hash_file
from training.formats.kinds import LONG_VIDEO_KIND
from training.formats.receipts import describe_files
from training.formats.storage import Storage

WITHDRAWN = "withdrawn"  # the reason in the catalogue
# What is made again, in this order, where it holds the video.
REBUILT = (
    "annotations", "catalogue", "videos", "conversations", "features", "videomarathon_json",
    "held_out_questions",
    LONG_VIDEO_KIND, layout.MIXTURE,
)  # fmt: skip


@dataclass(frozen=True, slots=True, order=True)
class Removed:
    """One file that is gone.

    Attributes:
        path: below the root, or the whole path of a copy outside of it.
        bytes: its size; sha256: of its content.
    """

    path: str
    bytes: int
    sha256: str


@dataclass(slots=True)
class Removal:
    """The record of a withdrawal, kept for whoever asks later.

    Attributes:
        video: `source/id`.
        reason, at: as in `withdrawals.json`.
        parts: where it was catalogued.
        removed: files that held it alone, and copies.
        rebuilt: products that held rows about it and are made again.
        trained: folders of checkpoints that were trained on it; they are not touched.
        by_hand: what only a person can remove.
        finished: UTC, when all of it was done; empty before.
    """

    video: str
    reason: str
    at: str
    parts: list[str] = field(default_factory=list)
    removed: list[Removed] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    by_hand: list[str] = field(default_factory=list)
    finished: str = ""

    @staticmethod
    def read(storage: Storage, video: str) -> Removal | None:
        """The record of a video; None where it was never withdrawn."""
        name = layout.removal(video)
        if not storage.exists(name):
            return None
        raw = storage.read_json(name)
        return Removal(**{**raw, "removed": [Removed(**entry) for entry in raw["removed"]]})

    def write(self, storage: Storage) -> None:
        """Publish the record."""
        storage.write_json(layout.removal(self.video), asdict(self))

    def lines(self) -> Iterator[str]:
        """All of it for a person."""
        yield f"{self.video}: withdrawn {self.at} ({self.reason})"
        yield from (f"  removed: {file.path}, {file.bytes:,} bytes" for file in self.removed)
        yield from (f"  made again without it: {name}" for name in self.rebuilt)
        yield from (f"  trained on it, not touched: {folder}" for folder in self.trained)
        yield from (f"  left to you: {sentence}" for sentence in self.by_hand)


def plan_removal(storage: Storage, settings: Settings, video: str, reason: str) -> Removal:
    """What withdrawing a video would remove and have made again. Nothing is changed.

    What an unfinished withdrawal has removed already stands in it as well.

    Raises:
        ValueError: there is no reason.
    """
    before = Removal.read(storage, video)
    recorded = Withdrawals.read(storage).videos.get(video) or Withdrawal.now(reason)
    holdings = find_holdings(storage, settings, video, before.parts if before else ())
    plan = Removal(video, recorded.reason, recorded.at, holdings.parts)
    names = {holding.path for holding in holdings.found if holding.own}
    names |= set(set_aside_copies(storage, video, holdings.parts))
    plan.removed = [
        Removed(entry.path, entry.size, entry.hash.removeprefix("sha256:"))
        for entry in describe_files(storage, names)
    ]
    for path in leftovers(storage, video):
        plan.removed += [
            Removed(str(file), file.stat().st_size, hash_file(file)) for file in _files(Path(path))
        ]
    plan.removed.sort()
    plan.rebuilt = _products(storage, holdings)
    plan.trained = sorted({*holdings.trained, *holdings.unknown})
    plan.by_hand = list(_by_hand(settings, video, plan.rebuilt, storage))
    if before is not None:
        known = {file.path: file for file in (*before.removed, *plan.removed)}
        plan.removed = sorted(known.values())
        if not before.finished:  # it may have been killed before these were asked for
            plan.rebuilt = _in_order({*before.rebuilt, *plan.rebuilt})
        plan.trained = sorted({*before.trained, *plan.trained})
    return plan


def remove_video(storage: Storage, settings: Settings, plan: Removal) -> None:
    """Do what a plan says, up to the products that are to be made again.

    Raises:
        OperatorError: another process works on the catalogue of its part. What was recorded stays,
            and the next call goes on.
    """
    entry = Withdrawal(plan.reason, plan.at)
    record_withdrawn(storage, plan.video, entry)
    plan.write(storage)
    source, _, identifier = plan.video.partition("/")
    active = active_parts(storage)
    for part in plan.parts:
        if storage.exists(snapshot_name(source, part)):
            _tell_catalogue(storage, source, part, identifier, entry)
        if part not in active:  # nothing makes the products of a part again that was given up
            _remove_products(storage, part)
    for file in plan.removed:
        if os.path.isabs(file.path):
            Path(file.path).unlink(missing_ok=True)
        else:
            storage.remove(file.path)
            if storage.is_local:
                remove_unfinished(Path(storage.path(file.path)))


def finish_removal(storage: Storage, plan: Removal) -> None:
    """Record that everything was done or asked for."""
    plan.finished = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    plan.write(storage)


def _tell_catalogue(
    storage: Storage, source: str, part: str, identifier: str, entry: Withdrawal
) -> None:
    with Catalogue(storage, source, part) as catalogue:
        if identifier in catalogue:
            nothing = dict.fromkeys(("next_try_at", "path", "size", "sha256", "location"))
            message = f"{entry.reason} ({entry.at})"
            catalogue.update(
                identifier, status=PERMANENT, reason=WITHDRAWN, message=message, **nothing
            )


def _remove_products(storage: Storage, part: str) -> None:
    """Remove the conversations and shards of a part, and their records first."""
    for asset, names in (
        (
            "conversations",
            (layout.conversations(part), layout.rejected_conversations(part)),
        ),
        (LONG_VIDEO_KIND, (layout.shards(LONG_VIDEO_KIND, part),)),
    ):
        storage.remove(record_name(product(asset, part)))
        for name in names:
            storage.remove(name)


def _products(storage: Storage, holdings: Holdings) -> list[str]:
    """Products to be made again, in an order in which that works."""
    source = holdings.video.partition("/")[0]
    active = [part for part in active_parts(storage) if part in holdings.parts]
    names = {holding.product for holding in holdings.found if holding.product}
    names |= {product("videos", f"{part}|{source}") for part in active}
    names |= {"annotations", "catalogue"} if "annotations" in names else set()
    kept = set()
    for name in names:
        asset, partition = split_product(name)
        part, _, second = (partition or "").partition("|")
        if is_recorded(storage, name) and (not part or part in active):
            kept.add(name)
        # A video of a part belongs to that part's files of features, whichever part is asked first.
        if asset == "features":
            kept |= {
                again
                for other in active
                if is_recorded(storage, again := product("features", f"{other}|{second}"))
            }
    return _in_order(kept)


def _in_order(names: set[str]) -> list[str]:
    return sorted(names, key=lambda name: (REBUILT.index(split_product(name)[0]), name))


def _by_hand(
    settings: Settings, video: str, rebuilt: Sequence[str], storage: Storage
) -> Iterator[str]:
    """What only a person can remove, a sentence each."""
    source, _, identifier = video.partition("/")
    chosen = settings.sources.get(source)
    if isinstance(chosen, DropSource):
        for file in chosen.files_of(identifier):  # a folder's name may hold bytes that are no text
            yield f"your own file {str(file).encode(errors='replace').decode()}"
    described = layout.captions(source, VIDEOS)
    if storage.exists(described):
        seen = pq.read_table(storage.local(described), columns=["video"])
        if video in seen["video"].to_pylist():
            yield (
                f"captions[{source}] and questions[{source}] describe it: materialize both again, "
                f"and they leave it out; what models said of it stays in "
                f"{storage.path(layout.ANSWERS)} until you remove that folder"
            )
    questions = settings.evaluation.questions
    if questions is not None and questions.exists():
        last = identifier.rpartition("/")[2]
        named = [q.id for q in read_questions(questions) if composed(Path(q.path).stem) == last]
        if named:
            yield (
                f"{questions} asks about a file of that name: {', '.join(named[:10])}; take these "
                "questions and their files out, and materialize evaluation"
            )
    runs = {
        Lineage.read(storage, name).run_id[:8]
        for name in rebuilt
        if is_recorded(storage, name) and name.startswith(("features", "conversations", "videos"))
    } - {""}
    if runs:
        yield (
            "Dagster's history may show pictures or rows of it: once the products are made again, "
            f"delete these runs in the UI (Runs): {', '.join(sorted(runs))}"
        )
    if files := question_files(storage, video):
        yield (
            f"rows about it in {', '.join(files)}, and as they were read below {layout.READINGS}: "
            "take them out of the file and materialize annotations, then both are gone. Until "
            "then nothing uses them"
        )
    yield "backups, and copies on other machines"


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
