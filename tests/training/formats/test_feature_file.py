"""The feature file and the store that serves it from local and remote roots."""

import json
import os
import struct
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from tests.memory import forget_peak, peak_mib
from training.formats import feature_store
from training.formats.feature_file import (
    HEADER_ROOM,
    FeatureFile,
    FeatureWriter,
    read_header,
    write_features,
)
from training.formats.feature_store import FeatureStore
from training.formats.storage import Storage


def some_features(frames: int, seed: int = 0, tokens: int = 16, width: int = 24) -> torch.Tensor:
    return torch.randn(
        (frames, tokens, width), generator=torch.Generator().manual_seed(seed)
    ).bfloat16()


@pytest.fixture
def remote(request, tmp_path):
    """A remote root: a fresh in-memory file system."""
    root = f"memory://{request.node.name}"
    yield Storage(root, cache=tmp_path / "cache")
    fsspec.filesystem("memory").store.clear()


def put(storage: Storage, video: str, frames: int, seed: int = 0) -> torch.Tensor:
    features = some_features(frames, seed)
    with storage.writing(f"f/{video}.safetensors") as path:
        write_features(path, features, np.arange(frames), {"duration": str(frames)})
    return features


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 7), st.data())
def test_frames_come_back_bit_for_bit_in_the_order_asked_for(
    tmp_path_factory, frames, tokens, width, data
):
    path = tmp_path_factory.mktemp("f") / "x.safetensors"
    features, pts = (
        some_features(frames, 1, tokens, width),
        np.cumsum(np.random.default_rng(frames).random(frames)),
    )
    write_features(path, features, pts, {"duration": "12.5", "decoder": "ü"})
    asked = data.draw(st.lists(st.integers(0, frames - 1), max_size=12))

    file = FeatureFile(path)

    assert torch.equal(file.read(), features)
    assert torch.equal(file.read(asked), features[asked])
    assert np.array_equal(file.pts, pts.astype(np.float32))
    assert (file.frames, file.duration, file.metadata["decoder"]) == (frames, 12.5, "ü")


def test_any_safetensors_reader_opens_the_file(tmp_path):
    features = some_features(7)
    write_features(tmp_path / "x.safetensors", features, np.arange(7) / 2, {"duration": "3.5"})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("features"), features)
        assert file.get_tensor("pts").tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3]
        assert file.metadata()["duration"] == "3.5"


def test_rows_written_piece_by_piece_give_the_same_bytes_as_all_at_once(tmp_path):
    features = some_features(10)
    write_features(tmp_path / "whole", features, np.arange(10), {"duration": "10"})
    rows = features.view(torch.uint16).numpy()
    writer = FeatureWriter(tmp_path / "pieces", 10, 16, 24)
    for start, stop in ((0, 1), (1, 7), (7, 10)):
        writer.write(rows[start:stop])
    writer.finish(np.arange(10), {"duration": "10"})
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()


def test_a_writer_that_lacks_rows_or_has_too_many_does_not_make_a_file(tmp_path):
    rows = some_features(4).view(torch.uint16).numpy()
    writer = FeatureWriter(tmp_path / "x", 5, 16, 24)
    writer.write(rows)
    with pytest.raises(ValueError, match="4 rows and 5 times for 5 frames"):
        writer.finish(np.arange(5), {"duration": "5"})
    with pytest.raises(ValueError, match="row 8 of 5"):
        writer.write(rows)
    with pytest.raises(ValueError, match=r"expected uint16 \[n, 16, 24\]"):
        writer.write(rows[:, :3])
    writer.close()
    with pytest.raises(ValueError, match="not a feature file"):
        read_header(tmp_path / "x")


def test_reading_a_few_frames_of_a_huge_file_loads_only_these(tmp_path):
    frames, tokens, width = 40_000, 64, 1152  # 5.9 GB, of which only the header exists
    path = tmp_path / "huge.safetensors"
    end = frames * tokens * width * 2
    header = json.dumps(
        {
            "__metadata__": {
                "format": "hour-llava-features-1",
                "content_xxh3": "",
                "duration": "40000",
            },
            "features": {
                "dtype": "BF16",
                "shape": [frames, tokens, width],
                "data_offsets": [0, end],
            },
            "pts": {"dtype": "F32", "shape": [frames], "data_offsets": [end, end + 4 * frames]},
        }
    ).encode()
    path.write_bytes(struct.pack("<Q", HEADER_ROOM - 8) + header.ljust(HEADER_ROOM - 8))
    os.truncate(path, HEADER_ROOM + end + 4 * frames)
    forget_peak()
    before = peak_mib()
    rows = FeatureFile(path).read(range(0, frames, 1000))
    assert rows.shape == (40, tokens, width)
    assert peak_mib() - before < 64


@pytest.mark.parametrize("index", [-1, 5])
def test_frames_that_are_not_there_are_an_error(tmp_path, index):
    write_features(tmp_path / "x", some_features(5), np.arange(5), {"duration": "5"})
    with pytest.raises(IndexError, match="of 5"):
        FeatureFile(tmp_path / "x").read([0, index])


def test_files_cut_short_or_of_another_kind_are_refused_by_name(tmp_path):
    good = tmp_path / "good.safetensors"
    write_features(good, some_features(5), np.arange(5), {"duration": "5"})
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cut\.safetensors.*its header promises"):
        FeatureFile(cut)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"features": torch.zeros(2, 3, 4)}, foreign)
    with pytest.raises(ValueError, match=r"foreign\.safetensors.*not a feature file"):
        FeatureFile(foreign)
    empty = tmp_path / "empty.safetensors"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.safetensors"):
        FeatureFile(empty)


@pytest.mark.parametrize("duration", ["inf", "-inf", "-1", "1e308", "nan", "16777217", "1e999"])
def test_a_duration_that_no_video_has_is_refused_by_name(tmp_path, duration):
    path = tmp_path / "odd.safetensors"
    write_features(path, some_features(5), np.arange(5), {"duration": duration})
    with pytest.raises(ValueError, match=r"odd\.safetensors: a duration of .*extract it again"):
        FeatureFile(path)


@pytest.mark.parametrize("duration", ["", "an hour", "0x10"])
def test_a_duration_that_is_no_number_is_refused_by_name(tmp_path, duration):
    path = tmp_path / "odd.safetensors"
    write_features(path, some_features(5), np.arange(5), {"duration": duration})
    with pytest.raises(ValueError, match=r"odd\.safetensors: not a feature file"):
        FeatureFile(path)


@pytest.mark.parametrize("duration", ["0", "0.04", "86400", "16777216"])
def test_a_duration_that_a_video_may_have_is_read(tmp_path, duration):
    path = tmp_path / "v.safetensors"
    write_features(path, some_features(5), np.arange(5), {"duration": duration})
    assert FeatureFile(path).duration == float(duration)


def test_metadata_without_duration_or_too_long_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lacks 'duration'"):
        write_features(tmp_path / "x", some_features(1), np.zeros(1), {})
    with pytest.raises(ValueError, match="does not fit"):
        write_features(
            tmp_path / "x",
            some_features(1),
            np.zeros(1),
            {"duration": "1", "essay": "x" * HEADER_ROOM},
        )


def test_a_local_store_maps_files_in_place_and_names_what_is_missing(tmp_path):
    storage = Storage(str(tmp_path))
    features = put(storage, "panda/a", 3)
    store = FeatureStore(storage, "f", cache=tmp_path / "cache")
    assert store.exists("panda/a")
    assert torch.equal(store.open("panda/a").read(), features)
    assert store.open("panda/a").path == tmp_path / "f/panda/a.safetensors"
    assert not (tmp_path / "cache").exists()
    with pytest.raises(
        FileNotFoundError, match=r"f/panda/b\.safetensors: no features of 'panda/b'"
    ):
        store.open("panda/b")


def test_a_remote_file_is_fetched_once_by_any_number_of_readers(remote, tmp_path, monkeypatch):
    features = put(remote, "panda/a", 50)
    fetched = []
    get_file = remote.fs.get_file
    monkeypatch.setattr(
        remote.fs, "get_file", lambda *a, **k: (fetched.append(a), get_file(*a, **k))[1]
    )
    store = FeatureStore(remote, "f", cache=tmp_path / "features")
    results: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: results.append(store.open("panda/a").read([3, 4])))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert all(torch.equal(result, features[3:5]) for result in results)
    assert len(fetched) == 1
    with pytest.raises(FileNotFoundError, match="panda/b"):
        store.open("panda/b")


def test_the_cache_stays_within_its_bound_and_forgets_what_was_used_longest_ago(remote, tmp_path):
    for name in "abcd":
        put(remote, f"panda/{name}", 100, seed=ord(name))
    size = remote.size("f/panda/a.safetensors")
    store = FeatureStore(remote, "f", cache=tmp_path / "features", max_bytes=3 * size + size // 2)

    def held() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "features").glob("*/*"))

    opened = {}
    for step, name in enumerate("abcad"):  # when d comes, b is the one used longest ago
        opened[name] = store.open(f"panda/{name}")
        os.utime(opened[name].path, (step, step))
        assert held() <= store.files.max_bytes
    assert not opened["b"].path.exists()
    assert opened["a"].path.exists()
    assert opened["c"].path.exists()
    assert torch.equal(
        opened["b"].read(), some_features(100, ord("b"))
    )  # mapped files survive their eviction


def test_a_remote_file_that_changed_is_fetched_again(remote, tmp_path):
    store = FeatureStore(remote, "f", cache=tmp_path / "features")
    put(remote, "panda/a", 5, seed=1)
    store.open("panda/a")
    new = put(remote, "panda/a", 6, seed=2)
    assert torch.equal(store.open("panda/a").read(), new)


def test_a_copy_that_does_not_hash_to_its_header_is_refused_and_not_kept(remote, tmp_path):
    put(remote, "panda/a", 5)
    data = bytearray(remote.read_bytes("f/panda/a.safetensors"))
    data[HEADER_ROOM + 100] ^= 1
    remote.write_bytes("f/panda/a.safetensors", bytes(data))
    with pytest.raises(
        ValueError, match=r"panda/a\.safetensors: content hashes to .* its header says"
    ):
        FeatureStore(remote, "f", cache=tmp_path / "features").open("panda/a")
    assert [path for path in Path(tmp_path / "features").glob("*/*") if path.is_file()] == []


def test_a_file_larger_than_the_whole_cache_is_an_error_that_says_so(remote, tmp_path):
    put(remote, "panda/a", 100)
    with pytest.raises(ValueError, match="do not fit into the cache of 1,000"):
        FeatureStore(remote, "f", cache=tmp_path / "features", max_bytes=1000).open("panda/a")


def damaged(path: Path, frame: int, bits: list[int]) -> None:
    """Overwrite the first numbers of a frame."""
    header = read_header(path)
    with open(path, "r+b") as file:
        file.seek(HEADER_ROOM + frame * header.tokens * header.width * 2)
        file.write(np.array(bits, np.uint16).tobytes())


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_a_number_that_is_not_finite_is_an_error_that_names_the_frame(tmp_path, bits):
    path = tmp_path / "a.safetensors"
    write_features(path, torch.randn(40, 4, 8).bfloat16(), np.arange(40), {"duration": "40"})
    damaged(path, 31, [0x3F80, bits])
    file = FeatureFile(path)
    assert torch.isfinite(file.read(range(31))).all()
    with pytest.raises(ValueError, match=r"a.safetensors: frame 31 holds numbers that are not fin"):
        file.read([3, 31, 5])
    with pytest.raises(ValueError, match="frame 31 holds"):
        file.read()


def test_the_largest_finite_numbers_are_read(tmp_path):
    path = tmp_path / "a.safetensors"
    largest = torch.finfo(torch.bfloat16).max
    write_features(path, torch.full((2, 4, 8), largest), np.arange(2), {"duration": "2"})
    assert (FeatureFile(path).read() == largest).all()


def test_a_store_notices_one_changed_bit_of_a_local_file_and_hashes_a_file_once(
    tmp_path, monkeypatch
):
    path = tmp_path / "f/panda/a.safetensors"
    path.parent.mkdir(parents=True)
    write_features(path, torch.randn(4, 4, 8).bfloat16(), np.arange(4), {"duration": "4"})
    store = FeatureStore(Storage(str(tmp_path)), "f")
    hashed = []
    real = feature_store.hash_content
    monkeypatch.setattr(feature_store, "hash_content", lambda p: hashed.append(p) or real(p))
    for _ in range(3):
        store.open_whole("panda/a").read()
    assert hashed == [path]
    damaged(path, 2, [0x3F80])
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match="content hashes to"):
        store.open_whole("panda/a")
