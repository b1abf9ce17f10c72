"""A machine's fault is waited out or ends the run; it never costs a sample."""

from __future__ import annotations

import errno
import functools
import http.server
import os
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import fsspec
import pytest
from streaming.base.format.mds import MDSReader

from tests.training.data.test_loader import corpus, ids, loader_of, pristine  # noqa: F401
from tests.training.script_ranks import outputs_of_two_ranks
from training.data.loader import build_loader
from training.formats import machine_faults
from training.formats.file_cache import FileCache
from training.formats.machine_faults import MachineFault, machine_fault, wait_out
from training.formats.storage import Storage
from training.run_config import StreamConfig

OUTAGE_S = 3.0


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(machine_faults, "FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(machine_faults, "LONGEST_DELAY_S", 0.5)


class _Handler(http.server.SimpleHTTPRequestHandler):
    busy = False

    def send_head(self):
        if self.busy:
            self.send_error(503)
            return None
        return super().send_head()

    def log_message(self, *_: object) -> None:
        pass


class Store:
    """A folder as a store over HTTP, which can go away for a while."""

    def __init__(self, folder: Path) -> None:
        self.handler = type("Handler", (_Handler,), {})
        self.folder, self.port = folder, 0
        self.open()

    def open(self) -> None:
        handler = functools.partial(self.handler, directory=str(self.folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def go_away(self, how: str, seconds: float) -> None:
        """Refuse connections, or answer that it is busy, for so long."""
        if how == "refuses":
            self.close()
            threading.Timer(seconds, self.open).start()
        else:
            self.handler.busy = True
            threading.Timer(seconds, setattr, (self.handler, "busy", False)).start()


@contextmanager
def store_of(folder: Path) -> Iterator[Store]:
    store = Store(folder)
    try:
        yield store
    finally:
        store.close()


def remote(store: Store, corpus, cache: Path, **changes) -> dict:  # noqa: F811
    """A run on the store, with caches so small that a shard is fetched again and again."""
    streams = tuple(
        StreamConfig(stream.name, f"{store.url}/VideoMarathon/sharding", stream.indexes)
        for stream in corpus.run().streams
    )
    largest = max(path.stat().st_size for path in corpus.root.rglob("*.mds"))
    return {
        "streams": streams,
        "features_root": f"{store.url}/features",
        "features_cache": str(cache / "features"),
        "features_cache_bytes": 12 << 20,
        "shard_cache": str(cache / "shards"),
        "shard_cache_bytes": 2 * largest,
        "max_dropped_share": 0.0,
        **changes,
    }


@pytest.mark.parametrize("how", ["refuses", "is busy"])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_outage_of_the_store_costs_no_sample(pristine, tmp_path, how, workers):  # noqa: F811
    expected = ids(loader_of(pristine))
    with store_of(pristine.root) as store:
        fields = remote(store, pristine, tmp_path, workers=workers)
        loader = loader_of(pristine, **fields)
        try:
            batches = iter(loader)
            found = [next(batches).sample_ids for _ in range(10)]
            began = time.monotonic()
            store.go_away(how, OUTAGE_S)
            found += [batch.sample_ids for batch in batches]
            assert time.monotonic() - began > OUTAGE_S / 2
        finally:
            loader.close()
    assert found == expected
    assert loader.report() == {}


@pytest.mark.slow
def test_an_outage_while_a_run_starts_is_waited_out(pristine, tmp_path):  # noqa: F811
    with store_of(pristine.root) as store:
        fields = remote(store, pristine, tmp_path)
        store.go_away("refuses", OUTAGE_S)
        assert loader_of(pristine, **fields).losses.counts == {}


# Rank 1 cannot read its indexes at first, then rank 0 cannot list the folder of features: each time
# for longer than a rank waits in a collective.
OUTAGES_OF_RANKS = """
import sys
from pathlib import Path
from transformers import AutoTokenizer
from model.processor import Processor
from tests.training.generated_samples import disk_at_fault_for, shorten_collectives
from tests.training.shard_runs import CONFIG, ShardCorpus
from tests.training.script_ranks import outputs_of_two_ranks
from training.data.loader import build_loader
from training.formats.storage import Storage
from training.ranks import join_ranks

def broken(name):
    read, work = disk_at_fault_for(12), getattr(Storage, name)
    def broken_work(*given):
        read()
        return work(*given)
    setattr(Storage, name, broken_work)

root = Path(sys.argv[1])
processor = Processor(CONFIG, AutoTokenizer.from_pretrained(root / "tiny"))
ranks = join_ranks("cpu")
ranks.barrier()
shorten_collectives(8)
broken("sizes" if ranks.first else "read_json")
loader = build_loader(ShardCorpus(root, processor).run(), processor, ranks.rank, ranks.world)
print(len(loader), loader.losses.counts, flush=True)
"""


@pytest.mark.slow
def test_an_outage_of_one_rank_while_a_run_starts_is_waited_out_by_all(pristine):  # noqa: F811
    steps = len(build_loader(pristine.run(), pristine.processor, 0, 2))
    said = outputs_of_two_ranks(OUTAGES_OF_RANKS, str(pristine.root))
    assert said == [[f"{steps} {{}}"]] * 2


@pytest.mark.slow
def test_an_outage_that_lasts_stops_the_run_and_blames_no_sample(pristine, tmp_path):  # noqa: F811
    with store_of(pristine.root) as store:
        loader = loader_of(pristine, **remote(store, pristine, tmp_path, machine_wait_s=1.0))
        batches = iter(loader)
        next(batches)
        store.go_away("refuses", 8.0)
        with pytest.raises(MachineFault, match=r"did not pass within 1 s \(machine_wait_s 1\)"):
            list(batches)
        assert loader.report() == {}
        time.sleep(8.0)


@pytest.mark.slow
def test_a_full_disk_of_the_cache_is_not_a_damaged_shard(pristine, tmp_path, monkeypatch):  # noqa: F811
    expected = ids(loader_of(pristine))
    with store_of(pristine.root) as store:
        loader = loader_of(pristine, **remote(store, pristine, tmp_path))
        refusals = iter(range(6))

        def full(path: Path, *_: object) -> None:
            if next(refusals, None) is not None:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return truncate(path, *_)

        truncate = os.truncate
        monkeypatch.setattr(os, "truncate", full)
        assert ids(loader) == expected
        assert next(refusals, None) is None
        assert loader.report() == {}


def test_a_full_disk_first_takes_the_room_of_older_copies(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    for name in "abc":
        (tmp_path / "root" / name).write_bytes(name.encode() * 1000)
    with store_of(tmp_path / "root") as store:
        cache = FileCache(Storage(store.url), tmp_path / "cache")
        disk = 2500
        truncate = os.truncate

        def small(descriptor: int, size: int) -> None:
            if sum(p.stat().st_size for p in (tmp_path / "cache").glob("*/*")) + size > disk:
                raise OSError(errno.ENOSPC, "No space left on device")
            truncate(descriptor, size)

        monkeypatch.setattr(os, "truncate", small)
        for name in "abc":
            assert cache.path(name).read_bytes() == name.encode() * 1000


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE, errno.EACCES])
def test_a_disk_that_gives_nothing_for_a_moment_costs_no_sample(pristine, monkeypatch, number):  # noqa: F811
    expected = ids(loader_of(pristine))
    loader = loader_of(pristine, max_dropped_share=0.0)
    faults, read = iter(range(5)), MDSReader.get_item

    def get_item(reader, place):
        if next(faults, None) is not None:
            raise OSError(number, os.strerror(number), "shard.00000.mds")
        return read(reader, place)

    monkeypatch.setattr(MDSReader, "get_item", get_item)
    assert ids(loader) == expected
    assert next(faults, None) is None


@pytest.mark.slow
def test_a_mount_that_goes_away_is_not_a_hundred_missing_files(corpus):  # noqa: F811
    expected = ids(loader_of(corpus))
    loader = loader_of(corpus, max_dropped_share=0.0)
    batches = iter(loader)
    found = [next(batches).sample_ids for _ in range(4)]
    features, away = corpus.root / "features", corpus.root / "away"
    features.rename(away)
    threading.Timer(1.0, away.rename, (features,)).start()
    assert found + [batch.sample_ids for batch in batches] == expected


def test_a_cache_smaller_than_one_shard_is_refused_by_its_name(pristine, tmp_path):  # noqa: F811
    with store_of(pristine.root) as store:
        fields = remote(store, pristine, tmp_path, shard_cache_bytes=1000)
        with pytest.raises(ValueError, match=r"shard_cache_bytes is 1,000, but a shard has"):
            loader_of(pristine, **fields)


def test_a_cache_smaller_than_one_feature_file_is_refused_by_its_name(pristine, tmp_path):  # noqa: F811
    memory, root = fsspec.filesystem("memory"), f"/{tmp_path.name}"
    for path in (pristine.root / "features").rglob("*.safetensors"):
        name = path.relative_to(pristine.root / "features")
        memory.pipe_file(f"{root}/{name}", path.read_bytes())
    fields = {"features_root": f"memory:/{root}", "features_cache": str(tmp_path / "cache")}
    with pytest.raises(ValueError, match=r"features_cache_bytes is 1,000, but a file in"):
        loader_of(pristine, **fields, features_cache_bytes=1000)
    assert ids(loader_of(pristine, **fields)) == ids(loader_of(pristine))


@pytest.mark.slow
def test_copies_of_shards_are_kept_where_the_run_says(pristine, tmp_path):  # noqa: F811
    with store_of(pristine.root) as store:
        ids(loader_of(pristine, **remote(store, pristine, tmp_path)))
        sizes = [p.stat().st_size for p in (tmp_path / "shards").glob("*/*") if p.is_file()]
        assert 0 < sum(sizes) <= remote(store, pristine, tmp_path)["shard_cache_bytes"]
        assert not Storage(f"{store.url}/VideoMarathon/sharding").cache.exists()


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def answer(status: int) -> aiohttp.ClientResponseError:
    request = types.SimpleNamespace(real_url="http://store/x")
    return aiohttp.ClientResponseError(request, (), status=status)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        PermissionError("Forbidden"),
        TimeoutError(),
        ConnectionResetError(),
        MemoryError(),
        answer(503),
        answer(429),
        answer(403),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError("not all bytes came"),
        caused(FileNotFoundError("http://store/x"), ConnectionRefusedError()),
        caused(ValueError("x"), MachineFault("the disk is gone")),
    ],
    ids=repr,
)
def test_errors_of_the_machine(error):
    assert machine_fault(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file"),
        IsADirectoryError(errno.EISDIR, "Is a directory"),
        OSError("image file is truncated"),
        ValueError("not a shard"),
        KeyError("id"),
        answer(404),
        caused(FileNotFoundError("http://store/x"), answer(404)),
    ],
    ids=repr,
)
def test_errors_of_one_file_or_a_setting(error):
    assert machine_fault(error) is None
    with pytest.raises(type(error)):
        wait_out(lambda: (_ for _ in ()).throw(error), 10.0)


def test_a_full_disk_says_what_to_do():
    assert "set shard_cache or features_cache to another disk" in str(
        machine_fault(OSError(errno.ENOSPC, "No space left on device", "/scratch/x"))
    )
