"""Sentences about what is out of date, what waits, and what is tried again: for the UI's check
`up_to_date`, the sensor's log, notices and the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from assets.automation.runs import Tries
from assets.automation.state import State
from assets.records.lineage import split_product


@dataclass(frozen=True, slots=True)
class Waiting:
    """A product that is not as it should be today.

    Attributes:
        product: its name.
        reasons: why it is out of date; none where it was never made.
        holds: what it waits for.
        tries: automatic runs that failed to make it.
    """

    product: str
    reasons: tuple[str, ...]
    holds: tuple[str, ...]
    tries: Tries

    def __str__(self) -> str:
        lines = [f"out of date: {'; '.join(self.reasons)}" if self.reasons else "not made yet"]
        if self.holds:
            more = f"; and {len(self.holds) - 1:,} more" if len(self.holds) > 1 else ""
            lines.append(f"it waits: {self.holds[0]}{more}")
        if self.tries.fault:
            lines.append(describe_tries(self.tries))
        return ". ".join(lines)


def describe_tries(tries: Tries) -> str:
    """How often automation failed to make something, why, and what comes next."""
    assert tries.fault is not None
    runs = "its run" if tries.failed == 1 else f"{tries.failed} runs in a row"
    if tries.next_at is not None:
        after = f"tried again at {datetime.fromtimestamp(tries.next_at, UTC):%Y-%m-%d %H:%M} UTC"
    elif tries.fault.for_a_person:
        after = "not tried again, because somebody has to act first"
    else:
        after = "not tried again by itself: that was the last of the retries"
    return f"{runs} failed, run {tries.run[:8]} with: {_first_line(tries.fault.says)}; {after}"


def waiting(state: State, tries_of: Callable[[str], Tries] | None = None) -> Iterator[Waiting]:
    """Every product that is not as it should be today, in the order of the graph's names.

    Args:
        tries_of: how automation has tried to make a product. Asked only where nothing holds it.
    """
    for asset, node in state.graph.items():
        if not node.made:
            continue
        for name in state.products(asset):
            if found := why_not_up_to_date(state, name, tries_of):
                yield found


def why_not_up_to_date(
    state: State, name: str, tries_of: Callable[[str], Tries] | None = None
) -> Waiting | None:
    """Why a product is not as it should be today; None where it is, and where it was never made and
    nobody asks for it.
    """
    reasons = state.stale_reasons(name)
    if not state.is_due(name) and not reasons:
        return None
    holds = state.holds(name)
    tries = tries_of(name) if tries_of and not holds else Tries()
    if state.is_missing(name) and not holds and not tries.fault:
        return None  # it is about to be made
    return Waiting(name, tuple(reasons), tuple(holds), tries)


def failed_checks(state: State) -> dict[str, str]:
    """Product -> what its checks found, of those that hold what is made from them."""
    there = {
        name for asset, node in state.graph.items() if node.made for name in state.products(asset)
    }
    return {
        name: record.faults
        for name, record in state.records.items()
        if record.failed and name in there
    }


def waiting_for(state: State, name: str) -> list[str]:
    """The assets that wait because a product is not there or did not pass its checks."""
    asset = split_product(name)[0]
    below, queue = [], [asset]
    while queue:
        parent = queue.pop(0)
        for child, node in state.graph.items():
            if parent in node.parents and child not in below:
                below.append(child)
                queue.append(child)
    return below


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else text
