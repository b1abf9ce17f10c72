"""What was collected of a collection, as a person should see it: nothing that follows stops."""

from __future__ import annotations

from assets.collections.checks import all_there
from assets.collections.collection import CollectionReport


def test_sets_that_the_hub_lacks_are_named() -> None:
    rows = [
        {"annotation": "a.json", "state": "ready"},
        {"annotation": "b.json", "state": "not in the repository"},
    ]
    verdict = all_there(CollectionReport("v", {}, {}, rows))
    assert (verdict.passed, verdict.blocks) == (False, False)
    assert (
        "1 of 2 annotation files of the mixture; the hub has nothing for b.json" in verdict.message
    )
    assert all_there(CollectionReport("v", {}, {}, rows[:1])).passed
