"""Whether a part's grouped conversations can become training samples."""

from __future__ import annotations

from collections import Counter

import orjson

from assets.annotations.catalogue import present_videos
from assets.conversations.grouping import conversations_name
from assets.conversations.samples import read_samples
from assets.deployment.parts import part_name
from assets.deployment.settings import Settings
from assets.records.verdict import Verdict
from training.formats.storage import Storage

SOUND = "sound"
NAMED = 10  # faults that the message names


def sound(storage: Storage, settings: Settings, part: int) -> Verdict:
    """Every sample has a name of its own and a video that is there, and every question in it an
    answer.
    """
    there = {video.video for video in present_videos(storage, settings, part_name(part))}
    ids: Counter[str] = Counter()
    faults: list[str] = []
    pairs, seconds = 0, dict[str, float]()
    columns = ["id", "video", "duration", "conversations"]
    for sample in read_samples(storage.local(conversations_name(part)), columns):
        name, video = sample["id"], sample["video"]
        ids[name] += 1
        seconds[video] = sample["duration"]
        turns = orjson.loads(sample["conversations"])
        pairs += len(turns) // 2
        if video not in there:
            faults.append(f"{name}: its video {video} is not there")
        if not turns or len(turns) % 2 or any(not turn["value"].strip() for turn in turns):
            faults.append(f"{name}: a question or an answer is missing")
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
    message = f"{len(faults):,} faults: {'; '.join(faults[:NAMED])}. Materialize this part again"
    return Verdict(SOUND, message, passed=False, facts=facts)
