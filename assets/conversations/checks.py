"""Whether a part's grouped conversations can become training samples."""

from __future__ import annotations

from collections import Counter

import orjson
import pyarrow.parquet as pq

from assets.annotations.catalogue import present_videos
from assets.conversations.grouping import conversations_name
from assets.deployment.parts import part_name
from assets.deployment.settings import Settings
from assets.records.verdict import Verdict
from training.formats.storage import Storage

SOUND = "sound"
NAMED = 10


def sound(storage: Storage, settings: Settings, part: int) -> Verdict:
    """Every sample has a name of its own and a video that is there, and every question in it an
    answer.
    """
    there = {video.video for video in present_videos(storage, settings, part_name(part))}
    ids: Counter[str] = Counter()
    faults: list[str] = []
    pairs, seconds = 0, dict[str, float]()
    with pq.ParquetFile(storage.local(conversations_name(part))) as file:
        for batch in file.iter_batches(8192, columns=["id", "video", "duration", "conversations"]):
            for row in batch.to_pylist():
                ids[row["id"]] += 1
                seconds[row["video"]] = row["duration"]
                turns = orjson.loads(row["conversations"])
                pairs += len(turns) // 2
                if row["video"] not in there:
                    faults.append(f"{row['id']}: its video {row['video']} is not there")
                if not turns or len(turns) % 2 or any(not turn["value"].strip() for turn in turns):
                    faults.append(f"{row['id']}: a question or an answer is missing")
    faults += [f"{name} stands there {times} times" for name, times in ids.items() if times > 1]
    hours = round(sum(seconds.values()) / 3600, 3)
    facts = {
        "samples": len(ids),
        "question-answer pairs": pairs,
        "videos": len(seconds),
        "hours": hours,
    }
    if not faults:
        return Verdict(SOUND, f"{len(ids):,} samples with {pairs:,} answers", facts=facts)
    says = f"{len(faults):,} faults: {'; '.join(faults[:NAMED])}. Materialize this part again"
    return Verdict(SOUND, says, passed=False, facts=facts)
