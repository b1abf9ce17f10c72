"""What was collected of the annotations, as a person should see it: nothing that follows stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from assets.annotations.checks import usable
from assets.annotations.collect import AnnotationReport
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
