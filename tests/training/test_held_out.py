"""Held-out samples: never trained on, measured while a run goes on, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.data.test_loader import loader_of, pristine  # noqa: F401
from tests.training.fake_training import start, torchrun_command
from tests.training.generated_samples import losses, sample_ids, single_rank
from tests.training.script_ranks import outputs_of_two_ranks
from training.data.held_out import HeldOutSplit
from training.data.loader import build_loader
from training.loop import train
from training.metrics import read_metrics
from training.reporting import Reporter
from training.run_identity import identity_of


def test_a_share_of_the_videos_is_held_out_whole_and_new_videos_move_none():
    split = HeldOutSplit(0.1, "seed")
    names = [f"panda/{number}" for number in range(5000)]
    held = {name for name in names if split.holds(name, "any", 0)}
    assert 400 < len(held) < 600
    assert all(split.holds(name, f"other-{place}", place) for place in (3, 4) for name in held)
    assert held != {name for name in names if HeldOutSplit(0.1, "other").holds(name, "any", 0)}
    assert not any(HeldOutSplit(0.0, "seed").holds(name, "any", 0) for name in names)
    assert 400 < sum(split.holds("", "shard", place) for place in range(5000)) < 600


def test_what_is_held_out_is_never_trained_on_and_everything_else_keeps_its_place(pristine):  # noqa: F811
    whole = [batch.sample_ids for batch in loader_of(pristine)]
    loader = loader_of(pristine, held_out_share=0.2, held_out_samples=8)
    batches = list(loader)
    measured = [loader.held_out_sample(row) for row in loader.held_out]
    trained = {name for batch in batches for name in batch.sample_ids}
    assert [batch.sample_ids for batch in batches] == [
        [name for name in names if name in trained] for names in whole
    ]
    assert loader.report() == {}
    assert not any(batch.dropped for batch in batches)
    assert not trained & {sample.id for sample, _ in measured}
    assert {stream for _, stream in measured} == {0, 1}
    held = {sample.id.partition("#")[0] for sample, stream in measured if stream}
    assert held
    assert not any(name.startswith(tuple(f"{video}#" for video in held)) for name in trained)


def test_a_video_without_features_is_not_measured_and_ends_nothing(pristine, monkeypatch):  # noqa: F811
    loader = loader_of(pristine, held_out_share=0.3)
    row = next(row for row in loader.held_out if loader.index.stream_of(row))
    sample, _ = loader.held_out_sample(row)
    monkeypatch.setitem(loader._dataset.lost, sample.id.partition("#")[0], ("features missing", ""))
    assert loader.held_out_sample(row) is None
    assert loader.held_out_question(row) is None


def run_of(corpus, out: Path, **changes):
    long = corpus.run().streams[1]
    fields = {
        "streams": (long,), "start": str(corpus.root / "tiny"), "out": str(out), "max_steps": 4,
        "device": "cpu", "tensorboard": False, "held_out_share": 0.2, "held_out_every": 2,
        "held_out_samples": 3, "save_every": 2, "max_length": 4096,
    }  # fmt: skip
    return corpus.run(**{**fields, **changes})


def trained(run) -> dict:
    with single_rank() as ranks:
        return train(run, ranks, Reporter(), build_loader)


def measured(run) -> dict[int, dict]:
    records = read_metrics(Path(run.out) / "metrics.jsonl")
    return {record["step"]: record["held_out"] for record in records if "held_out" in record}


@pytest.mark.slow
def test_measuring_changes_no_step_and_its_numbers_are_in_the_metrics(pristine, tmp_path):  # noqa: F811
    often = run_of(pristine, tmp_path / "often")
    seldom = run_of(pristine, tmp_path / "seldom", held_out_every=100)
    trained(often)
    trained(seldom)
    assert losses(often) == losses(seldom)
    assert sample_ids(often) == sample_ids(seldom)
    one, two = (load_file(Path(run.out) / "export/model.safetensors") for run in (often, seldom))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert list(measured(often)) == [2, 4]
    assert list(measured(seldom)) == [4]
    for name in ("loss", "samples"):
        assert measured(often)[4][name] == measured(seldom)[4][name]
    assert measured(often)[4]["samples"] == 3
    assert measured(often)[2]["loss"] != measured(often)[4]["loss"]
    answers = [
        json.loads(line) for line in (Path(often.out) / "held_out.jsonl").read_text().splitlines()
    ]
    assert [record["step"] for record in answers] == [2, 2, 4, 4]
    assert all(record["question"] and record["expected"] for record in answers)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_measure_what_one_does(pristine, tmp_path):  # noqa: F811
    alone, both = (run_of(pristine, tmp_path / name, max_steps=1) for name in ("one", "two"))
    trained(alone)
    command = torchrun_command(both, 2, module="training.train")
    process = start(command[:-1])  # it takes the run's file alone
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    assert "held-out loss" in output
    assert measured(both)[1]["samples"] == measured(alone)[1]["samples"] == 3
    assert measured(both)[1]["loss"] == pytest.approx(measured(alone)[1]["loss"], rel=1e-3)
    one, two = ((Path(run.out) / "held_out.jsonl").read_text() for run in (alone, both))
    assert one == two


# The second sample of rank 1 lies on a disk that is at fault: for longer than a rank waits in a
# collective, and then for longer than the run waits for it.
OUTAGES = """
import sys, types
import torch
import torch.distributed as dist
from tests.training.generated_samples import disk_at_fault_for, shorten_collectives
from training.formats.machine_faults import wait_out
from training.held_out import HeldOutMeasure
from training.lockstep import EMPTY_SAMPLE
from training.ranks import join_ranks

class Model(torch.nn.Module):
    def forward(self, samples, forgetting):
        dist.all_reduce(torch.zeros(1))
        return types.SimpleNamespace(loss_sum=torch.ones(1), supervised=1)

class Loader:
    held_out = [0, 1, 2, 3]
    def held_out_sample(self, row):
        if row == 3:
            wait_out(disk, run.machine_wait_s)
        return EMPTY_SAMPLE, 0
    def held_out_question(self, row):
        return None

ranks = join_ranks("cpu")
run = types.SimpleNamespace(streams=[types.SimpleNamespace(name="a")], data_timeout_s=60.0)
shorten_collectives(8)
for outage, wait in ((12, 100), (1000, 10)):
    disk, run.machine_wait_s = disk_at_fault_for(outage), wait
    print(HeldOutMeasure(run, Model(), Loader(), ranks).measure(1)["samples"], flush=True)
"""


@pytest.mark.slow
def test_a_fault_of_one_ranks_disk_ends_at_most_the_measurement():
    assert outputs_of_two_ranks(OUTAGES) == [["4.0", "2.0"]] * 2


def test_the_split_belongs_to_what_a_run_is_and_its_pace_does_not(pristine, tmp_path):  # noqa: F811
    run = run_of(pristine, tmp_path / "x", held_out_share=0.0)
    plain = identity_of(run, "1")
    assert "held_out_share" not in plain
    assert identity_of(run_of(pristine, tmp_path / "x", held_out_share=0.1), "1") != plain
    slower = run_of(pristine, tmp_path / "x", held_out_share=0.0, held_out_every=7)
    assert identity_of(slower, "1") == plain
