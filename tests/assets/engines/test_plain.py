"""What a job is sent and sends back."""

from __future__ import annotations

from pathlib import Path

import pytest

from assets.annotations.catalogue import PresentVideo
from assets.conversations.grouping import GroupingReport
from assets.deployment.settings import load_settings
from assets.engines.plain import dumps, loads
from assets.features.jobs import ExtractedVideo
from assets.features.report import FeatureReport
from assets.records.coverage import Coverage
from assets.records.verdict import Verdict
from tests.training.generated_samples import make_run
from training.formats.storage import Storage


def there_and_back(value):
    return loads(dumps(value, print), print)


def test_every_record_of_the_graph_comes_back_equal(tmp_path):
    extracted = ExtractedVideo("panda/a", 3, 2.5, False, "x", 7, "y")
    values = [
        load_settings(),
        make_run(tmp_path),
        PresentVideo("panda/a", 1.5, "videos/panda/a.mp4", False, 3),
        FeatureReport(frame_strip=b"\x89PNG\xff", videos=[extracted], table=[{"b": 1, "a": None}]),
        GroupingReport("v", {"samples": 1}, Coverage()),
        Verdict("loss", "fell", facts={"streams": [{"first": float("inf")}]}),
        {"tuple": (1, "a"), "path": Path("/x/y"), "numbers": {1: 2.0}, "!": "mark"},
    ]
    assert there_and_back(values) == values
    assert list(there_and_back({"b": 1, "a": 2})) == ["b", "a"]


def test_a_storage_is_the_same_root_and_the_log_the_jobs_own():
    storage = there_and_back(Storage("memory://bucket/a"))
    assert storage.root == "memory://bucket/a"
    said = []
    loads(dumps([print], print), said.append)[0]("word")
    assert said == ["word"]


def test_what_is_no_record_is_refused_on_both_sides():
    with pytest.raises(TypeError, match="cannot be sent to a job"):
        dumps(object(), print)
    for name in ("os:system", "assets.engines.call:call", "assets.engines.call:dg.Failure"):
        text = f'{{"!": "record", "of": "{name}", "fields": {{}}}}'
        with pytest.raises(ValueError, match=r"no function or record|is no record"):
            loads(text, print)
