"""What tells that a job of an extraction got further than the one before it."""

from __future__ import annotations

import os

import pytest

from assets.annotations.catalogue import PresentVideo
from assets.features.extract import reached
from training.formats import layout
from training.formats.storage import Storage

VIDEOS = [PresentVideo(f"panda/{name}", 60.0, name, f"{name}.mp4", False, None) for name in "abc"]


@pytest.fixture
def storage(tmp_path):
    made = Storage(str(tmp_path))
    made.write_bytes(layout.feature_file(layout.features("7b"), "panda/a"), b"features")
    return made


def now(storage):
    return reached(storage, "7b", VIDEOS)


def test_another_file_or_another_quarantined_video_is_progress(storage):
    values = [now(storage)]
    storage.write_bytes(layout.feature_file(layout.features("7b"), "panda/b"), b"features")
    values.append(now(storage))
    storage.write_json(layout.feature_quarantine(layout.features("7b"), "panda/c"), {})
    values.append(now(storage))
    assert all(values[index] not in values[:index] for index in range(3))


def test_a_file_that_is_made_again_is_progress(storage):
    before = now(storage)
    storage.write_bytes(layout.feature_file(layout.features("7b"), "panda/a"), b"features")
    assert now(storage) != before


def test_a_record_that_each_run_writes_anew_is_none(storage):
    name = layout.feature_quarantine(layout.features("7b"), "panda/c")
    storage.write_json(name, {"attempts": 1})
    before = now(storage)
    storage.write_json(name, {"attempts": 2})
    os.utime(storage.path(name), (0, 0))
    assert now(storage) == before


def test_the_videos_of_another_part_are_none(storage):
    before = now(storage)
    storage.write_bytes(layout.feature_file(layout.features("7b"), "panda/other"), b"features")
    assert now(storage) == before
