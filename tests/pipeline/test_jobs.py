"""Named jobs: what each one makes, which pool and which retries its steps have, and everything for
one variant.
"""

from pathlib import Path

import dagster as dg
import pytest
import yaml

from assets.automation.rules import RETRY_NETWORK
from assets.deployment.partitions import llava_part_partitions, source_partitions
from assets.fetching.errors import AccessError
from assets.records.publishing import errors_for_people
from assets.records.withdrawals import POOL
from pipeline.backfill import due_subsets
from training.formats import layout
from training.formats.storage import Storage

TESTS = Path(__file__).parents[1]
PARTS = ["part0", "part1"]
LLAVA = llava_part_partitions.get_partition_keys()
SOURCES = source_partitions.get_partition_keys()


@pytest.fixture(scope="module")
def defs():
    from pipeline.definitions import definitions

    return definitions()


@pytest.fixture
def instance():
    with dg.instance_for_test() as made:
        made.add_dynamic_partitions("part", PARTS)
        yield made


def made(instance, *names):
    for name in names:
        asset, _, partition = name.partition("[")
        instance.report_runless_asset_event(
            dg.AssetMaterialization(asset, partition=partition.rstrip("]") or None)
        )


def due(instance, defs, variant, also=()):
    """``asset`` or ``asset[partition]`` of everything that the job would have made."""
    found = set()
    for subset in due_subsets(instance, defs.resolve_asset_graph(), variant, PARTS, also):
        name = subset.key.to_user_string()
        keys = subset.expensively_compute_partition_keys() if subset.is_partitioned else [None]
        found |= {f"{name}[{key}]" if key else name for key in keys}
    return found


SHARED = {
    *(f"videos[{part}|{source}]" for part in PARTS for source in SOURCES),
    *(f"{name}[{part}]" for name in ("conversations", "videomarathon_video") for part in PARTS),
    *(
        f"{kind}[{part}]"
        for kind in (
            "llava_ov_si_onlyimg",
            "llavavideo_text",
            "llavavideo_si",
            "llavavideo_mi",
            "llavavideo_video",
        )
        for part in LLAVA
    ),
    "hourllava_s3",
}


def of_variant(variant):
    names = ("base_model", "stage1", "stage2", "vision_encoder", "stage3", "evaluation")
    return {
        *(f"{name}[{variant}]" for name in names),
        *(f"features[{part}|{variant}]" for part in PARTS),
    }


def test_every_job_tells_a_stranger_what_it_does_and_can_be_found_by_its_step(defs):
    jobs = [job for job in defs.resolve_all_job_defs() if not job.name.startswith("_")]
    assert len(jobs) >= 12
    for job in jobs:
        assert len(job.description or "") > 40, job.name
        assert job.tags["hourllava/step"] in {
            "data",
            "shards",
            "features",
            "training",
            "everything",
        }, job.name


def test_every_step_that_is_heavy_on_something_is_in_a_pool(defs):
    """Light ones, which only list or name what others made, need none."""
    pools = {
        item.node_def.name: item.node_def.pool
        for item in defs.assets
        if isinstance(item, dg.AssetsDefinition)
    }
    light = {name for name, pool in pools.items() if pool is None}
    assert light == {"catalogue", "hourllava_s3"}
    assert {name for name, pool in pools.items() if pool == "gpu"} >= {
        "stage1",
        "stage2",
        "stage3",
        "features",
    }
    assert set(pools.values()) <= {"gpu", "download", "endpoint", "cpu", None}


def test_what_changes_the_record_of_withdrawals_runs_one_at_a_time(defs):
    for job, step in (
        ("withdraw_video", "withdraw"),
        ("give_up_part", "give_up"),
        ("take_back_part", "take_back"),
    ):
        assert defs.resolve_job_def(job).graph.node_named(step).definition.pool == POOL


def test_what_asks_other_machines_is_tried_again_and_nothing_else_is(defs):
    steps = [item.node_def for item in defs.assets if isinstance(item, dg.AssetsDefinition)]
    assert {step.name for step in steps if step.retry_policy} == {
        step.name for step in steps if step.pool in ("download", "endpoint")
    }


def test_what_a_person_has_to_mend_is_not_tried_again():
    tries = []

    @dg.asset(retry_policy=RETRY_NETWORK)
    def fetched() -> None:
        tries.append(len(tries))
        with errors_for_people():
            raise AccessError("the set is gated: agree on its page")

    with dg.instance_for_test() as instance:
        assert not dg.materialize([fetched], instance=instance, raise_on_error=False).success
    assert len(tries) == 1


def test_everything_for_a_variant_is_what_all_share_and_what_is_its_own(defs, instance):
    assert due(instance, defs, "3b") == SHARED | of_variant("3b")


def test_what_another_variant_made_is_not_made_again(defs, instance):
    made(instance, *SHARED, *of_variant("tiny"))
    assert due(instance, defs, "3b") == of_variant("3b")
    assert due(instance, defs, "tiny") == set()


def test_a_missing_part_is_made_and_with_it_all_that_is_made_from_it(defs, instance):
    made(instance, *SHARED - {"conversations[part1]"}, *of_variant("tiny"))
    expected = {
        "conversations[part1]",
        "videomarathon_video[part1]",
        "hourllava_s3",
        "stage3[tiny]",
        "evaluation[tiny]",
    }
    assert due(instance, defs, "tiny") == expected


def test_what_is_out_of_date_is_made_again_where_the_variant_has_it(defs, instance):
    made(instance, *SHARED, *of_variant("tiny"))
    stale = {"features[part1|tiny]", "features[part1|3b]"}
    expected = {"features[part1|tiny]", "stage3[tiny]", "evaluation[tiny]"}
    assert due(instance, defs, "tiny", stale) == expected


@pytest.fixture
def deployment(tmp_path):
    """A deployment's settings, with its parts catalogued."""
    Storage(str(tmp_path)).write_json(layout.PARTS, {"parts": [{"name": part} for part in PARTS]})
    return settings_of(tmp_path)


def settings_of(root):
    settings = yaml.safe_load((TESTS / "deployment.yaml").read_text())
    path = root / "deployment.yaml"
    path.write_text(yaml.safe_dump({**settings, "root": str(root)}))
    return path


def run_everything(defs, instance, variant, deployment):
    config = {
        "ops": {"start_backfill": {"config": {"variant": variant}}},
        "resources": {"deployment": {"config": {"config": str(deployment)}}},
    }
    job = defs.resolve_job_def("02_everything_for_variant")
    return job.execute_in_process(run_config=config, instance=instance, raise_on_error=False)


def failure(result):
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    return event.event_specific_data.error.message


def test_the_job_starts_one_backfill_that_holds_all_of_it(defs, instance, deployment):
    instance.add_dynamic_partitions("part", ["typed-by-hand"])
    assert run_everything(defs, instance, "tiny", deployment).success
    (backfill,) = instance.get_backfills()
    assert backfill.title == "everything for tiny"
    target = backfill.asset_backfill_data.target_subset
    pieces = {
        f"{item.asset_key.to_user_string()}[{item.partition_key}]"
        if item.partition_key
        else item.asset_key.path[0]
        for item in target.iterate_asset_partitions()
    }
    assert pieces == SHARED | of_variant("tiny")


def test_when_everything_is_there_no_backfill_is_started(defs, instance, deployment):
    made(instance, *SHARED, *of_variant("tiny"))
    assert run_everything(defs, instance, "tiny", deployment).success
    assert instance.get_backfills() == []


def test_an_unknown_variant_and_a_missing_catalogue_say_what_to_do(
    defs, instance, deployment, tmp_path
):
    assert "no variant '4b': the settings have tiny, 3b, 7b" in failure(
        run_everything(defs, instance, "4b", deployment)
    )
    (tmp_path / layout.PARTS).unlink()
    assert "run the job 01_collect_sources first" in failure(
        run_everything(defs, instance, "tiny", deployment)
    )
