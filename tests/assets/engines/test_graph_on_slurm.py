"""Assets of the graph whose work is a job of a real Slurm: the products of a local deployment, byte
for byte.
"""

from __future__ import annotations

import dagster as dg
import pytest

from assets.records.lineage import all_records
from pipeline.verify import verify
from tests.assets.checkpoints import test_stage_runs as stage_world
from tests.assets.test_damage import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SLURM = {"engine": "slurm", "partition": "p"}


def test_long_videos_become_the_same_features_and_shards_as_without_slurm(cluster, tmp_path):
    with dg.instance_for_test() as instance, dg.instance_for_test() as other:
        (tmp_path / "jobs").mkdir()
        (tmp_path / "local").mkdir()
        compute = {"gpu": SLURM, "cpu": SLURM, "poll_s": 0.3}
        jobs = World(tmp_path / "jobs", instance, compute=compute)
        local = World(tmp_path / "local", other)
        made, expected = (
            {record.product: (record.version, record.receipt) for record in all_records(storage)}
            for storage in (jobs.storage, local.storage)
        )
        assert made == expected
        assert verify(jobs.storage, all_records(jobs.storage)).wrong == []
        names = {folder.name for folder in (tmp_path / "jobs/.jobs").iterdir()}
    told = {name.split("-", 2)[2] for name in names}
    assert told == {
        "features-part0-tiny",
        "conversations-part0",
        "videomarathon_json",
        "videomarathon_video-part0",
    }


def test_a_stage_of_the_graph_over_two_nodes_is_the_local_one(cluster, tmp_path):
    with dg.instance_for_test() as instance:
        world = stage_world.World(tmp_path, instance)
        settings = tmp_path / "deployment.yaml"
        settings.write_text(
            stage_world.DEPLOYMENT.replace("training:", "training:\n  processes: 2")
        )
        world.train()
        local = world.record()
        (tmp_path / "root" / local.folder).rename(tmp_path / "made locally")
        settings.write_text(
            stage_world.DEPLOYMENT
            + "compute: {gpu: {engine: slurm, partition: p, nodes: 2}, poll_s: 0.3}\n"
        )
        told = world.train()
        made = world.record()
    assert "runs on n[1-2]" in told
    assert (made.version, made.receipt, made.counts) == (local.version, local.receipt, local.counts)
