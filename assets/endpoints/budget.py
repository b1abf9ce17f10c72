"""What a source may cost, and what it has cost: over all runs, and whatever is killed.

Before a prompt is sent, the most that it can cost is written down; once its answer is there, what
it did cost counts instead. A run that is killed in between has counted too much, never too little.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

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
    """The cost of one source so far, in a file below the root. Many threads may reserve, and below
    a local root many processes: captions and questions of a source may be made at the same time.

    Attributes:
        spent: with what is still being answered, at its highest price.
    """

    def __init__(self, storage: Storage, source: str, budget: Budget) -> None:
        self._storage, self._rel, self._budget = storage, layout.spent(source), budget
        self._lock = threading.Lock()
        self.spent = self._read()

    def reserve(self, most: Cost) -> None:
        """Count a prompt that is about to be sent, at the most that it can cost.

        Raises:
            BudgetSpentError: the budget could be passed by it; it must not be sent.
        """
        with self._alone():
            after = self.spent.plus(most)
            for name, limit in self._budget:
                if limit is not None and getattr(after, name) > limit:
                    raise BudgetSpentError(
                        f"questions.budget.{name} is {limit:,}: {self.spent.sentence} are spent, "
                        f"and the next question may take {getattr(most, name):,}. Every answer "
                        "so far is kept; raise the budget and materialize again to go on"
                    )
            self._write(after)

    def settle(self, most: Cost, real: Cost) -> None:
        """Count what a prompt did cost in place of what was reserved for it."""
        with self._alone():
            self._write(self.spent.plus(most, -1).plus(real))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else counts meanwhile, and what others have counted is known."""
        with self._lock:
            if not self._storage.is_local:
                yield
                return
            path = Path(f"{self._storage.path(self._rel)}.lock")
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # ends with the process, however that dies
                self.spent = self._read()
                yield

    def _read(self) -> Cost:
        exists = self._storage.exists(self._rel)
        return Cost(**self._storage.read_json(self._rel)) if exists else Cost()

    def _write(self, spent: Cost) -> None:
        self._storage.write_json(self._rel, asdict(spent))
        self.spent = spent
