"""What a run does with what it finds in its folder: it goes on, or refuses, or makes again, and
deletes nothing.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.generated_samples import (
    GeneratedLoader,
    LoaderBehaviour,
    losses,
    make_run,
    single_rank,
    tiny_base,
    train_in_process,
)
from training.loop import train
from training.reporting import Reporter

EXPORT = "export/model.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; tests work on copies."""
    run = make_run(tmp_path_factory.mktemp("finished"), max_steps=3, save_every=1)
    train_in_process(run)
    return run


@pytest.fixture
def copy(finished, tmp_path):
    """The run in a folder of its own: finished, or as it was after its second step."""

    def make(unfinished=False):
        out = tmp_path / "out"
        shutil.copytree(finished.out, out)
        if unfinished:
            (out / "result.json").unlink()
            shutil.rmtree(out / "export")
            shutil.rmtree(out / "state/step-3")
        return replace(finished, out=str(out)), out

    return make


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("lock", "holder.json")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"max_dropped_share": 0.5},
        {"micro_tokens": 100},
        {"workers": 0, "prefetch": 1},
        {"save_every": 3},
        {"keep": 5, "milestone_every": 2},
        {"videos_root": "elsewhere", "features_root": "elsewhere"},
    ],
    ids=str,
)
def test_a_harmless_change_goes_on_where_the_run_was(copy, caplog, change):
    run, _ = copy(unfinished=True)
    with caplog.at_level("INFO"):
        train_in_process(replace(run, **change))
    assert "continuing from step-2" in caplog.text


@pytest.mark.slow
def test_another_place_of_everything_goes_on_where_the_run_was(
    finished, copy, tmp_path, monkeypatch, caplog
):
    run, out = copy(unfinished=True)
    (tmp_path / "shards").mkdir()
    shutil.copy(Path(run.streams[0].root) / "index.json", tmp_path / "shards/index.json")
    shutil.copytree(tiny_base(), tmp_path / "start")
    out.rename(tmp_path / "moved")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    moved = replace(
        run,
        out=str(tmp_path / "moved"),
        start=str(tmp_path / "start"),
        streams=(replace(run.streams[0], root=str(tmp_path / "shards")),),
    )
    with caplog.at_level("INFO"):
        train_in_process(moved)
    assert "continuing from step-2" in caplog.text
    assert (tmp_path / "moved" / EXPORT).read_bytes() == (Path(finished.out) / EXPORT).read_bytes()


def test_another_run_is_refused_by_name_and_nothing_is_changed(copy):
    run, out = copy(unfinished=True)
    before = content(out)
    changed = replace(run, max_steps=2, rates={"memaug": 1e-3})
    with pytest.raises(ValueError, match=r"max_steps is 3 there and 2 here; rates is \{.*memaug"):
        train_in_process(changed)
    assert content(out) == before


@pytest.mark.slow
def test_another_run_is_set_aside_when_asked_and_can_be_gone_back_to(finished, copy):
    run, out = copy(unfinished=True)
    state = content(out / "state")
    result = train_in_process(replace(run, max_steps=2, on_other_state="set_aside"))
    assert result["steps"] == 2
    assert content(out / "earlier-1/state") == state
    assert len((out / "earlier-1/metrics.jsonl").read_text().splitlines()) == 3
    again = train_in_process(replace(run, out=str(out / "earlier-1")))
    assert again["steps"] == 3
    assert (out / "earlier-1" / EXPORT).read_bytes() == (Path(finished.out) / EXPORT).read_bytes()


def test_changed_shards_are_another_run(finished, copy, tmp_path):
    run, _ = copy()
    (tmp_path / "index.json").write_text('{"shards": []}')
    other = replace(run, streams=(replace(run.streams[0], root=str(tmp_path)),))
    with pytest.raises(ValueError, match="is of another run: shards is "):
        train_in_process(other)


@pytest.mark.slow
def test_restored_state_goes_on_because_it_names_its_run(finished, copy, caplog, tmp_path):
    run, out = copy(unfinished=True)
    for path in out.iterdir():
        if path.name not in ("state", "metrics.jsonl", "samples"):
            path.unlink()
    with caplog.at_level("INFO"):
        train_in_process(run)
    assert "continuing from step-2" in caplog.text
    (out / "identity.json").unlink()
    with pytest.raises(ValueError, match=r"step-2 is of another run: seed is"):
        train_in_process(replace(run, seed="another"))


def test_state_of_a_release_before_identities_goes_on_when_a_person_says_so(copy, caplog):
    run, out = copy(unfinished=True)
    (out / "identity.json").unlink()
    (out / "fingerprint").write_text("0" * 64)
    for step in (out / "state").glob("step-*"):
        state = json.loads((step / "state.json").read_text())
        del state["identity"], state["progress"]["dropped"]
        (step / "state.json").write_text(json.dumps(state))
        (step / "COMMITTED").write_text("")
    before = content(out)
    with pytest.raises(ValueError, match=r"step-2 does not say .* set on_other_state to 'adopt'"):
        train_in_process(run)
    assert content(out) == before
    with caplog.at_level("INFO"):
        train_in_process(replace(run, on_other_state="adopt"))
    assert "continuing from step-2" in caplog.text


def remove(export):
    shutil.rmtree(export)


def cut(export):
    (export / "model.safetensors").write_bytes((export / "model.safetensors").read_bytes()[:1000])


def flip(export):
    weights = bytearray((export / "model.safetensors").read_bytes())
    weights[-7] ^= 1
    (export / "model.safetensors").write_bytes(weights)


ENDS = {
    "export removed": (lambda out: remove(out / "export"), "model.safetensors is missing"),
    "export cut short": (lambda out: cut(out / "export"), r"has 1,000 bytes instead of [\d,]+"),
    "one byte flipped": (lambda out: flip(out / "export"), "has other content"),
    "tokenizer removed": (
        lambda out: (out / "export/tokenizer.json").unlink(),
        "export/tokenizer.json is missing",
    ),
    "empty result": (
        lambda out: (out / "result.json").write_text(""),
        "result.json cannot be read",
    ),
    "torn result": (
        lambda out: (out / "result.json").write_text('{"steps": 3, "fi'),
        "result.json cannot be read",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_a_damaged_end_is_named_set_aside_and_made_again(finished, copy, caplog, end):
    run, out = copy()
    harm, fault = ENDS[end]
    harm(out)
    harmed = content(out)
    with caplog.at_level("INFO"):
        result = train_in_process(run)
    assert caplog.text.count("the run was finished, but ") == 1
    assert re.search(fault, caplog.text)
    assert "continuing from step-3" in caplog.text
    assert content(out / "export") == content(Path(finished.out) / "export")
    assert result == json.loads((Path(finished.out) / "result.json").read_text())
    assert losses(run) == losses(finished)
    kept = content(out / "damaged")
    assert {name.replace(".1", "", 1) for name in kept} <= set(harmed)
    assert kept["result.json.1"] == harmed["result.json"]


@pytest.mark.parametrize("end", ENDS)
def test_a_damaged_end_without_a_checkpoint_is_left_to_a_person(copy, end):
    run, out = copy()
    ENDS[end][0](out)
    shutil.rmtree(out / "state")
    before = content(out)
    with pytest.raises(ValueError, match=r"no checkpoint in state/ .* Restore result\.json"):
        train_in_process(run)
    assert content(out) == before


def test_a_curve_that_lost_records_is_said_and_the_export_believed(copy, caplog):
    run, out = copy()
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:2]))
    with caplog.at_level("INFO"):
        train_in_process(run)
    assert "holds 2 records and had 3" in caplog.text
    assert "this run is finished already" in caplog.text


def test_a_damaged_start_is_refused(copy, tmp_path):
    run, _ = copy()
    with pytest.raises(ValueError, match="were recorded as 000000000000; they are damaged"):
        train_in_process(replace(run, start_version="0" * 32))


def test_the_tokenizer_is_missed_at_the_start_and_not_at_the_end(tmp_path):
    shutil.copytree(tiny_base(), tmp_path / "start")
    run = make_run(tmp_path, start=str(tmp_path / "start"), max_steps=2)

    class CleaningUp(GeneratedLoader):
        def __iter__(self):
            shutil.rmtree(tmp_path / "start")  # while the run goes on
            yield from super().__iter__()

    with single_rank() as ranks:
        train(run, ranks, Reporter(), CleaningUp)
    assert (Path(run.out) / "export/tokenizer.json").read_bytes() == (
        tiny_base() / "tokenizer.json"
    ).read_bytes()

    shutil.copytree(tiny_base(), tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (tmp_path / "bare" / name).unlink()
    with pytest.raises(ValueError, match="bare holds no tokenizer"):
        train_in_process(replace(run, start=str(tmp_path / "bare"), out=str(tmp_path / "other")))
    assert not (tmp_path / "other/state").exists()


def test_what_a_killed_export_left_is_gone_at_the_next_start(copy):
    run, out = copy(unfinished=True)
    for name in (".tmp-0123456789ab-export", ".tmp-0123456789ab-replaced"):
        (out / name).mkdir()
        (out / name / "model.safetensors").write_bytes(b"half")
    train_in_process(run)
    assert not list(out.glob(".tmp-*"))


@pytest.mark.slow
def test_what_was_dropped_before_a_resume_is_in_the_result(tmp_path):
    class Dropping(GeneratedLoader):
        def __iter__(self):
            for batch in super().__iter__():
                batch.samples.pop()
                batch.dropped.append((batch.sample_ids.pop(), "too long"))
                yield batch

    def train_it(run, behaviour=None):
        with single_rank() as ranks:
            return train(run, ranks, Reporter(), lambda *given: Dropping(*given, behaviour))

    run = make_run(tmp_path, max_steps=6, save_every=2)
    with pytest.raises(RuntimeError, match="told to fail"):
        train_it(run, LoaderBehaviour(crash_at=5))
    assert train_it(run)["dropped"] == {"too long": 6}
