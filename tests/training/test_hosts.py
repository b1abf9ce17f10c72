"""Two hosts train one stage on real shards: two torchrun agents that meet, started by the
deployment's own command.
"""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from assets.checkpoints.launcher import Torchrun
from assets.deployment.settings import Training
from assets.shards.writer import write_long_video_part
from tests.assets.shards.roots import make_conversations, make_root, quiet, settings_for
from tests.training.fake_training import start
from tests.training.generated_samples import losses, make_run, sample_ids
from tests.training.shard_runs import write_video_features
from training.checkpoint_folder import committed
from training.run_config import RunConfig
from training.supervise import PREEMPTED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

VIDEOS, SAMPLES, STEPS = 16, 4, 48


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """64 samples about 16 long videos in shards of 8, one of which is damaged."""
    root = tmp_path_factory.mktemp("hosts")
    storage, settings = make_root(root, images=1), settings_for(root)
    make_conversations(storage, 0, VIDEOS, SAMPLES, duration=20.0)
    write_long_video_part(storage, settings, 0, quiet)
    for number in range(VIDEOS):
        write_video_features(root, f"panda/p0v{number}")
    damaged = root / "VideoMarathon/sharding/videomarathon_video_part0/shard.00002.mds"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    return root


def run_on(shards: Path, folder: Path) -> RunConfig:
    index = "videomarathon_video_part0/index.json"
    stream = {"name": "long", "root": str(shards / "VideoMarathon/sharding"), "indexes": [index]}
    reading = {"features_root": str(shards / "features"), "workers": 0, "max_dropped_share": 0.2}
    size = {"global_batch": 4, "micro_batch": 2, "epochs": 3, "max_steps": STEPS, "save_every": 4}
    folder.mkdir()
    run = make_run(folder, streams=[stream], **reading, **size)
    run.write(folder / "run.json")
    return run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def hosts(run: RunConfig, count: int):
    """The command of the deployment, started once on each host."""
    ranks = {"processes": 2 // count, "nodes": count, "cpu_threads": 1}
    launcher = Torchrun(
        Training(**ranks, rendezvous=f"localhost:{free_port()}" if count > 1 else None)
    )
    command = launcher.command(Path(run.out).parent / "run.json")
    return [start(command) for _ in range(count)]


def finish(processes):
    """Exit statuses and outputs."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    return [process.returncode for process in processes], "\n".join(outputs)


def wait_for(condition, processes):
    deadline = time.monotonic() + 200
    while not condition():
        assert all(process.poll() is None for process in processes), finish(processes)[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_hosts_train_as_two_ranks_of_one_host_also_after_one_of_them_was_stopped(
    shards, tmp_path
):
    together = run_on(shards, tmp_path / "one")
    statuses, output = finish(hosts(together, 1))
    assert statuses == [0], output

    apart = run_on(shards, tmp_path / "two")
    processes = hosts(apart, 2)
    wait_for(lambda: committed(Path(apart.out) / "state"), processes)
    processes[1].send_signal(
        signal.SIGTERM
    )  # a host that is asked to leave takes the other along, in order
    statuses, output = finish(processes)
    assert statuses == [PREEMPTED, PREEMPTED], output
    assert 4 <= len(losses(apart)) < STEPS
    statuses, output = finish(hosts(apart, 2))
    assert statuses == [0, 0], output
    assert "continuing from step-" in output

    assert len(losses(apart)) == STEPS
    assert losses(apart) == losses(together)
    assert sample_ids(apart) == sample_ids(together)
    left, right = (
        load_file(Path(run.out) / "export/model.safetensors") for run in (together, apart)
    )
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], tensor) for name, tensor in right.items())
    # Each rank looked at its share of the shards only, and all of them know which one is damaged.
    assert "rank-1.jsonl" in {path.name for path in (Path(apart.out) / "samples").iterdir()}
    assert (
        len({name for names in sample_ids(together).values() for name in names})
        == VIDEOS * SAMPLES - 8
    )
    result = json.loads((Path(together.out) / "result.json").read_text())
    assert result["ranks"] == 2
    assert set(result["dropped"]) == {"damaged shard"}
