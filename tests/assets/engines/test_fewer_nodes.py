"""How many nodes a stage goes on with after it lost one, and what is told before its first job."""

from __future__ import annotations

import dagster as dg
import pytest
import yaml

from assets.checkpoints.launcher import Torchrun
from assets.deployment.compute import Compute, Pool
from assets.deployment.settings import Training
from assets.engines import slurm
from assets.engines.jobs import Ended, Jobs
from pipeline.instance_folder import REPOSITORY
from training.run_config import parse_run


def guided_pool(**changes) -> Pool:
    """The pool of the cluster guide's settings, with changes."""
    text = (REPOSITORY / "docs/cluster.md").read_text()
    settings = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    return Pool(**{**settings["compute"]["gpu"], **changes})


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """`trained(pool, stage, lost=2)`: on how many nodes the jobs of a stage of 7b were, of which
    so many lost a node, and how the step ended.
    """

    def train(pool: Pool, stage: int, lost: int = 1, **run):
        tried = []

        def one(self, work, nodes):
            tried.append(nodes)
            if len(tried) > lost:
                return Ended(slurm.Job("9", "COMPLETED"), "", 0, tmp_path, None)
            return Ended(slurm.Job("1", "NODE_FAIL"), "lost a node", None, tmp_path, None)

        monkeypatch.setattr(Jobs, "_one", one)
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out/result.json").write_text("{}")
        stream = {"name": "long", "root": "r", "indexes": ["i"]}
        values = {"variant": "7b", "stage": stage, "start": "s", "streams": [stream], **run}
        compute = Compute(gpu=pool, folder=tmp_path / "jobs")

        @dg.asset
        def step(context) -> None:
            run = parse_run({**values, "out": str(tmp_path / "out")})
            Torchrun(Training(processes=2), compute).run(context, run)

        with dg.instance_for_test() as instance:
            result = dg.materialize([step], instance=instance, raise_on_error=False)
        failed = [event for event in result.all_events if event.is_step_failure]
        return tried, failed[0].step_failure_data.error.cause.message if failed else None

    return train


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_guides_stages_go_on_with_the_nodes_that_it_promises(trained, stage):
    assert guided_pool().nodes == 8
    assert trained(guided_pool(), stage) == ([8, 4], None)


@pytest.mark.parametrize(
    ("pool", "run", "tried"),
    [
        ({"nodes": 16, "least_nodes": 2}, {}, [16, 8, 4, 2, 2]),
        ({"nodes": 8, "least_nodes": 3}, {}, [8, 4, 4, 4, 4]),
        ({"nodes": 6, "least_nodes": 2}, {"global_batch": 96}, [6, 4, 3, 2, 2]),
        ({"nodes": 4, "least_nodes": 1}, {"stream_batch": 32}, [4, 2, 1, 1, 1]),
        ({"nodes": 4, "least_nodes": 1, "gpus_per_node": None}, {}, [4, 2, 1, 1, 1]),
        ({"nodes": 8, "least_nodes": None}, {}, [8, 8, 8, 8, 8]),
        ({"nodes": 8, "least_nodes": 8}, {}, [8, 8, 8, 8, 8]),
    ],
)
def test_each_lost_node_leads_to_the_next_lower_number_that_fits(trained, pool, run, tried):
    given = guided_pool(restarts=9, **pool)
    assert trained(given, 2, lost=4, **run) == (tried, None)


@pytest.mark.parametrize(
    ("pool", "run", "told"),
    [
        (
            {"nodes": 7},
            {},
            "compute.gpu.nodes is 7, and 7 x 8 ranks cannot share the global batch 128 of 7b, "
            "stage 2 evenly; numbers of nodes that fit: 1, 2, 4, 8, 16.",
        ),
        (
            {"least_nodes": 5},
            {},
            "compute.gpu.least_nodes is 5, and no number of nodes from there to below 8 has "
            "ranks, 8 on each, that can share the global batch 128 of 7b, stage 2 evenly; numbers "
            "of nodes that fit: 1, 2, 4, 8, 16.",
        ),
        ({"gpus_per_node": 3}, {}, "global batch 128 cannot be shared evenly by 24 ranks"),
        ({}, {"stream_batch": 48}, "stream_batch 48 has to divide the global batch 128"),
    ],
)
def test_nodes_that_do_not_fit_are_told_before_the_first_job(trained, pool, run, told):
    tried, error = trained(guided_pool(**pool), 2, **run)
    assert tried == []
    assert told in error
