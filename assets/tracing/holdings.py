"""Which products really hold one long video: looked up in the products themselves, never concluded
from the part that the video belongs to.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.annotations.merge import mention
from assets.annotations.record import AnnotationRecord
from assets.checkpoints.bill import trained_videos
from assets.deployment.settings import Settings
from assets.evaluation.questions import read_questions
from assets.fetching.disk import INCOMING
from assets.records.lineage import LINEAGE_NAME, Lineage, product
from assets.records.provenance import Register
from assets.shards.mds import samples_about
from assets.sources.base import OK, VideoFiles, composed
from assets.tracing.names import catalogued_rows
from training.formats import layout
from training.formats.hashing import stable_hash
from training.formats.kinds import LONG_VIDEO_KIND
from training.formats.receipts import DAMAGED
from training.formats.storage import Storage

_BLOCK = 1 << 24


@dataclass(frozen=True, slots=True)
class Holding:
    """One product that holds a video.

    Attributes:
        product: as the register names it; empty for what belongs to no product.
        what: for a person: `the video`, `3 samples`.
        path: of the file or folder that holds it, below the root.
        own: the file holds nothing but this video.
    """

    product: str
    what: str
    path: str
    own: bool = False


@dataclass(slots=True)
class Holdings:
    """Everything that holds one video.

    Attributes:
        video: `source/id`.
        parts: where it is catalogued.
        found: what holds it, from the annotations to the mixture.
        trained: checkpoints that were trained on it, by their bills: folders below the root.
        unknown: checkpoints made from its part, of which no bill says whether they saw it.
        tellings: what each part's catalogue says of it.
    """

    video: str
    parts: list[str]
    found: list[Holding] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    tellings: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """All of it for a person."""
        yield from self.tellings
        for holding in self.found:
            yield f"  {holding.product or 'left over'}: {holding.what}, in {holding.path}"
        if not self.found:
            yield "  nothing holds it"
        for folder in self.trained:
            yield f"  trained on it: {_checkpoint(folder)}, in {folder}"
        for folder in self.unknown:
            yield f"  perhaps trained on it: {_checkpoint(folder)}, no whole bill says, in {folder}"


def find_holdings(
    storage: Storage, settings: Settings, video: str, also_parts: Sequence[str] = ()
) -> Holdings:
    """Look for one video in every product of its part, and in every checkpoint.

    Args:
        video: `source/id`.
        also_parts: parts to look into besides those that it is catalogued in.
    """
    rows = [(part, row) for part, row in catalogued_rows(storage, settings, video)]
    rows = [(part, row) for part, row in rows if row.video == video]
    parts = sorted({*(part for part, _ in rows), *also_parts})
    holdings = Holdings(video, parts)
    for part, row in rows:
        reason = f", {row.reason}" if row.reason else ""
        holdings.tellings.append(f"{video}, {part}: {row.status}{reason}")
    found = holdings.found
    found += _annotations(storage, video)
    for part, row in rows:
        if row.status == OK and row.path and storage.exists(row.path):
            name = product("videos", f"{part}|{row.source}")
            found.append(Holding(name, "the video", row.path, own=True))
    found += _own_files(storage, video, {holding.path for holding in found}, parts)
    for part in parts:
        found += _part_products(storage, part, video)
    if _holds_text(storage, layout.CONVERSATIONS_JSON, orjson.dumps(video)):
        found.append(
            Holding("videomarathon_json", "samples in LLaVA's format", layout.CONVERSATIONS_JSON)
        )
    if _asks_about(storage, video):
        found.append(Holding("held_out_questions", "held-out questions", layout.HELD_OUT))
    shards = [
        holding.path for holding in found if holding.product.startswith(f"{LONG_VIDEO_KIND}[")
    ]
    found += _mixture(storage, shards)
    holdings.trained, holdings.unknown = _checkpoints(storage, video, parts)
    return holdings


def _own_files(
    storage: Storage, video: str, known: set[str], parts: Sequence[str]
) -> list[Holding]:
    """Files that hold this video alone: what no row points to, what was quarantined, and
    features.
    """
    source, _, identifier = video.partition("/")
    found = []
    folder, _, last = f"{layout.VIDEOS}/{video}".rpartition("/")
    for name in _beside(storage, folder, f"{last}."):
        if name not in known:
            found.append(Holding("", "a video file that no row points to", name, own=True))
    quarantined = layout.quarantined_video(source, identifier)
    if storage.exists(quarantined):
        found.append(Holding("", "a file that was not the video", quarantined, own=True))
    for variant in _with_features(storage):
        features = product("features", f"{parts[0]}|{variant}") if parts else ""
        folder = layout.features(variant)
        for name, what in (
            (layout.feature_file(folder, video), "its features"),
            (layout.feature_quarantine(folder, video), "why it has no features"),
        ):
            if storage.exists(name):
                found.append(Holding(features, what, name, own=True))
    return found


def _with_features(storage: Storage) -> list[str]:
    """The variants that have features, also those that the settings no longer name."""
    if not storage.exists(layout.FEATURES):
        return []
    entries = storage.fs.ls(storage.path(layout.FEATURES), detail=False)
    return sorted(str(entry).rstrip("/").rpartition("/")[2] for entry in entries)


def _beside(storage: Storage, folder: str, start: str) -> list[str]:
    """Files of one folder whose names are `start` and a suffix."""
    if not storage.exists(folder):
        return []
    entries = storage.fs.ls(storage.path(folder), detail=False)
    names = [str(entry).rstrip("/").rpartition("/")[2] for entry in entries]
    return [
        f"{folder}/{name}"
        for name in names
        if composed(name).startswith(start) and "." not in composed(name)[len(start) :]
    ]


def leftovers(storage: Storage, video: str) -> list[str]:
    """Local paths of copies that no product knows: unfinished downloads, and this machine's copies
    of a remote root.
    """
    from assets.fetching.archive_members import RECORD  # brings the hub's client along

    source, _, identifier = video.partition("/")
    found: set[Path] = set()
    base = Path(storage.root) if storage.is_local else storage.cache
    incoming = base / INCOMING
    found.update(p for p in (incoming / source / f"{stable_hash(identifier):016x}",) if p.exists())
    for record in (incoming / "staged" / source).rglob(RECORD):
        members = json.loads(record.read_text())  # name in the archive -> number
        staged = [record.parent / members[m] for m in VideoFiles(members).that_may_be(identifier)]
        found.update(path for path in staged if path.exists())
    for copy in (storage.cache / "copies").glob("*"):
        for folder in (copy / layout.VIDEOS, *(copy / layout.FEATURES).glob("*")):
            found.update((folder / source).glob(f"{glob.escape(identifier)}.*"))
    return sorted(str(path) for path in found)


def set_aside_copies(storage: Storage, video: str, parts: Sequence[str]) -> list[str]:
    """What was set aside as damaged of the video's own files, and of rows of its parts, below the
    root.
    """
    rows = [f"{layout.ANNOTATIONS}.", f"{layout.REJECTED_ANNOTATIONS}."]
    rows += [f"{layout.CONVERSATIONS_JSON}.", f"{layout.HELD_OUT}."]
    for part in parts:
        rows += [f"{layout.conversations(part)}.", f"{layout.rejected_conversations(part)}."]
        folder = layout.shards(LONG_VIDEO_KIND, part)
        rows += [f"{folder}.", f"{folder}/"]
    # The last step is the number of the copy. A dot in front of another suffix is part of an id.
    own = re.compile(
        rf"({layout.VIDEOS}|{layout.QUARANTINE}|{layout.FEATURES}/[^/]+)/{re.escape(video)}"
        rf"(\.[^./]+|{re.escape(layout.QUARANTINE_SUFFIX)})\.\d+"
    )
    return [
        name
        for name in storage.list(DAMAGED)
        for path in [name.removeprefix(f"{DAMAGED}/")]
        if path.startswith(tuple(rows)) or own.fullmatch(composed(path))
    ]


def _annotations(storage: Storage, video: str) -> list[Holding]:
    """Rows about the video, and rows that were set aside in whose text its id stands."""
    named = mention(video)
    found = []
    if storage.exists(layout.ANNOTATIONS):
        with pq.ParquetFile(storage.local(layout.ANNOTATIONS)) as file:
            count = count_rows(file, ["video"], lambda batch: pc.equal(batch["video"], video))
        if count:
            what = f"{count:,} question-answer pairs"
            found.append(Holding("annotations", what, layout.ANNOTATIONS))
    if storage.exists(layout.REJECTED_ANNOTATIONS):
        with pq.ParquetFile(storage.local(layout.REJECTED_ANNOTATIONS)) as file:
            count = count_rows(
                file, ["content"], lambda batch: pc.match_substring_regex(batch["content"], named)
            )
        if count:
            what = f"{count:,} rows that were set aside and name it"
            found.append(Holding("annotations", what, layout.REJECTED_ANNOTATIONS))
    return found


def question_files(storage: Storage, video: str) -> list[str]:
    """The files that rows about the video were read from, as the annotations name them."""
    record = AnnotationRecord.read(storage)
    found = []
    for origin in record.origins if record else []:
        with pq.ParquetFile(storage.local(layout.reading(origin.reading))) as file:
            if count_rows(file, ["video"], lambda batch: pc.equal(batch["video"], video)):
                found.append(origin.file)
    return found


def _part_products(storage: Storage, part: str, video: str) -> list[Holding]:
    """Conversations and shards of one part that are about the video."""
    found = []
    for name, what in (
        (layout.conversations(part), "samples"),
        (layout.rejected_conversations(part), "rows without a sample"),
    ):
        if storage.exists(name):
            with pq.ParquetFile(storage.local(name)) as file:
                count = count_rows(file, ["video"], lambda batch: pc.equal(batch["video"], video))
            if count:
                found.append(Holding(product("conversations", part), f"{count:,} {what}", name))
    folder = layout.shards(LONG_VIDEO_KIND, part)
    if storage.exists(f"{folder}/index.json") and (count := samples_about(storage, folder, video)):
        found.append(Holding(product(LONG_VIDEO_KIND, part), f"{count:,} samples", folder))
    return found


def _mixture(storage: Storage, shards: Sequence[str]) -> list[Holding]:
    """The mixture, where it lists shards that hold the video."""
    folders = {folder.rpartition("/")[2] for folder in shards}
    if not folders or not storage.exists(layout.STAGE3_MIXTURE):
        return []
    listed = {
        entry["raw_data"]["basename"].partition("/")[0]
        for name in storage.list(layout.STAGE3_MIXTURE, "/index.json")
        for entry in storage.read_json(name)["shards"]
    }
    return [
        Holding(layout.MIXTURE, f"lists {folder}", layout.STAGE3_MIXTURE)
        for folder in sorted(folders & listed)
    ]


def _checkpoints(storage: Storage, video: str, parts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Folders of checkpoints that were trained on the video, and of those that perhaps were."""
    trained, unknown = [], []
    register = Register(storage)
    of_part = {product(LONG_VIDEO_KIND, part) for part in parts}
    for name in storage.list(layout.CHECKPOINTS, f"/{LINEAGE_NAME}"):
        record = Lineage(**storage.read_json(name))
        if not record.product.startswith(("stage", "ablation[")):
            continue
        folder = name.rpartition("/")[0]
        videos = trained_videos(storage, folder)
        if videos is not None:
            trained += [folder] if video in videos else []
        elif any(of_part & register.ancestors(name) for name in record.inputs):
            unknown.append(folder)
    return trained, unknown


def _checkpoint(folder: str) -> str:
    """`stage3[tiny]` of `checkpoints/tiny/stage3/<run>`, `ablation[random-1]` of
    `checkpoints/tiny/ablation/random-1/<run>`.
    """
    _, variant, made, name, *_ = folder.split("/")
    return product(made, name if made == "ablation" else variant)


def _asks_about(storage: Storage, video: str) -> bool:
    """Whether a held-out question is about the video."""
    if not storage.exists(layout.HELD_OUT):
        return False
    questions = read_questions(storage.local(layout.HELD_OUT))
    wanted = f"{layout.VIDEOS}/{video}"
    return any(composed(one.path).rpartition(".")[0] == wanted for one in questions)


def _holds_text(storage: Storage, name: str, wanted: bytes) -> bool:
    """Whether a file holds a text; it is read in blocks."""
    if not storage.exists(name):
        return False
    tail = b""
    with storage.open(name) as file:
        while block := file.read(_BLOCK):
            if wanted in tail + block:
                return True
            tail = block[-len(wanted) :]
    return False


def count_rows(
    file: pq.ParquetFile, columns: list[str], matches: Callable[[pa.Table], pa.Array]
) -> int:
    """Rows of a Parquet file that match, read a batch at a time."""
    return sum(
        pc.sum(matches(pa.Table.from_batches([batch]))).as_py() or 0
        for batch in file.iter_batches(columns=columns)
    )
