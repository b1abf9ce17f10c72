"""What writers of questions and their checks are told (`questions.yaml`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from model.configuration import Section


class Task(Section):
    """One sort of question."""

    says: str
    example: str


class Topic(Section):
    """Tasks that look at the same side of a video."""

    sees: Literal["temporality", "spatiality", "objects", "actions", "scene", "summary", "events"]
    tasks: dict[str, Task]


class QuestionTexts(Section):
    """`questions.yaml`."""

    version: int
    system: str
    open_ended: str
    multiple_choice: str
    blind: str
    reword: str
    second: str
    same: str
    contradiction: str
    topics: dict[str, Topic]

    def all_tasks(self) -> Iterator[tuple[str, Topic, str, Task]]:
        """Topic and task by name, in order."""
        for topic_name, topic in self.topics.items():
            for task_name, task in topic.tasks.items():
                yield topic_name, topic, task_name, task
