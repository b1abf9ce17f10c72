"""What was collected, as a person should see it: nothing here stops what follows."""

from pathlib import Path

import pytest

from assets.annotations.checks import usable
from assets.annotations.collect import AnnotationReport
from assets.collections.checks import all_there
from assets.collections.collection import CollectionReport
from assets.deployment.settings import Settings
from tests.servers.world import make_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path, {"mine": {"kind": "drop", "folder": "drop"}})


def annotations(read: int, rejected: int, problems: tuple[str, ...] = ()) -> AnnotationReport:
    counts = {"rows_read": read, "rows": read - rejected, "rejected": rejected, "parts": 1}
    return AnnotationReport("v", {}, counts, {"no_answer": rejected}, [], list(problems))


def test_a_few_rows_set_aside_are_no_trouble(settings: Settings) -> None:
    verdict = usable(annotations(100, 3), settings)
    assert (verdict.passed, verdict.message) == (True, "97 of 100 rows can be used")


def test_many_rows_set_aside_and_unreadable_landing_files_are_warnings(settings: Settings) -> None:
    many, unreadable = (
        usable(annotations(100, 30), settings),
        usable(annotations(9, 0, ("x.csv: empty",)), settings),
    )
    assert [(v.passed, v.blocks) for v in (many, unreadable)] == [(False, False)] * 2
    assert "x.csv: empty" in unreadable.message


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
