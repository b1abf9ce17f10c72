"""Checkpoints of a running stage on a remote root: what another machine finds there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from assets.checkpoints.runs import newest_uploaded, publish_results, restore_results
from assets.checkpoints.uploads import uploading
from assets.deployment.settings import load_settings
from training.formats.storage import Storage

FOLDER = "checkpoints/tiny/stage1/abc"


def checkpoint(out: Path, step: int, marked: bool = True) -> None:
    folder = out / f"state/step-{step}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(f"{step}")
    (folder / "a.distcp").write_bytes(bytes([step]) * 9)
    if marked:
        (folder / "COMMITTED").write_text("{}")


@pytest.fixture
def remote(tmp_path):
    return Storage(f"memory://{tmp_path.name}")


@pytest.fixture
def settings(tmp_path):
    made = load_settings()
    training = made.training.model_copy(update={"scratch": tmp_path / "scratch"})
    return made.model_copy(update={"training": training})


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "scratch" / FOLDER
    checkpoint(folder, 4)
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def stopped(remote, out, said, **pace) -> None:
    with (
        pytest.raises(RuntimeError, match="stopped"),
        uploading(remote, FOLDER, out, pace.get("every_s", 3600.0), said.append),
    ):
        raise RuntimeError("stopped")


def test_a_machine_that_holds_nothing_gets_the_newest_whole_checkpoint(
    remote, settings, out, tmp_path
):
    said: list[str] = []
    stopped(remote, out, said)
    checkpoint(out, 8)
    stopped(remote, out, said)
    checkpoint(out, 12, marked=False)
    stopped(remote, out, said)
    assert [text.split()[0] for text in said] == ["step-4", "step-8"]
    assert newest_uploaded(remote, FOLDER) == f"{FOLDER}/state/step-8"
    assert not [name for name in remote.list(FOLDER) if "step-4" in name]

    before = tree(out)
    out.rename(tmp_path / "gone")
    restore_results(settings, remote, FOLDER)
    assert tree(out) == {
        name: content
        for name, content in before.items()
        if "step-4" not in name and "step-12" not in name
    }


def test_one_is_uploaded_while_it_trains_at_the_chosen_pace(remote, out):
    said: list[str] = []
    with uploading(remote, FOLDER, out, 0.01, said.append) as look:
        time.sleep(0.02)
        look()
    assert len(said) == 1
    with uploading(remote, FOLDER, out, 3600.0, said.append) as look:
        look()
    stopped(remote, out, said, every_s=None)
    assert len(said) == 1


def test_a_checkpoint_without_its_marker_on_the_root_does_not_count(
    remote, settings, out, tmp_path
):
    stopped(remote, out, [])
    remote.remove(f"{FOLDER}/state/step-4/COMMITTED")
    out.rename(tmp_path / "gone")
    restore_results(settings, remote, FOLDER)
    assert not out.exists()


def test_a_store_that_is_away_is_told_and_does_not_end_the_training(remote, out, monkeypatch):
    def away(*_):
        raise ConnectionError("no route to the bucket")

    monkeypatch.setattr(remote, "upload", away)
    said: list[str] = []
    with uploading(remote, FOLDER, out, 0.01, said.append) as look:
        time.sleep(0.02)
        look()
    (text,) = said
    assert "step-4 could not be uploaded" in text
    assert "no route to the bucket" in text


def test_a_finished_stage_leaves_no_state_on_the_root(remote, settings, out):
    stopped(remote, out, [])
    (out / "result.json").write_text("{}")
    publish_results(settings, remote, FOLDER)
    assert remote.list(FOLDER) == [f"{FOLDER}/metrics.jsonl", f"{FOLDER}/result.json"]


def test_a_local_root_needs_no_uploads(tmp_path, out):
    said: list[str] = []
    stopped(Storage(str(tmp_path / "root")), out, said)
    assert said == []
