"""What a run counts: in one step, and since its start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class StepTotals:
    """What one step did, on one rank or summed over all.

    Attributes:
        loss_sum: loss summed over supervised tokens.
        supervised, tokens, samples, packs: how many there were.
        taught: packs with supervised tokens.
        work: floating point operations of the model.
        waited_s: time spent waiting for data.
    """

    loss_sum: float = 0.0
    supervised: float = 0
    tokens: float = 0
    samples: float = 0
    packs: float = 0
    taught: float = 0
    work: float = 0.0
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TrainState:
    """What a checkpoint remembers of the run besides tensors and the data position.

    Attributes:
        step: optimizer steps so far, those that were skipped included.
        samples, tokens, supervised: seen so far, on all ranks.
        seconds: that the steps took.
        skipped: steps with a loss or gradient that is not finite.
        skipped_in_a_row: the newest of them.
        dropped: samples that could not be used, on all ranks, by reason.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    supervised: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of_saved(values: Mapping[str, Any]) -> TrainState:
        """From a checkpoint, also of a release that counted less, or more."""
        known = {item.name for item in fields(TrainState)}
        return TrainState(**{name: value for name, value in values.items() if name in known})

    def after(
        self, totals: StepTotals, finite: bool, seconds: float, dropped: Mapping[str, int]
    ) -> TrainState:
        """The state after one more step.

        Args:
            dropped: samples of the step that could not be used, on all ranks, by reason.
        """
        return TrainState(
            step=self.step + 1,
            samples=self.samples + int(totals.samples),
            tokens=self.tokens + int(totals.tokens),
            supervised=self.supervised + int(totals.supervised),
            seconds=self.seconds + seconds,
            skipped=self.skipped + (not finite),
            skipped_in_a_row=0 if finite else self.skipped_in_a_row + 1,
            dropped=dict(sorted((Counter(self.dropped) + Counter(dropped)).items())),
        )
