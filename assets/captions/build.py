"""Captions of all videos in a drop source's folder.

Everything is put together anew each time from answers that are kept, so a run that was ended at any
moment goes on from there, and a second one asks nothing. Pictures are decoded only of clips that
were not answered yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from assets.captions.describe import (
    Described,
    Seen,
    clip_prompt,
    describe_clip,
    describe_event,
    describe_whole,
    find_events,
)
from assets.captions.forms import ClipCaption
from assets.captions.frames import ClipReader, Look, cut
from assets.captions.own_videos import Content, OwnVideo, content_of, own_videos
from assets.captions.tables import (
    CLIP_SCHEMA,
    CLIPS,
    EVENT_SCHEMA,
    EVENTS,
    VIDEO_SCHEMA,
    VIDEOS,
    clip_row,
    event_row,
    known_contents,
    write_table,
)
from assets.captions.texts import CaptionTexts, read_texts, texts_version
from assets.deployment.settings import Settings
from assets.endpoints.asker import Asker, in_parallel
from assets.endpoints.protocol import Pictures
from assets.fetching.locked_children import InvalidVideo
from assets.records.withdrawals import Withdrawals
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.storage import Storage

Log = Callable[[str], None]


@dataclass(slots=True)
class CaptionReport:
    """What was described.

    Attributes:
        version: of the captions.
        counts: `videos`, `clips`, `events`, and what was set aside by reason.
        config: what shaped them: model, texts, clips.
        files: relative to the root.
        videos: a row for each of them.
        examples: a few clips with their captions.
        answers: what became of the questions to the models.
    """

    version: str
    counts: dict[str, int]
    config: dict[str, Any]
    files: list[str]
    videos: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Work:
    one: OwnVideo
    described: Described
    content: Content | None = None
    reason: str = ""


def describe_source(
    storage: Storage, settings: Settings, source: str, describer: Asker, writer: Asker, log: Log
) -> CaptionReport:
    """Describe every video of a source.

    Raises:
        OperatorError: no such source or folder; the budget is spent; as the backends.
        TransferError: an endpoint did not answer in all tries; what it answered is kept.
    """
    chosen = settings.questions
    texts = read_texts("captions.yaml", CaptionTexts, chosen.prompts)
    withdrawn = Withdrawals.read(storage).videos
    videos = own_videos(settings, source, withdrawn, log)
    look = Look(chosen.frames, chosen.side, settings.features.limits.max_pixels)
    works = [_Work(one, Described(one.video), reason=one.reason) for one in videos]
    with ClipReader(look) as reader:
        known = known_contents(storage, source)
        for work in works:
            _look_at(work, known, reader, chosen.clip_s)
        clips = sum(len(work.described.clips) for work in works)
        progress = describer.progress("clips", clips)
        jobs = _clip_jobs(works, texts, describer, reader)
        in_parallel(jobs, describer.backend.concurrency, progress)
    _tell_unseen(works)
    _write_texts(works, texts, writer, chosen.window)
    return _publish(storage, source, works, describer, writer, texts_version(texts), look)


def _look_at(work: _Work, known: dict[str, Content], reader: ClipReader, clip_s: float) -> None:
    """Find out what is in a file, and cut it into clips."""
    if work.reason:
        return
    try:
        work.content = content_of(work.one, known, reader.duration)
    except InvalidVideo as error:
        work.reason = error.reason
        return
    work.described.clips = [Seen(clip) for clip in cut(work.content.duration, clip_s)]


def _clip_jobs(
    works: list[_Work], texts: CaptionTexts, asker: Asker, reader: ClipReader
) -> Iterator[Callable[[], None]]:
    """A job for each clip; pictures are read while earlier jobs are under way."""
    for work in works:
        content, clips = work.content, work.described.clips
        if content is None:
            continue
        unread = []
        for seen in clips:
            # An answer is found by what its pictures are made from, without the pictures.
            identity = reader.look.identity(content.sha256, seen.clip)
            prompt = clip_prompt(texts, seen.clip, Pictures((), identity))
            if asker.settled(prompt, ClipCaption):
                yield partial(describe_clip, asker, prompt, seen)
            else:
                unread.append(seen.clip)
        try:
            for clip, pictures in reader.read(work.one.path, content.sha256, unread):
                prompt = clip_prompt(texts, clip, pictures)
                yield partial(describe_clip, asker, prompt, clips[clip.number])
        except InvalidVideo as error:
            work.reason = error.reason


def _tell_unseen(works: list[_Work]) -> None:
    """Clips of a video that broke off while it was decoded have its reason."""
    for work in works:
        for seen in work.described.clips:
            if seen.caption is None and not seen.reason:
                seen.reason = work.reason


def _write_texts(works: list[_Work], texts: CaptionTexts, asker: Asker, window: int) -> None:
    """Events of each video, each event, and the whole video."""
    videos, workers = [work.described for work in works], asker.backend.concurrency
    jobs = [partial(find_events, asker, texts, video, window) for video in videos]
    in_parallel(jobs, workers, asker.progress("videos divided", len(jobs)))
    jobs = [
        partial(describe_event, asker, texts, video, number)
        for video in videos
        for number in range(len(video.events))
    ]
    in_parallel(jobs, workers, asker.progress("events", len(jobs)))
    jobs = [partial(describe_whole, asker, texts, video) for video in videos]
    in_parallel(jobs, workers, asker.progress("whole videos", len(jobs)))


def _publish(
    storage: Storage,
    source: str,
    works: list[_Work],
    describer: Asker,
    writer: Asker,
    texts: str,
    look: Look,
) -> CaptionReport:
    seen_by = {"model": describer.backend.model, "texts": texts}
    told_by = {"model": writer.backend.model, "texts": texts}
    clips = [
        clip_row(work.one.video, seen, seen_by) for work in works for seen in work.described.clips
    ]
    events = [
        event_row(work.one.video, number, event, told_by)
        for work in works
        for number, event in enumerate(work.described.events)
    ]
    rows = [_video_row(work, told_by) for work in works]
    names = [layout.captions(source, name) for name in (CLIPS, EVENTS, VIDEOS)]
    for name, some, schema in zip(
        names, (clips, events, rows), (CLIP_SCHEMA, EVENT_SCHEMA, VIDEO_SCHEMA), strict=True
    ):
        write_table(storage, name, some, schema)
    aside = Counter(f"clips set aside: {row['reason']}" for row in clips if row["reason"])
    aside += Counter(f"videos not read: {work.reason}" for work in works if work.reason)
    aside += Counter(f"not made: {what}" for work in works for what in work.described.lacks)
    # How a file looked on this machine is no part of what is known of the video.
    facts = [{k: v for k, v in row.items() if k != "changed_ns"} for row in rows]
    return CaptionReport(
        version=data_version([clips, events, facts]),
        counts={"videos": len(rows), "clips": len(clips), "events": len(events), **aside},
        config={
            "describer": describer.backend.model,
            "writer": writer.backend.model,
            "texts": texts,
            "frames": look.frames,
            "side": look.side,
        },
        files=names,
        videos=[
            {name: row[name] for name in ("video", "duration", "clips", "captioned", "reason")}
            for row in rows
        ],
        examples=[
            {name: row[name] for name in ("video", "clip", "summary")}
            for row in clips
            if row["summary"]
        ][:5],
        answers=dict(describer.counts + (writer.counts if writer is not describer else Counter())),
    )


def _video_row(work: _Work, made_by: dict[str, str]) -> dict[str, Any]:
    content, described = work.content, work.described
    return {
        "video": work.one.video,
        "file": work.one.name.encode(errors="replace").decode(),
        "size": content.size if content else None,
        "changed_ns": content.changed_ns if content else None,
        "sha256": content.sha256 if content else None,
        "duration": content.duration if content else None,
        "clips": len(described.clips),
        "captioned": len(described.captioned),
        "description": described.text,
        "reason": "; ".join(filter(None, [work.reason, *described.reasons])),
        **made_by,
    }
