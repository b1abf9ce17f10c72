"""Reading the files of products again: what is found, and how it is said."""

import os

import pytest

from assets.annotations.catalogue import Catalogue, snapshot_name
from assets.deployment.settings import CONFIG_VARIABLE
from assets.records.lineage import Lineage
from assets.sources.base import VideoRow
from pipeline.cli import main
from pipeline.verify import CHANGED, NOT_THERE, UNRECORDED, WHOLE, verify
from training.formats.receipts import describe_files
from training.formats.storage import Storage

VIDEO, FEATURES = "VideoMarathon/videos/panda/a.mp4", "VideoMarathon/features/tiny/panda/a"


@pytest.fixture
def storage(tmp_path):
    """Records of a small graph, as its assets leave them."""
    storage = Storage(str(tmp_path / "root"))
    made = {
        "annotations": ("VideoMarathon/annotations.parquet", {"rows.jsonl": "sha"}),
        "part_rows[part0]": (None, {"annotations": "v"}),
        "videos[part0|panda]": (VIDEO, {"part_rows[part0]": "v"}),
        "features[part0|tiny]": (f"{FEATURES}.safetensors", {"videos[part0|panda]": "v"}),
        "stage3[tiny]": ("checkpoints/tiny/stage3/k/export/w", {"features[part0|tiny]": "v"}),
    }
    for name, (path, inputs) in made.items():
        record = Lineage(name, "v", inputs=inputs)
        if path:
            storage.write_bytes(path, name.encode() * 1000)
            record = record.with_files(storage, describe_files(storage, [path]))
        record.write(storage)
    with Catalogue(storage, "panda", "part0") as catalogue:
        catalogue.add([VideoRow("panda/a", "panda", "a")])
    return storage


@pytest.fixture
def lineage(storage, tmp_path, monkeypatch, capsys):
    """`hourllava lineage` with further words: its exit code, and the lines of its verdict."""
    settings = "root: root\nvariants: [tiny]\nannotations: {paths: [none.jsonl]}\n"
    (tmp_path / "deployment.yaml").write_text(
        settings + "sources: {panda: {kind: drop, folder: drop}}\n"
    )
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "deployment.yaml"))

    def run(*words):
        code = main(["lineage", *words])
        return code, capsys.readouterr().out.partition("verified:\n")[2].splitlines()

    return run


def records(storage, *names):
    return [Lineage.read(storage, name) for name in names]


def flip(storage, rel, start=2000, count=2000):
    path = storage.local(rel)
    before, data = path.stat(), bytearray(path.read_bytes())
    data[start : start + count] = bytes(byte ^ 1 for byte in data[start : start + count])
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_is_whole_is_one_line(lineage):
    assert lineage("stage3[tiny]", "--verify") == (
        0,
        ["  whole: 4 products, 4 files of 62,000 bytes"],
    )


def test_bytes_of_a_feature_file_and_a_cut_video_are_found_from_the_checkpoint(storage, lineage):
    flip(storage, f"{FEATURES}.safetensors")
    os.truncate(storage.local(VIDEO), 1000)
    code, lines = lineage("stage3[tiny]", "--verify")
    assert code == 2
    assert lines == [
        f"  videos[part0|panda]: CHANGED: {VIDEO} has 1,000 bytes instead of 19,000",
        f"  features[part0|tiny]: CHANGED: {FEATURES}.safetensors has other content",
        "  2 of 4 products are damaged (4 files of 62,000 bytes): videos[part0|panda], "
        "features[part0|tiny]. Materialize them again, in this order: what is damaged is set aside",
    ]


def test_all_products_are_listed_where_that_is_asked_for(lineage):
    code, lines = lineage("stage3[tiny]", "--verify", "--all")
    assert (code, len(lines)) == (0, 5)
    assert lines[0] == "  annotations: whole, 1 file of 11,000 bytes"


def test_every_file_that_is_gone_is_named_and_many_are_counted(storage):
    names = [f"some/{number:02d}" for number in range(12)]
    for name in names:
        storage.write_bytes(name, b"x")
    record = Lineage("features[part0|tiny]", "v").with_files(
        storage, describe_files(storage, names)
    )
    for name in names:
        storage.remove(name)
    (finding,) = verify(storage, [record]).findings
    assert finding.verdict == NOT_THERE
    assert str(finding).startswith(
        "features[part0|tiny]: NOT THERE: some/00 is missing; some/01 is missing"
    )
    assert str(finding).endswith("; and 2 more")


def test_a_damaged_table_of_videos_is_found(storage):
    name = snapshot_name("panda", "part0")
    # A table is known by its rows, so one of them is hurt.
    flip(storage, name, start=storage.local(name).read_bytes().index(b"panda/a"), count=1)
    (finding,) = verify(storage, records(storage, "videos[part0|panda]")).findings
    assert (finding.verdict, [damage.path for damage in finding.damage]) == (CHANGED, [name])


def test_a_product_without_a_receipt_is_neither_whole_nor_changed(storage):
    found = verify(storage, [Lineage("evaluation[tiny]", "v"), *records(storage, "annotations")])
    assert {f.product: f.verdict for f in found.findings} == {
        "evaluation[tiny]": UNRECORDED,
        "annotations": WHOLE,
    }
    assert found.verdict == (
        "whole: 1 product, 1 file of 11,000 bytes; nothing is recorded of evaluation[tiny]"
    )


def test_a_moved_root_is_whole_under_its_new_name(storage, tmp_path):
    os.rename(tmp_path / "root", tmp_path / "moved")
    moved = Storage(str(tmp_path / "moved"))
    assert not verify(moved, records(moved, "annotations", "features[part0|tiny]")).wrong
