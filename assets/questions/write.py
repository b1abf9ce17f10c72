"""Questions from the captions of one video: for each task and form, for each window of clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from assets.captions.describe import Described, Seen, clip_line, windows
from assets.captions.texts import datum, filled
from assets.endpoints.asker import Asker, SetAsideError
from assets.endpoints.json_answers import schema_of
from assets.endpoints.protocol import Prompt
from assets.questions.rows import ChoiceRows, OpenRows, Row, make_row
from assets.questions.texts import QuestionTexts, Task, Topic

NOTHING_SEEN = "nothing_described"


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be written: some rows of one task and form, about one window of a video."""

    video: Described
    duration: float
    topic_name: str
    topic: Topic
    task_name: str
    task: Task
    clips: Sequence[Seen]
    is_choice: bool


def orders(texts: QuestionTexts, video: Described, duration: float, window: int) -> Iterator[Order]:
    """Everything that is to be written about a video: as much of either form."""
    for some in windows(video.captioned, window):
        for topic_name, topic, task_name, task in texts.all_tasks():
            for is_choice in (False, True):
                yield Order(video, duration, topic_name, topic, task_name, task, some, is_choice)


def write_rows(
    asker: Asker, texts: QuestionTexts, order: Order, number: int
) -> tuple[list[Row], str]:
    """The rows of an order, at most `number`; or none, and why."""
    kind: type[ChoiceRows] | type[OpenRows] = ChoiceRows if order.is_choice else OpenRows
    lines = topic_lines(order.video, order.clips, order.topic.sees)
    if not lines:  # events that could not be found: a model would invent them
        return [], NOTHING_SEEN
    values = {
        "number": number,
        "topic": order.topic_name,
        "task": order.task.says,
        "example": order.task.example,
        "whole": datum(order.video.text),
        "clips": lines,
    }
    template = texts.multiple_choice if order.is_choice else texts.open_ended
    shape = f"{'choice' if order.is_choice else 'open'}_rows"
    prompt = Prompt(texts.system, filled(template, values), shape, schema_of(kind))
    try:
        answer, key = asker.ask_with_key(prompt, kind)
    except SetAsideError as error:
        return [], str(error)
    rows = [
        make_row(order.video, order.duration, order.topic_name, order.task_name, written, key)
        for written in answer.rows[:number]
    ]
    return rows, ""


def topic_lines(video: Described, clips: Sequence[Seen], sees: str) -> str:
    """Clips as lines of a prompt, seen from one side; or the events that they belong to."""
    if sees != "events":
        return "\n".join(clip_line(seen, sees) for seen in clips)
    numbers = {seen.clip.number for seen in clips}
    return "\n".join(
        f"clips {event.found.first_clip} to {event.found.last_clip} "
        f"({event.start:.1f}-{event.end:.1f} s): {datum(event.text or event.found.summary)}"
        for event in video.events
        if numbers & set(range(event.found.first_clip, event.found.last_clip + 1))
    )
