"""Several ranks under torchrun, as a deployment starts them: resuming to the bit, signals, exit
statuses.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.fake_training import start, torchrun_command
from tests.training.generated_samples import (
    LoaderBehaviour,
    losses,
    make_run,
    sample_ids,
    train_in_process,
)
from tests.warm_python import WarmPython
from training.checkpoint_folder import committed
from training.supervise import CONFIGURATION, MACHINE, PREEMPTED
from training.train import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def warm():
    """Starts the command of a deployment without its imports."""
    modules = ("training.supervise", "torch.distributed.run", "tests.training.generated_samples")
    with WarmPython(*modules, "training.loop") as python:
        yield python.start


def launch(start, run, ranks=2, behaviour=None):
    return start(torchrun_command(run, ranks, (behaviour or LoaderBehaviour()).json()))


def finish(start, run, ranks=2, behaviour=None):
    """Run to the end; returns (exit status, output)."""
    process = launch(start, run, ranks, behaviour)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def wait_for_step(run, step, process):
    """Until so many steps are recorded."""
    path, began = Path(run.out) / "metrics.jsonl", time.time()

    def written():
        return (
            path.exists()
            and path.stat().st_mtime > began
            and len(path.read_text().splitlines()) >= step
        )

    wait_until(written, process)


def wait_until(condition, process):
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def final_state(run):
    return {
        "export": load_file(Path(run.out) / "export" / "model.safetensors"),
        "losses": losses(run),
        "ids": sample_ids(run),
    }


def assert_equal_bits(left, right):
    assert left["losses"] == right["losses"]
    assert left["ids"] == right["ids"]
    assert left["export"].keys() == right["export"].keys()
    assert all(
        torch.equal(left["export"][name], tensor) for name, tensor in right["export"].items()
    )


@pytest.fixture(scope="module")
def eight_steps(tmp_path_factory):
    """8 steps on 2 ranks without interruption, started as a deployment starts them."""
    run = make_run(tmp_path_factory.mktemp("straight"))
    status, output = finish(start, run)
    assert status == 0, output
    return run, final_state(run)


def test_8_steps_equal_4_steps_and_a_kill_and_4_steps_to_the_bit(warm, eight_steps, tmp_path):
    run = make_run(tmp_path)
    process = launch(warm, run, behaviour=LoaderBehaviour(pause_s=0.2))
    wait_until(lambda: committed(Path(run.out) / "state"), process)
    process.kill()
    process.communicate()
    assert len(losses(run)) < 8
    assert [path.name for path in committed(Path(run.out) / "state")] == ["step-4"]
    status, output = finish(warm, run)
    assert status == 0, output
    assert "continuing from step-4" in output
    straight = eight_steps[1]
    assert len(straight["ids"]) == 8
    assert all(len(ids) == 8 for ids in straight["ids"].values())
    assert_equal_bits(final_state(run), straight)


def test_two_ranks_hand_over_to_one(eight_steps, tmp_path):
    run, straight = eight_steps
    moved = tmp_path / "out"
    shutil.copytree(run.out, moved)
    (moved / "result.json").unlink()
    shutil.rmtree(moved / "state" / "step-8")
    (tmp_path / "index.json").write_text("{}")
    shutil.copy(Path(run.streams[0].root) / "index.json", tmp_path / "index.json")
    # The folder's place is not part of what the run is; its streams are, so they stay where they
    # were.
    result = train_in_process(replace(run, out=str(moved)))
    assert result["ranks"] == 1
    alone = final_state(replace(run, out=str(moved)))
    assert alone["ids"] == straight["ids"]
    assert alone["losses"][:4] == straight["losses"][:4]
    assert alone["losses"] == pytest.approx(straight["losses"], rel=1e-3)
    for name, tensor in straight["export"].items():
        torch.testing.assert_close(alone["export"][name], tensor, rtol=0.05, atol=2e-3)


def test_four_ranks_hand_over_to_two(warm, tmp_path):
    run = make_run(tmp_path, max_steps=4, save_every=2)
    status, output = finish(warm, run, ranks=4)
    assert status == 0, output
    straight, taken = losses(run), sample_ids(run)
    (Path(run.out) / "result.json").unlink()
    shutil.rmtree(Path(run.out) / "state" / "step-4")
    status, output = finish(warm, run, ranks=2)
    assert status == 0, output
    assert "continuing from step-2" in output
    assert losses(run) == pytest.approx(straight, rel=1e-6)
    assert sample_ids(run) == taken


def test_two_ranks_take_the_steps_of_one(eight_steps, tmp_path):
    run = make_run(tmp_path, max_steps=3)
    train_in_process(run)
    straight = eight_steps[1]
    assert sample_ids(run) == {step: straight["ids"][step] for step in (1, 2, 3)}
    # The schedule of 3 steps differs from that of 8, so only what precedes the first update is
    # equal.
    assert losses(run)[0] == pytest.approx(straight["losses"][0], rel=1e-6)


def test_two_ranks_take_the_steps_of_one_after_a_step_of_text_alone(warm, tmp_path):
    run = make_run(tmp_path, global_batch=2, micro_batch=2, seed="x", max_steps=6)
    train_in_process(run)
    third = sample_ids(run)[3]
    assert all(int(name[7:]) % 2 == 0 for name in third)
    shared = replace(run, out=str(tmp_path / "two"))
    status, output = finish(warm, shared)
    assert status == 0, output
    assert sample_ids(shared) == sample_ids(run)
    assert losses(shared) == pytest.approx(losses(run), rel=1e-5)


def test_a_signal_leads_to_a_checkpoint_and_its_own_exit_status(warm, eight_steps, tmp_path):
    run = make_run(tmp_path, save_every=100)
    process = launch(warm, run, behaviour=LoaderBehaviour(pause_s=0.3))
    wait_for_step(run, 2, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == PREEMPTED, output
    step = len(losses(run))
    assert 2 <= step < 8
    assert [path.name for path in committed(Path(run.out) / "state")] == [f"step-{step}"]
    status, output = finish(warm, run)
    assert status == 0, output
    assert_equal_bits(final_state(run), eight_steps[1])


def test_a_fault_of_one_ranks_machine_ends_in_a_checkpoint_that_goes_on(
    warm, eight_steps, tmp_path
):
    run = make_run(tmp_path, save_every=100)
    broken = LoaderBehaviour(crash_at=5, crash_rank=1, machine_fault=True)
    status, output = finish(warm, run, behaviour=broken)
    assert status == MACHINE, output
    assert "the disk of features_cache is full after step 5 of 8; what was done is in a" in output
    assert [path.name for path in committed(Path(run.out) / "state")] == ["step-5"]
    status, output = finish(warm, run)
    assert status == 0, output
    assert_equal_bits(final_state(run), eight_steps[1])


# Longer than a rank waits in a collective, which begins to wait before the fault does.
OUTAGE = LoaderBehaviour(crash_at=5, crash_rank=1, outage_s=14, collective_timeout_s=10)


def test_a_fault_that_outlasts_the_wait_ends_in_a_checkpoint_however_long_the_wait(warm, tmp_path):
    run = make_run(tmp_path, save_every=4, machine_wait_s=12)
    status, output = finish(warm, run, behaviour=replace(OUTAGE, outage_s=1000))
    assert status == MACHINE, output
    assert "Input/output error: 'features.safetensors'; it did not pass within" in output
    assert [path.name for path in committed(Path(run.out) / "state")] == ["step-4", "step-5"]


def test_a_fault_that_passes_within_the_wait_changes_nothing_however_long_it_is(
    warm, eight_steps, tmp_path
):
    run = make_run(tmp_path, machine_wait_s=100)
    status, output = finish(warm, run, behaviour=OUTAGE)
    assert status == 0, output
    assert "it passed after" in output
    assert_equal_bits(final_state(run), eight_steps[1])


def test_a_signal_does_not_wait_for_the_end_of_a_long_step(warm, tmp_path):
    run = make_run(tmp_path, global_batch=64, micro_batch=4, max_steps=3)
    process = launch(warm, run, behaviour=LoaderBehaviour(pause_s=0.5, count=192))
    wait_for_step(run, 1, process)
    process.send_signal(signal.SIGTERM)  # the second step takes another four seconds
    output, _ = process.communicate(timeout=120)
    assert process.returncode == PREEMPTED, output
    assert len(losses(run)) == 1
    assert [path.name for path in committed(Path(run.out) / "state")] == ["step-1"]


def test_a_kill_while_checkpoints_are_written_changes_nothing(warm, eight_steps, tmp_path):
    run = make_run(tmp_path, save_every=1)
    process = launch(warm, run, behaviour=LoaderBehaviour(pause_s=0.1))
    wait_until(lambda: list((Path(run.out) / "state").glob(".tmp-step-2/*.distcp")), process)
    process.kill()
    process.communicate()
    status, output = finish(warm, run)
    assert status == 0, output
    assert_equal_bits(final_state(run), eight_steps[1])
    assert len(committed(Path(run.out) / "state")) == 2


def test_ranks_agree_that_a_checkpoint_is_damaged_and_take_the_older_one(
    warm, eight_steps, tmp_path
):
    straight, state = eight_steps
    run = replace(straight, out=str(tmp_path / "out"))
    shutil.copytree(straight.out, run.out)
    (Path(run.out) / "result.json").unlink()
    (file,) = (Path(run.out) / "state/step-8").glob("__1_*.distcp")  # what rank 1 wrote
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    status, output = finish(warm, run)
    assert status == 0, output
    assert f"step-8 is damaged (step-8: {file.name} has other content)" in output
    assert "continuing from step-4" in output
    assert_equal_bits(final_state(run), state)


def test_an_unknown_key_is_named_before_torch_is_imported(tmp_path, capsys):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"variant": "tiny", "globl_batch": 3}))
    process = start([sys.executable, "-X", "importtime", "-m", "training.train", str(path)])
    output, _ = process.communicate(timeout=60)
    assert process.returncode == CONFIGURATION
    assert "unknown key 'globl_batch', did you mean 'global_batch'?" in output
    assert " torch\n" not in output


def test_the_entry_without_a_file_prints_its_usage(capsys):
    assert main([]) == CONFIGURATION
    assert "usage" in capsys.readouterr().err
