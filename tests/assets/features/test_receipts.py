"""Feature files that are known to be whole, without reading them again."""

import shutil
import time

import pytest
import xxhash

from assets.features import extract as extraction
from assets.records.product_files import KnownFiles
from tests.assets.features.conftest import (
    FOLDER,
    copy_videos,
    feature_file,
    video_path,
    videos_of,
)
from tests.model.media import clips
from training.formats import layout
from training.formats.feature_file import HEADER_ROOM
from training.formats.receipts import Stamps, find_damage
from training.formats.storage import Storage

# Each extraction starts processes that import torch.
pytestmark = pytest.mark.slow

NAMES = ("panda/a", "panda/b")


@pytest.fixture(scope="module")
def part(tmp_path_factory, run):
    root = tmp_path_factory.mktemp("root")
    for number, name in enumerate(NAMES):
        clips.encode(video_path(root, name), 30 + number, rate=10)
    return root, run(root, videos_of(root))


@pytest.fixture
def copied(part, tmp_path):
    """A copy with the features and without any receipt or stamp."""
    root, _ = part
    other = copy_videos(root, tmp_path / "copy")
    shutil.copytree(root / layout.FEATURES, other / layout.FEATURES)
    time.sleep(0.15)  # a tick of the file system, so that stamps are taken
    return other


def test_a_file_was_hashed_while_it_was_written(part):
    root, report = part
    entries = [video.entry(FOLDER) for video in report.videos]
    assert [entry.path for entry in entries] == [layout.feature_file(FOLDER, n) for n in NAMES]
    for name, entry in zip(NAMES, entries, strict=True):
        data = feature_file(root, name).read_bytes()
        digest = xxhash.xxh64(data[HEADER_ROOM:] + data[:HEADER_ROOM]).hexdigest()
        assert (entry.size, entry.hash) == (len(data), f"xxh64+8192:{digest}")
    assert find_damage(Storage(str(root)), entries, Stamps(), full=True) == []


def test_what_an_ended_run_made_is_not_read_again(part, run, monkeypatch):
    root, report = part
    monkeypatch.setattr(extraction, "hash_both", None)  # whoever calls it fails
    again = run(root, videos_of(root))
    assert again.counts["already_done"] == 2
    assert again.videos == report.videos


def test_a_file_that_no_receipt_names_is_read_once(copied, part, run, monkeypatch):
    _, report = part
    assert run(copied, videos_of(copied)).videos == report.videos
    monkeypatch.setattr(extraction, "hash_both", None)
    storage = Storage(str(copied))
    assert KnownFiles(storage, "features").entry(report.videos[0].entry(FOLDER).path) is not None
    assert run(copied, videos_of(copied)).videos == report.videos


@pytest.mark.parametrize("place", [HEADER_ROOM + 5000, -1])
def test_a_damaged_file_that_no_receipt_names_is_set_aside_and_made_again(
    copied, part, run, place, capsys
):
    _, report = part
    path = feature_file(copied, NAMES[0])
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    mended = run(copied, videos_of(copied))
    assert (mended.counts["done"], mended.counts["already_done"]) == (1, 1)
    assert (mended.videos, mended.version) == (report.videos, report.version)
    aside = copied / f"damaged/{layout.feature_file(FOLDER, NAMES[0])}.1"
    assert aside.read_bytes() == data
    assert "has other content than its header says; set aside as" in capsys.readouterr().out
