"""The check `intact`, run by itself, and the job that reads everything some bytes a night."""

import os

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run

from assets.annotations.catalogue import Catalogue
from assets.deployment.resources import Deployment
from assets.records.lineage import Lineage
from assets.records.product_files import LIST_SUFFIX, write_list
from assets.records.publishing import Published, publish
from assets.sources.base import VideoRow
from pipeline.definitions import definitions
from pipeline.integrity import INTACT, check_integrity, intact_checks, look_through
from pipeline.jobs import JOBS
from training.formats.receipts import describe_files
from training.formats.storage import Storage

VIDEOS = dg.MultiPartitionKey({"part": "part0", "source": "ego4d"})
FILES = {
    "annotations": ["VideoMarathon/annotations.parquet"],
    f"videos[{VIDEOS}]": [f"VideoMarathon/videos/ego4d/{n}.mp4" for n in range(4)],
}


@pytest.fixture
def deployment(tmp_path):
    settings = {
        "root": "root",
        "variants": ["tiny"],
        "annotations": {"paths": ["qa.jsonl"]},
        "sources": {"ego4d": {"kind": "drop", "folder": "drop"}},
        "integrity": {"bytes_per_night": 25_000},
    }
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(settings))
    return Deployment(config=str(tmp_path / "deployment.yaml"))


@pytest.fixture
def storage(deployment):
    """Two products: one file of 10 kB, and four of 10 kB each with their table."""
    storage = deployment.storage()
    for name, files in FILES.items():
        for file in files:
            storage.write_bytes(file, file.encode().ljust(10_000))
        record = Lineage(name, "v", run_id="earlier")
        record.with_files(storage, describe_files(storage, files)).write(storage)
    with Catalogue(storage, "ego4d", "part0") as catalogue:
        catalogue.add([VideoRow("ego4d/0", "ego4d", "0")])
    return storage


def flip(storage, rel):
    path = storage.local(rel)
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def check(instance, deployment, asset, partition=None):
    """Run the check alone, as the UI does; what it found, and whether anything was made."""
    found = definitions()
    made = dg.Definitions(
        found.assets,
        asset_checks=found.asset_checks,
        resources={"deployment": deployment},
        executor=dg.in_process_executor,
    )
    key = dg.AssetCheckKey(dg.AssetKey(asset), INTACT)
    job = made.resolve_implicit_global_asset_job_def()
    subset = job.get_subset(asset_selection=set(), asset_check_selection={key})
    tags = {"dagster/partition": str(partition)} if partition else {}
    run = instance.create_run_for_job(subset, tags=tags)
    assert execute_run(InMemoryJob(subset), run, instance).success
    events = [log.dagster_event for log in instance.all_logs(run.run_id) if log.dagster_event]
    assert not [event for event in events if event.is_step_materialization]
    (evaluation,) = [
        e.event_specific_data for e in events if e.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    return evaluation


def latest(instance, asset, partition=None):
    key = dg.AssetCheckKey(dg.AssetKey(asset), INTACT)
    records = instance.event_log_storage.get_asset_check_execution_history(key, limit=10)
    found = [r.event.dagster_event.event_specific_data for r in records]
    return next(e for e in found if e.partition == partition)


@pytest.mark.slow
@pytest.mark.parametrize(("asset", "partition"), [("annotations", None), ("videos", VIDEOS)])
def test_a_product_is_read_again_without_being_made_again(deployment, storage, asset, partition):
    name = f"{asset}[{partition}]" if partition else asset
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions("part", ["part0"])
        whole = check(instance, deployment, asset, partition)
        assert (whole.passed, whole.partition) == (True, partition)
        assert whole.description.startswith(f"{name}: whole, ")
        flip(storage, FILES[name][0])
        damaged = check(instance, deployment, asset, partition)
    assert (damaged.passed, damaged.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert f"{FILES[name][0]} has other content" in damaged.description
    (row,) = damaged.metadata["damaged"].records
    assert row.data == {"path": FILES[name][0], "fault": "has other content"}


def test_a_run_that_makes_the_product_reads_nothing_again(deployment, monkeypatch):
    @dg.asset
    def made(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
        storage = deployment.storage()
        storage.write_bytes("made", b"x" * 10)
        files = describe_files(storage, ["made"])
        yield from publish(context, deployment, version="v", inputs={}, counts={}, files=files)

    monkeypatch.setattr("pipeline.integrity.verify_product", None)  # whoever calls it fails
    with dg.instance_for_test() as instance:
        resources = {"deployment": deployment}
        result = dg.materialize(
            [made, *intact_checks([made])], instance=instance, resources=resources
        )
        (evaluation,) = result.get_asset_check_evaluations()
    assert evaluation.passed
    assert evaluation.description == "made by this run, and hashed when it was written"


def test_named_jobs_do_not_run_the_check(deployment):
    graph = definitions().resolve_asset_graph()
    for job in JOBS:
        if job.name != "check_integrity":
            keys = job.selection.resolve_checks(graph)
            assert not [key for key in keys if key.name == INTACT], job.name


def test_what_was_read_longest_ago_comes_first_and_a_night_goes_on_where_the_last_stopped(storage):
    clock = iter(range(1, 100))
    nights = [
        [f.product for f in look_through(storage, 25_000, lambda _: None, lambda: next(clock))]
        for _ in range(4)
    ]
    videos = f"videos[{VIDEOS}]"
    # A night ends with the file that fills it: three of 10 kB.
    assert nights == [["annotations"], [videos, "annotations"], [], [videos, "annotations"]]


def test_damage_that_was_found_on_different_nights_is_told_together(storage):
    videos = f"videos[{VIDEOS}]"
    for file in (FILES[videos][0], FILES[videos][3]):
        flip(storage, file)
    nights = [list(look_through(storage, 25_000, lambda _: None)) for _ in range(2)]
    finding = nights[1][0]
    assert [damage.path for damage in finding.damage] == [FILES[videos][0], FILES[videos][3]]


def test_what_was_mended_after_the_night_that_found_it_is_not_told_as_damaged(storage):
    """Made again with the same bytes, a product has the same receipt."""
    videos = f"videos[{VIDEOS}]"
    mended, damaged = FILES[videos][:2]
    for file in (mended, damaged):
        flip(storage, file)
    assert [f.product for f in look_through(storage, 25_000, lambda _: None)] == ["annotations"]
    flip(storage, mended)
    (finding, *_) = look_through(storage, 25_000, lambda _: None)
    assert [str(found) for found in finding.damage] == [f"{damaged} has other content"]


def test_files_of_a_listed_list_are_looked_at_again_as_well(deployment):
    storage, name = deployment.storage(), "features[part0|tiny]"
    below, lists = ["f/0", "f/1"], f"f/all{LIST_SUFFIX}"
    for file in (*below, "g"):
        storage.write_bytes(file, file.encode().ljust(10_000))
    write_list(storage, lists, describe_files(storage, below))
    files = describe_files(storage, [lists, "g"])
    Lineage(name, "v").with_files(storage, files).write(storage)
    for file in below:
        flip(storage, file)
    assert not list(look_through(storage, 5_000, lambda _: None))
    flip(storage, below[0])
    (finding,) = look_through(storage, 5_000, lambda _: None)
    assert [str(found) for found in finding.damage] == [f"{below[1]} has other content"]
    # A list that was lost since is told in place of what it listed.
    assert not list(look_through(storage, 5_000, lambda _: None))
    storage.remove(lists)
    (finding,) = look_through(storage, 5_000, lambda _: None)
    assert [str(found) for found in finding.damage] == [f"{lists} is missing"]


def test_a_night_records_failed_checks_on_the_products_and_fails(deployment, storage):
    videos = f"videos[{VIDEOS}]"
    flip(storage, FILES[videos][1])
    resources = {"deployment": deployment}
    with dg.instance_for_test() as instance:
        for _ in range(2):
            result = check_integrity.execute_in_process(
                instance=instance, resources=resources, raise_on_error=False
            )
        assert latest(instance, "annotations").passed
        found = latest(instance, "videos", str(VIDEOS))
        assert not found.passed
        assert f"{FILES[videos][1]} has other content" in found.description
    assert not result.success
    (event,) = [event for event in result.all_events if event.is_step_failure]
    said = event.step_failure_data.user_failure_data.description
    assert said.startswith(f"1 products are damaged: {videos}. ")


def test_every_round_of_nights_records_its_finding_on_the_newest_materialization(
    deployment, storage
):
    videos, partition = f"videos[{VIDEOS}]", str(VIDEOS)
    made = dg.AssetMaterialization("videos", partition=partition)
    with dg.instance_for_test() as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("annotations"))
        instance.report_runless_asset_event(made)
        for night in range(4):
            if night == 2:  # between the first finding about the videos and the second one
                assert latest(instance, "videos", partition).passed
                flip(storage, FILES[videos][0])
            check_integrity.execute_in_process(
                instance=instance, resources={"deployment": deployment}, raise_on_error=False
            )
        found = latest(instance, "videos", partition)
        (record,) = instance.fetch_materializations(made.asset_key, limit=1).records
    assert not found.passed
    assert found.target_materialization_data.storage_id == record.storage_id


def test_nothing_is_read_of_an_object_store_unless_it_is_asked_for(deployment):
    from pipeline.integrity import LOCAL_PACE, bytes_per_night

    settings = deployment.settings()
    unset = settings.model_copy(
        update={"integrity": settings.integrity.model_copy(update={"bytes_per_night": None})}
    )
    remote, local = Storage("memory://x"), deployment.storage()
    assert [bytes_per_night(unset, s) for s in (local, remote)] == [LOCAL_PACE, 0]
    assert [bytes_per_night(settings, s) for s in (local, remote)] == [25_000, 25_000]
