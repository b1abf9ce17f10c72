"""What a source may cost, and what it has cost: over all runs, and whatever is killed.

Before a prompt is sent, the most that it can cost is written down; once its answer is there, what
it did cost counts instead. A run that is killed in between has counted too much, never too little.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass

from assets.endpoints.options import Budget
from assets.fetching.errors import OperatorError
from training.formats import layout
from training.formats.storage import Storage

MILLION = 1_000_000


class BudgetSpentError(OperatorError):
    """The next question could pass the budget."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one prompt, or of many."""

    requests: int = 0
    tokens: int = 0
    money: float = 0.0

    @classmethod
    def of(cls, tokens: tuple[int, int], prices: tuple[float, float]) -> Cost:
        """The cost of one prompt from its tokens, read and written, and their prices a million."""
        money = sum(count * price for count, price in zip(tokens, prices, strict=True)) / MILLION
        return cls(1, sum(tokens), money)

    def plus(self, other: Cost, sign: int = 1) -> Cost:
        """The sum of both, or the difference."""
        return Cost(
            self.requests + sign * other.requests,
            self.tokens + sign * other.tokens,
            round(self.money + sign * other.money, 9),
        )

    @property
    def sentence(self) -> str:
        """`240 requests, 1,200,000 tokens, 0.42`."""
        money = f", {self.money:,.4g}" if self.money else ""
        return f"{self.requests:,} requests, {self.tokens:,} tokens{money}"


class Ledger:
    """The cost of one source so far, in a file below the root. Many threads may reserve.

    Attributes:
        spent: with what is still being answered, at its highest price.
    """

    def __init__(self, storage: Storage, source: str, budget: Budget) -> None:
        self._storage, self._rel, self._budget = storage, layout.spent(source), budget
        self._lock = threading.Lock()
        exists = storage.exists(self._rel)
        self.spent = Cost(**storage.read_json(self._rel)) if exists else Cost()

    def reserve(self, most: Cost) -> None:
        """Count a prompt that is about to be sent, at the most that it can cost.

        Raises:
            BudgetSpentError: the budget could be passed by it; it must not be sent.
        """
        with self._lock:
            after = self.spent.plus(most)
            for name, limit in self._budget:
                if limit is not None and getattr(after, name) > limit:
                    raise BudgetSpentError(
                        f"questions.budget.{name} is {limit:,}: {self.spent.sentence} are spent, "
                        f"and the next question may take {getattr(most, name):,.6g}. Every answer "
                        "so far is kept; raise the budget and materialize again to go on"
                    )
            self._write(after)

    def settle(self, most: Cost, real: Cost) -> None:
        """Count what a prompt did cost in place of what was reserved for it."""
        with self._lock:
            self._write(self.spent.plus(most, -1).plus(real))

    def _write(self, spent: Cost) -> None:
        self._storage.write_json(self._rel, asdict(spent))
        self.spent = spent
