"""One video from its clips to a description of the whole: clips, events, each event, the video."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from assets.captions.forms import ClipCaption, FoundEvent, FoundEvents, Summary
from assets.captions.frames import Clip
from assets.captions.texts import CaptionTexts, datum, filled
from assets.endpoints.asker import Asker, SetAsideError
from assets.endpoints.json_answers import MalformedAnswerError, schema_of
from assets.endpoints.protocol import Pictures, Prompt

_NUMBER = re.compile(r" \d+\b")
NOTHING = "nothing"  # stands before the first event, and after the last one


@dataclass(slots=True)
class Seen:
    """A clip and what is known of it.

    Attributes:
        caption: None where there is none.
        reason: why there is none.
        key: of the stored answer that the caption stands in.
    """

    clip: Clip
    caption: ClipCaption | None = None
    reason: str = ""
    key: str = ""


@dataclass(slots=True)
class Event:
    """A stretch of a video in which one thing happens.

    Attributes:
        found: what the first look at all clips gave.
        start: seconds.
        end: seconds.
        text: its description; empty where there is none.
    """

    found: FoundEvent
    start: float
    end: float
    text: str = ""


@dataclass(slots=True)
class Described:
    """All that is known of one video.

    Attributes:
        video: `source/id`.
        reasons: what could not be made of it, and why.
    """

    video: str
    clips: list[Seen] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    text: str = ""
    reasons: list[str] = field(default_factory=list)

    @property
    def lacks(self) -> list[str]:
        """What could not be made of it, by kind: `event 3 malformed` is `event malformed`."""
        return [_NUMBER.sub("", reason) for reason in self.reasons]

    @property
    def captioned(self) -> list[Seen]:
        return [seen for seen in self.clips if seen.caption is not None]


def clip_prompt(texts: CaptionTexts, clip: Clip, pictures: Pictures) -> Prompt:
    """What is asked about the pictures of a clip."""
    times = {"start": f"{clip.start:.1f}", "end": f"{clip.end:.1f}"}
    text = filled(texts.clip, times)
    return Prompt(texts.system, text, "clip", schema_of(ClipCaption), pictures)


def describe_clip(asker: Asker, prompt: Prompt, seen: Seen) -> None:
    """Fill in what is seen in a clip, or why there is nothing."""
    try:
        seen.caption, seen.key = asker.ask_with_key(prompt, ClipCaption)
    except SetAsideError as error:
        seen.reason = str(error)


def windows(clips: Sequence[Seen], size: int) -> list[list[Seen]]:
    """Consecutive clips in as few windows of at most `size` as it takes, about equally long."""
    number = -(-len(clips) // size)
    ends = [round(len(clips) * n / number) for n in range(number + 1)] if number else []
    return [list(clips[a:b]) for a, b in pairwise(ends)]


def find_events(asker: Asker, texts: CaptionTexts, video: Described, window: int) -> None:
    """Divide a video into events. An event does not go on from one window into the next."""
    for some in windows(video.captioned, window):
        lines = "\n".join(clip_line(seen, "summary") for seen in some)
        prompt = Prompt(
            texts.system, filled(texts.events, {"clips": lines}), "events", schema_of(FoundEvents)
        )
        try:
            answer = asker.ask(prompt, FoundEvents, covers([seen.clip.number for seen in some]))
        except SetAsideError as error:
            video.reasons.append(f"events {error}")
            continue
        bounds = {seen.clip.number: seen.clip for seen in some}
        video.events += [
            Event(one, bounds[one.first_clip].start, bounds[one.last_clip].end)
            for one in answer.events
        ]


def describe_event(asker: Asker, texts: CaptionTexts, video: Described, number: int) -> None:
    """Describe an event from its clips and from what stands beside it."""
    event = video.events[number]
    inside = range(event.found.first_clip, event.found.last_clip + 1)
    lines = [clip_line(seen, None) for seen in video.captioned if seen.clip.number in inside]
    beside = [
        datum(video.events[n].found.summary) if 0 <= n < len(video.events) else NOTHING
        for n in (number - 1, number + 1)
    ]
    values = {
        "start": f"{event.start:.1f}",
        "end": f"{event.end:.1f}",
        "clips": "\n".join(lines),
        "before": beside[0],
        "after": beside[1],
    }
    prompt = Prompt(texts.system, filled(texts.event, values), "event", schema_of(Summary))
    try:
        event.text = asker.ask(prompt, Summary).text
    except SetAsideError as error:
        video.reasons.append(f"event {number} {error}")


def describe_whole(asker: Asker, texts: CaptionTexts, video: Described) -> None:
    """Describe a video from its events."""
    lines = "\n".join(
        f"{event.start:.1f}-{event.end:.1f} s: {datum(event.text)}"
        for event in video.events
        if event.text
    )
    if not lines:
        return
    prompt = Prompt(
        texts.system, filled(texts.whole, {"events": lines}), "whole", schema_of(Summary)
    )
    try:
        video.text = asker.ask(prompt, Summary).text
    except SetAsideError as error:
        video.reasons.append(f"whole {error}")


def clip_line(seen: Seen, side: str | None) -> str:
    """A clip as a line of a prompt: its number, its seconds, and one side of it, or all."""
    assert seen.caption is not None
    sides = seen.caption.model_dump()
    text = sides[side] if side else "; ".join(f"{name}: {said}" for name, said in sides.items())
    clip = seen.clip
    return f"clip {clip.number} ({clip.start:.1f}-{clip.end:.1f} s): {datum(text)}"


def covers(numbers: Sequence[int]) -> Callable[[FoundEvents], None]:
    """A check that events hold each of the clips once, in their order."""

    def check(answer: FoundEvents) -> None:
        held = [n for e in answer.events for n in numbers if e.first_clip <= n <= e.last_clip]
        ends = {n for e in answer.events for n in (e.first_clip, e.last_clip)}
        if held != list(numbers) or not ends <= set(numbers):
            raise MalformedAnswerError(
                f"the events must hold each clip from {numbers[0]} to {numbers[-1]} once, in order"
            )

    return check
