"""`hourllava why`: why a video is, or is not, in the shards.

It follows one video through the pipeline, step by step, up to where its way ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.annotations.record import AnnotationRecord
from assets.deployment.settings import Settings
from assets.records.provenance import NotFoundError
from assets.records.withdrawals import Withdrawals
from assets.shards.mds import samples_about
from assets.sources.base import MANUAL_MISSING, NOT_ASKED, OK, PENDING, PERMANENT, VideoRow
from assets.tracing.holdings import count_rows
from assets.tracing.names import catalogued_rows, dropped_names, is_named, plain_name
from training.formats import layout
from training.formats.kinds import LONG_VIDEO_KIND
from training.formats.storage import Storage

# Reason that a video is not there -> what a person can do.
ADVICE = {
    "private": "its owner made it private; nothing can be done",
    "removed": "it was removed; nothing can be done",
    "geo": "set HTTPS_PROXY to a country where it may be seen: the next run of videos tries again",
    "age": "set YTDLP_COOKIES to an account that may see it: the next run of videos tries again",
    "members_only": "set YTDLP_COOKIES to an account that may see it: the next run of videos tries "
    "again",
    "bot_check": "the host doubts this machine: set YTDLP_COOKIES, raise download.min_interval_s, "
    "or wait",
    "login_required": "set YTDLP_COOKIES: the next run of videos tries again",
    "no_format": "check that a JavaScript runtime is installed (Deno), and run videos again",
    "blocked": "its URL leads to a private address; list the host in the source's hosts if you "
    "trust it: the next run of videos tries again",
    "name_taken": "give one of the two videos another id, in its rows and its file",
    "still_copied": "wait until the file is whole: the next run of videos tries again",
    "not_readable": "make the file readable, and run videos again",
    "file_error": "look at the file and its disk: the next run of videos tries again",
    "ambiguous": "give the files different names: the next run of videos tries again",
    "not_in_repo": "check the source's archives and files patterns in the settings: when they or "
    "the revision change, the next run of videos tries again",
}


def why(storage: Storage, settings: Settings, video: str) -> list[str]:
    """What became of `video`, as lines for a person.

    Args:
        video: `source/id`, the id alone, or the name or path of its file, on whatever machine and
            in whatever letters.

    Raises:
        NotFoundError: nothing asks for it.
    """
    if AnnotationRecord.read(storage) is None:
        return [f"{storage.root} holds no annotations yet: materialize annotations first"]
    rows = catalogued_rows(storage, settings, video, alike=True)
    name, dropped = plain_name(storage, video), dropped_names(settings, video)
    withdrawals = Withdrawals.read(storage)
    withdrawn = {
        known: entry
        for known, entry in withdrawals.videos.items()
        if is_named(known, name, dropped)
    }
    told = [f"{known}: withdrawn {entry.at}: {entry.reason}" for known, entry in withdrawn.items()]
    rows = [(part, row) for part, row in rows if row.video not in withdrawn]
    if told and not rows:
        return told
    if not rows:
        return _not_catalogued(storage, settings, video if dropped else name, [name, *dropped])
    lines = told
    for part, row in rows:
        lines += [f"{row.video}, {part}: {row.questions:,} question-answer pairs"]
        if given_up := withdrawals.parts.get(part):
            lines.append(
                f"  {part} was given up {given_up.at}: {given_up.reason}; nothing is trained on it"
            )
        lines += _acquisition(storage, row)
        if row.status == OK:
            lines += _later_steps(storage, settings, part, row)
    return lines


def _acquisition(storage: Storage, row: VideoRow) -> list[str]:
    """What became of fetching it, and what can be done."""
    if row.status == OK:
        there = "" if storage.exists(row.path or "") else ", but the file is gone: run videos again"
        damage = ", damaged in one place" if row.damaged else ""
        return [
            f"  video: {row.path}, {(row.duration or 0) / 60:.1f} min, {row.codec} "
            f"{row.width}x{row.height}, {(row.size or 0) / 1e6:.1f} MB{damage}, from "
            f"{row.location}{there}"
        ]
    text = f"  video: {row.status}"
    if row.reason:
        text += f", {row.reason}: {row.message or ''}"
    if row.attempts:
        text += f" ({row.attempts} tries)"
    lines = [text]
    if row.status == PENDING:
        advice = "it was not tried yet: materialize videos for this source and part"
    elif row.status == MANUAL_MISSING:
        advice = "put the file into the source's folder, and run videos again"
    elif row.status == NOT_ASKED:
        advice = "rows about it bring it back"
    elif row.status == PERMANENT:
        final = (
            "it is tried again when what decided it changes (a setting, the file, the revision, "
            f"the tool), or when download.retry lists {row.reason}"
        )
        advice = ADVICE.get(row.reason or "", final)
    else:
        advice = ADVICE.get(row.reason or "", "it is tried again by the next run of videos")
    return [*lines, f"  {advice}"]


def _not_catalogued(
    storage: Storage, settings: Settings, video: str, names: list[str]
) -> list[str]:
    """What the annotations say of a video that is in no catalogue.

    Args:
        video: what it is called in the answer.
        names: what rows may call it: a plain name, and `source/id` of a drop source's file.
    """
    lines: list[str] = []
    with pq.ParquetFile(storage.local(layout.ANNOTATIONS)) as file:
        found = count_rows(
            file,
            ["video", "id"],
            lambda batch: pc.or_(
                pc.is_in(batch["video"], pa.array(names)), pc.equal(batch["id"], names[0])
            ),
        )
    if found:
        return [
            f"{video}: {found:,} question-answer pairs, but it is not catalogued: materialize "
            "catalogue"
        ]
    name = names[0].rsplit("/", 1)[-1]
    reasons: dict[str, int] = {}
    if storage.exists(layout.REJECTED_ANNOTATIONS):
        with pq.ParquetFile(storage.local(layout.REJECTED_ANNOTATIONS)) as file:
            wanted = ("file", "row", "line", "reason", "content")
            there = [name for name in wanted if name in file.schema_arrow.names]  # since 0.2: line
            for batch in file.iter_batches(columns=there):
                for raw in batch.filter(pc.match_substring(batch["content"], name)).to_pylist():
                    reasons[raw["reason"]] = reasons.get(raw["reason"], 0) + 1
                    if len(lines) < 5:
                        lines.append(
                            f"  {raw['file']}, row {raw['row']:,}: {raw['reason']}{_line(raw)}"
                        )
    if reasons:
        total = sum(reasons.values())
        lines.insert(
            0, f"{video}: no usable annotation; {total:,} rows that mention it were set aside"
        )
        if {"unknown_source", "no_source"} & reasons.keys():
            lines.append(
                f"  its source is not configured; sources are {', '.join(sorted(settings.sources))}"
            )
        return lines
    record = AnnotationRecord.read(storage)
    files = sorted(origin.name for origin in record.origins) if record else []
    if len(names) > 1:
        video += f" is below the folder of the source {names[1].partition('/')[0]}"
    raise NotFoundError(f"{video}: no annotation file asks for it ({', '.join(files)})")


def _line(raw: Mapping[str, Any]) -> str:
    """Where a person finds a row that was set aside, if its file has lines."""
    return "" if raw.get("line") is None else f" (line {raw['line']:,})"


def _later_steps(storage: Storage, settings: Settings, part: str, row: VideoRow) -> list[str]:
    """Conversations, features and shards of a video that is there."""
    samples = layout.conversations(part)
    if not storage.exists(samples):
        return ["  conversations: not made yet: materialize conversations for this part"]
    with pq.ParquetFile(storage.local(samples)) as file:
        count = count_rows(file, ["video"], lambda batch: pc.equal(batch["video"], row.video))
    lines = [
        f"  conversations: {count:,} samples"
        + ("" if count else f"; {_rejections(storage, part, row.video)}")
    ]
    lines += [
        f"  features for {variant}: {_features(storage, variant, row.video)}"
        for variant in settings.variants
    ]
    return [*lines, *_shards(storage, part, row.video, count)]


def _features(storage: Storage, variant: str, video: str) -> str:
    folder = layout.features(variant)
    if storage.exists(layout.feature_file(folder, video)):
        return "there"
    refusal = layout.feature_quarantine(folder, video)
    if storage.exists(refusal):
        verdict = storage.read_json(refusal)
        return f"refused, {verdict.get('reason')}: {verdict.get('detail', '')}"
    return "not extracted yet: materialize features for this part"


def _shards(storage: Storage, part: str, video: str, wanted: int) -> list[str]:
    """How many of a video's samples the part's shards really hold."""
    folder = layout.shards(LONG_VIDEO_KIND, part)
    if not storage.exists(f"{folder}/index.json"):
        return ["  shards: not written yet: materialize videomarathon_video for this part"]
    found = samples_about(storage, folder, video)
    lines = [f"  shards: {found:,} of its {wanted:,} samples are in {folder}"]
    if found < wanted:
        manifest = f"{folder}/manifest.json"
        report = storage.read_json(manifest).get("report", {}) if storage.exists(manifest) else {}
        named = [line for line in report.get("named", []) if video in line]
        lines += [f"    dropped: {line}" for line in named[:5]]
        if not named:
            lines.append(
                "    they were written from earlier conversations: materialize "
                "videomarathon_video again"
            )
    return lines


def _rejections(storage: Storage, part: str, video: str) -> str:
    name = layout.rejected_conversations(part)
    if not storage.exists(name):
        return "run conversations again"
    table = pq.read_table(storage.local(name), columns=["video", "reason"])
    reasons = table.filter(pc.equal(table["video"], video))["reason"].value_counts().to_pylist()
    return ", ".join(
        f"{entry['counts']:,} rows dropped: {entry['values']}" for entry in reasons
    ) or ("it arrived after the conversations were made: run conversations again")
