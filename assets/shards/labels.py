"""Whether the model would learn anything from the mixture: a few samples of each kind, tokenised as
training does.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.deployment.settings import Settings
from assets.records.lineage import Lineage, product, record_name
from assets.records.verdict import Verdict
from assets.shards.mixture_views import MIXTURE
from assets.shards.writer import INDEX
from training.formats import layout
from training.formats.hashing import stable_hash
from training.formats.sample import Sample, decode
from training.formats.storage import Storage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LABELS = "labels"
SHARDS, ROWS = (
    4,
    8,
)  # of each kind, and of each shard: what is drawn is bounded, and always the same
NAMED = 10


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
    says = f"{len(faults)} samples cannot be learned from: {'; '.join(faults[:NAMED])}. Materialize their parts again"
    return Verdict(LABELS, says, passed=False, facts={"drawn": table})


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
    for number in (0, 1):
        for shard in storage.read_json(f"{MIXTURE}/{number}/{INDEX}")["shards"]:
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
    from transformers import AutoTokenizer

    for variant in settings.variants:
        name = product("base_model", variant)
        if storage.exists(record_name(name)):
            export = f"{Lineage.read(storage, name).folder}/export"
            with tempfile.TemporaryDirectory() as folder:
                for file in storage.list(export):
                    if not file.endswith(".safetensors"):
                        Path(folder, file.rpartition("/")[2]).write_bytes(storage.read_bytes(file))
                loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
            return loaded
    return None
