"""The table of annotation files, built in or a user's own."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from assets.collections.mixtures import MixtureEntry, read_mixture
from training.formats.kinds import KINDS


def test_the_built_in_table_has_every_kind() -> None:
    entries = read_mixture()
    assert set(Counter(entry.kind for entry in entries)) == set(KINDS)
    assert len(entries) == 237


def test_a_share_is_the_first_rows_without_rounding_errors() -> None:
    entry = MixtureEntry("llavavideo_si", "LLaVA-OneVision", "a.json", Decimal("0.29"))
    assert [entry.rows(n) for n in (0, 1, 100, 1000)] == [0, 0, 29, 290]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("llavavideo_sii,LLaVA-OneVision,a.json,1", "line 2: unknown kind 'llavavideo_sii'"),
        ("llavavideo_si,LLaVA-TwoVision,a.json,1", "unknown collection"),
        ("llavavideo_si,LLaVA-OneVision,../a.json,1", "not a file name below"),
        ("llavavideo_si,LLaVA-OneVision,a.json,1.5", "fraction 1.5 is not in"),
        ("llavavideo_si,LLaVA-OneVision,a.json,half", "'half' is not a number"),
        (
            "llavavideo_si,LLaVA-OneVision,a.json,1\nllavavideo_si,LLaVA-OneVision,a.json,0.5",
            "stands twice",
        ),
    ],
)
def test_a_broken_table_is_an_error_that_names_the_line(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "mixtures.csv"
    path.write_text(f"kind,collection,annotation,fraction\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_mixture(path)


def test_a_table_without_a_column_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mixtures.csv"
    path.write_text("kind,annotation\n")
    with pytest.raises(ValueError, match="columns collection, fraction are missing"):
        read_mixture(path)
