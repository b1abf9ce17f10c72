"""The benchmark of the checks runs, and counts every row once."""

import pytest

from benchmarks.questions import PRESETS, run, table


@pytest.mark.slow
def test_every_row_is_counted_under_what_is_wrong_with_it(tmp_path):
    result = run(PRESETS["tiny"], tmp_path)
    found = result["found"]
    assert sum(counts.total() for counts in found.values()) == result["rows"] > 50
    for error in ("answer told", "wrong time", "no video needed"):
        assert found[error]["used"] == 0, error
    assert table(found).count("\n") == 1 + len(found)
