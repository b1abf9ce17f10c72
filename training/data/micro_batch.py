"""What a loader gives to training, and what training needs of a loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from model.inputs import SampleInputs


@dataclass(frozen=True, slots=True)
class HeldOutQuestion:
    """The first question of a held-out sample.

    Attributes:
        prompt: ends where the answer begins.
        question, answer: as text.
    """

    prompt: SampleInputs
    question: str
    answer: str


@dataclass(slots=True)
class MicroBatch:
    """Some samples of one rank, of one stream. So are all micro-batches of one optimizer step, on
    all ranks, unless the run says otherwise (`stream_batch`).

    Attributes:
        samples: at most as many as the run's micro-batch; fewer, or none, where some were dropped.
        sample_ids: their ids.
        stream: number of the stream.
        dropped: (name, reason) of each sample that is missing here.
    """

    samples: list[SampleInputs]
    sample_ids: list[str]
    stream: int
    dropped: list[tuple[str, str]] = field(default_factory=list)


class MicroBatchLoader(Protocol):
    """Micro-batches of one rank; iterating goes over what is left of one epoch.

    Attributes:
        steps_per_epoch: optimizer steps of an epoch.
        notes: what should be said before the first step.
        held_out: rows that are never trained on and are measured, the same on all ranks.
    """

    steps_per_epoch: int
    notes: Sequence[str]
    held_out: Sequence[int]

    def __iter__(self) -> Iterator[MicroBatch]: ...

    def state_dict(self) -> dict[str, Any]:
        """The position after the last micro-batch that was taken, as JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position; to be called before the first micro-batch is taken."""

    def held_out_sample(self, row: int) -> tuple[SampleInputs, int] | None:
        """A held-out sample and the number of its stream; None where it cannot be used."""

    def held_out_question(self, row: int) -> HeldOutQuestion | None:
        """The first question of a held-out sample; None where it cannot be asked."""

    def text_of(self, ids: Sequence[int]) -> str:
        """What the ids of an answer say, up to the end of the turn."""

    def close(self) -> None:
        """End what it started."""
