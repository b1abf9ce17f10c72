"""Whether shards are what their index says, and whether what will be trained on is in one place
only and is supervised: a few samples of each kind are tokenised as training does.

Training verifies its shards again before it starts; here it is found out before a GPU waits.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.conversations.grouping import conversations_name
from assets.deployment.parts import LLAVA_PARTS, part_index
from assets.deployment.settings import Settings
from assets.records.lineage import Lineage, product, record_name
from assets.records.product_files import find_file_damage
from assets.records.verdict import Verdict
from assets.shards.mds import HASH, read_column
from assets.shards.mixture_views import read_views
from assets.shards.part import INDEX, MANIFEST, part_folder, shard_entries
from training.formats import layout
from training.formats.hashing import stable_hash
from training.formats.kinds import LONG_VIDEO_KIND, MIXED_KINDS
from training.formats.sample import Sample, decode
from training.formats.storage import Storage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WHOLE, ONE_PLACE, LABELS = "whole", "one_place", "labels"
NAMED = 10  # faults that a verdict names; the rest is counted
# What is looked at for `labels` is bounded, and always the same.
SHARDS = 4  # of each kind
ROWS = 8  # of each of these shards


def whole(storage: Storage, folder: str, name: str) -> Verdict:
    """Index, manifest and files of one part agree: names, sizes, hashes and the number of samples.

    A shard is hashed where that was not done since it was written; on a remote root only sizes are
    compared, as hashes are checked when a shard is fetched.

    Args:
        name: of the product, whose stamps say which shards were hashed.
    """
    faults = part_faults(storage, folder, name)
    index = storage.read_json(f"{folder}/{INDEX}")["shards"]
    samples = sum(shard["samples"] for shard in index)
    size = sum(shard["raw_data"]["bytes"] for shard in index)
    facts = {"samples": samples, "shards": len(index), "bytes": size, "hashed": storage.is_local}
    if not faults:
        return Verdict(
            WHOLE, f"{len(index):,} shards, {samples:,} samples: all as the index says", facts=facts
        )
    message = f"{len(faults):,} faults: {'; '.join(faults[:NAMED])}. Materialize this part again"
    return Verdict(WHOLE, message, passed=False, facts=facts)


def part_faults(storage: Storage, folder: str, name: str) -> list[str]:
    """What is wrong with a part's folder, a sentence for each fault; none when it is whole."""
    shards = storage.read_json(f"{folder}/{INDEX}")["shards"]
    manifest = storage.read_json(f"{folder}/{MANIFEST}")
    indexed = {shard["raw_data"]["basename"]: shard["raw_data"] for shard in shards}
    faults = []
    if manifest["shards"] != {name: raw["hashes"][HASH] for name, raw in indexed.items()}:
        faults.append(f"{MANIFEST} and {INDEX} name different shards or hashes")
    written = manifest["report"]["counts"]["samples"]
    listed = sum(shard["samples"] for shard in shards)
    if written != listed:
        faults.append(f"{MANIFEST} counts {written:,} samples, {INDEX} {listed:,}")
    there = {name.rpartition("/")[2] for name in storage.list(folder, ".mds")}
    faults += [f"{extra} is not in {INDEX}" for extra in sorted(there - set(indexed))]
    entries = shard_entries(storage, folder)
    if storage.is_local:
        return faults + [str(damage) for damage in find_file_damage(storage, name, entries)]
    missing = set(indexed) - there
    return faults + [
        f"{entry.path} is missing"
        if entry.path.rpartition("/")[2] in missing
        else f"{entry.path} has other bytes than {INDEX} says"
        for entry in entries
        if entry.path.rpartition("/")[2] in missing or storage.size(entry.path) != entry.size
    ]


def one_place(storage: Storage, parts: Sequence[str]) -> Verdict:
    """No shard stands twice in the mixture, and no sample in two parts of a kind.

    Args:
        parts: the parts of long videos in the mixture. Of the other kinds, every part that is there
            is looked at: stage 2 is trained on the ones that the mixture leaves out. On a remote
            root their samples are not looked at.
    """
    views = read_views(storage)
    names = Counter(shard["raw_data"]["basename"] for view in views for shard in view)
    faults = [
        f"{name} stands {times} times in the mixture"
        for name, times in sorted(names.items())
        if times > 1
    ]
    ids = {LONG_VIDEO_KIND: [_long_ids(storage, part) for part in parts]}
    if storage.is_local:
        for kind in MIXED_KINDS:
            folders = [part_folder(kind, number) for number in range(LLAVA_PARTS)]
            ids[kind] = [
                pa.array(read_column(storage, name, "id"), pa.string())
                for name in folders
                if storage.exists(f"{name}/{INDEX}")
            ]
    counts: list[dict[str, Any]] = []
    for kind, of_parts in ids.items():
        together = pa.chunked_array(of_parts, pa.string())
        counted = pc.value_counts(together)
        twice = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
        faults += [
            f"{kind}: sample {name} stands in two places" for name in twice[:NAMED].to_pylist()
        ]
        counts.append(
            {"kind": kind, "parts": len(of_parts), "samples": len(together), "twice": len(twice)}
        )
    facts = {"samples looked at": counts}
    if not faults:
        total = sum(row["samples"] for row in counts)
        return Verdict(ONE_PLACE, f"{total:,} samples, each in one place", facts=facts)
    message = (
        f"{'; '.join(faults[:NAMED])}. Parts were written from different annotations, mixtures or "
        "seeds: materialize all parts of these kinds again"
    )
    return Verdict(ONE_PLACE, message, passed=False, facts=facts)


def _long_ids(storage: Storage, part: str) -> pa.Array:
    ids = pq.read_table(storage.local(conversations_name(part_index(part))), columns=["id"])["id"]
    return ids.combine_chunks()


def labels(storage: Storage, settings: Settings) -> Verdict:
    """Every sample drawn has supervised tokens, and every answer in it is text.

    While no variant has its base model, which holds the tokenizer, only the text is looked at.
    """
    tokenizer = _tokenizer(storage, settings)
    faults: list[str] = []
    lengths: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for sample in _drawn(storage):
        try:
            lengths[sample.kind].append(_counted(sample, tokenizer))
        except ValueError as error:
            faults.append(f"{sample.kind}, {sample.id}: {error}")
    table: list[dict[str, Any]] = [
        {"kind": kind, "samples": len(found), **(_token_counts(found) if tokenizer else {})}
        for kind, found in sorted(lengths.items())
    ]
    if not faults:
        looked = sum(row["samples"] for row in table)
        how = (
            "all of them supervised"
            if tokenizer
            else "all with answers; not tokenised, for want of a base_model"
        )
        return Verdict(LABELS, f"{looked} samples drawn, {how}", facts={"drawn": table})
    message = (
        f"{len(faults)} samples cannot be learned from: {'; '.join(faults[:NAMED])}. Materialize "
        "their parts again"
    )
    return Verdict(LABELS, message, passed=False, facts={"drawn": table})


def _token_counts(found: list[tuple[int, int]]) -> dict[str, float]:
    return {
        "text tokens, mean": round(statistics.fmean(tokens for tokens, _ in found), 1),
        "supervised, mean": round(statistics.fmean(supervised for _, supervised in found), 1),
        "supervised, least": min(supervised for _, supervised in found),
    }


def _counted(sample: Sample, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, int]:
    """(tokens of the text, supervised ones of them); nothing is counted without a tokenizer.

    Raises:
        ValueError: an answer is empty, or nothing is supervised.
    """
    for number, turn in enumerate(sample.conversations):
        if turn["from"] == "gpt" and not turn["value"].strip():
            raise ValueError(f"turn {number}, an answer, is empty")
    if tokenizer is None:
        return 0, 0
    from model.conversation import tokenize

    for number, turn in enumerate(sample.conversations):
        if (
            turn["from"] == "gpt"
            and not tokenizer(turn["value"].strip(), add_special_tokens=False).input_ids
        ):
            raise ValueError(f"turn {number}, an answer, has no token")
    ids, marks = tokenize(sample.conversations, tokenizer)
    supervised = int((marks[1:] >= 0).sum())
    if not supervised:
        raise ValueError("no token of it is supervised")
    return len(ids), supervised


def _drawn(storage: Storage) -> Iterator[Sample]:
    """Some samples of each kind in the mixture, chosen by the names of their shards."""
    from streaming.base.format import reader_from_json

    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for shard in chain.from_iterable(read_views(storage)):
        if shard["samples"]:
            kinds[shard["raw_data"]["basename"].partition("_part")[0]].append(shard)
    for shards in kinds.values():
        shards.sort(key=lambda shard: stable_hash("labels", shard["raw_data"]["basename"]))
        for shard in shards[:SHARDS]:
            path = storage.local(f"{layout.SHARDS}/{shard['raw_data']['basename']}")
            reader = reader_from_json(
                str(path.parent),
                "",
                {**shard, "raw_data": {**shard["raw_data"], "basename": path.name}},
            )
            many = shard["samples"]
            for row in sorted({place * many // ROWS for place in range(ROWS)}):
                yield decode(reader[row])


def _tokenizer(storage: Storage, settings: Settings) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the first variant that has a starting point; they all share one."""
    from model.weights.loading import load_tokenizer

    for variant in settings.variants:
        name = product("base_model", variant)
        if storage.exists(record_name(name)):
            export = f"{Lineage.read(storage, name).folder}/export"
            with tempfile.TemporaryDirectory() as folder:
                for file in storage.list(export):
                    if not file.endswith(".safetensors"):
                        Path(folder, file.rpartition("/")[2]).write_bytes(storage.read_bytes(file))
                return load_tokenizer(Path(folder))
    return None
