"""The forms that models are asked to answer in, and how a caption is held."""

from __future__ import annotations

from pydantic import Field

from model.configuration import Section

SIDES = ("temporality", "spatiality", "objects", "actions", "scene", "summary")


class ClipCaption(Section):
    """One clip from six sides."""

    temporality: str
    spatiality: str
    objects: str
    actions: str
    scene: str
    summary: str = Field(min_length=1)


class FoundEvent(Section):
    """An event as clips, both numbers belong to it."""

    first_clip: int
    last_clip: int
    title: str
    summary: str


class FoundEvents(Section):
    """The events of consecutive clips."""

    events: list[FoundEvent]


class Summary(Section):
    """A text."""

    text: str = Field(min_length=1)
