"""What a finished product tells Dagster, and what becomes of one that fails its checks."""

from importlib import import_module
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

from assets.annotations.catalogue import SCHEMA as CATALOGUE
from assets.annotations.tables import SCHEMA as ANNOTATIONS
from assets.conversations.samples import SCHEMA as CONVERSATIONS
from assets.deployment.resources import Deployment
from assets.evaluation.answers import SCHEMA as ANSWERS
from assets.records import columns
from assets.records.lineage import Lineage, input_versions
from assets.records.publishing import (
    Published,
    check_spec,
    errors_for_people,
    mend_product,
    publish,
)
from assets.records.rendering import column_schema, samples, table
from assets.records.verdict import Verdict
from training.formats.storage import Storage

PARTS = dg.StaticPartitionsDefinition(["part0", "part1"])
SETTINGS = (
    "root: root\nannotations: {paths: [none.jsonl]}\nsources: {mine: {kind: drop, folder: drop}}\n"
)


@pytest.fixture
def deployment(tmp_path):
    (tmp_path / "deployment.yaml").write_text(SETTINGS)
    return Deployment(config=str(tmp_path / "deployment.yaml"))


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "root"))


def materialize(
    deployment: Deployment, instance: dg.DagsterInstance, verdict: Verdict
) -> dg.ExecuteInProcessResult:
    """Make `features[part0]`, whose check finds `verdict`."""
    spec = check_spec("complete", "features", "Is all there?", PARTS, blocking=verdict.blocking)

    @dg.asset(partitions_def=PARTS, check_specs=[spec])
    def features(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
        metadata = {"hours": 3.0, "notes": [], "lost": table([])}
        counts = {"videos": 2, "quarantined": 0}
        yield from publish(
            context,
            deployment,
            version="v1",
            inputs={},
            counts=counts,
            checks=[verdict],
            metadata=metadata,
        )

    return dg.materialize(
        [features],
        partition_key="part0",
        instance=instance,
        resources={"deployment": deployment},
        raise_on_error=False,
    )


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return str(event.step_failure_data.user_failure_data.description)


def test_a_product_that_fails_a_severe_check_is_not_materialized(deployment, storage):
    with dg.instance_for_test() as instance:
        result = materialize(
            deployment, instance, Verdict("complete", "1 of 2 is missing; extract again", False)
        )
        (evaluation,) = result.get_asset_check_evaluations()
        assert not result.success
        assert (evaluation.passed, evaluation.partition) == (False, "part0")
        assert instance.get_materialized_partitions(dg.AssetKey("features")) == set()
    assert failure(result) == (
        "features[part0] did not pass its checks. complete: 1 of 2 is missing; extract again"
    )


def test_what_failed_its_check_is_refused_as_an_input_also_in_another_run(deployment, storage):
    with dg.instance_for_test() as instance:
        materialize(deployment, instance, Verdict("complete", "fine"))
        assert input_versions(storage, ["features[part0]"]) == {"features[part0]": "v1"}
        materialize(deployment, instance, Verdict("complete", "1 of 2 is missing", False))
    with pytest.raises(
        ValueError,
        match=r"features\[part0\] \(complete: 1 of 2 is missing\)\. Materialize them again",
    ):
        input_versions(storage, ["features[part0]"])


def test_a_warning_stops_nothing_and_is_seen(deployment, storage):
    with dg.instance_for_test() as instance:
        result = materialize(
            deployment, instance, Verdict("complete", "1 is quarantined", False, blocking=False)
        )
        (evaluation,) = result.get_asset_check_evaluations()
        assert instance.get_materialized_partitions(dg.AssetKey("features")) == {"part0"}
    assert result.success
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert Lineage.read(storage, "features[part0]").failed == {}


def test_what_is_zero_or_empty_is_not_shown_but_kept_in_the_lineage(deployment, storage):
    with dg.instance_for_test() as instance:
        result = materialize(deployment, instance, Verdict("complete", "fine"))
    (materialization,) = result.asset_materializations_for_node("features")
    assert {"notes", "lost"}.isdisjoint(materialization.metadata)
    shown = materialization.metadata["counts"]
    assert [record.data for record in shown.records] == [{"what": "videos", "count": 2}]
    assert Lineage.read(storage, "features[part0]").counts == {"videos": 2, "quarantined": 0}


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (ANNOTATIONS, columns.ANNOTATIONS),
        (CATALOGUE, columns.CATALOGUE),
        (CONVERSATIONS, columns.CONVERSATIONS),
        (ANSWERS, columns.ANSWERS),
    ],
)
def test_every_column_of_a_published_table_is_told(schema, told):
    shown = column_schema(schema, told)["dagster/column_schema"]
    assert [column.name for column in shown.columns] == schema.names
    assert all(column.description for column in shown.columns)


def test_a_column_that_nobody_tells_is_named():
    with pytest.raises(ValueError, match="width"):
        column_schema(pa.schema([("width", pa.int32())]), {})


def test_what_fits_a_line_comes_first_with_the_digits_a_person_reads(deployment):
    @dg.asset
    def made(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
        metadata = {
            "rows": table([{"a": 1}]),
            "loss": 0.09704925387673465,
            "bytes a second": 905789.0553,
            "name": "x",
        }
        yield from publish(
            context, deployment, version="v1", inputs={}, counts={"all": 2}, metadata=metadata
        )

    with dg.instance_for_test() as instance:
        result = dg.materialize([made], instance=instance, resources={"deployment": deployment})
        (event,) = result.asset_materializations_for_node("made")
    shown = {name: entry.value for name, entry in event.metadata.items()}
    assert list(shown) == ["loss", "bytes a second", "name", "version", "counts", "rows", "lineage"]
    assert (shown["loss"], shown["bytes a second"], shown["version"]) == (0.09705, 905789, "v1")


def cells(metadata):
    return [record.data for record in metadata.records]


def test_one_example_is_shown_turn_by_turn_and_short_enough_to_be_inline():
    rows = [
        {"turns": 2, "id": "a", "conversation": "human: <image>\nWhat?\ngpt: Green."},
        {"turns": 4, "id": "b"},
    ]
    shown = samples(rows)
    assert cells(shown["one sample"]) == [
        {"who": "human", "says": "<image>\nWhat?"},
        {"who": "gpt", "says": "Green."},
    ]
    assert cells(shown["examples"]) == [{"id": "a", "turns": 2}, {"id": "b", "turns": 4}]
    ((long,),) = [
        cells(samples([{"id": "a", "conversation": "human: " + "x" * 5000}])["one sample"])
    ]
    assert 800 < len(long["says"]) < 1000
    assert samples([]) == {}


def test_a_missing_package_is_not_tried_again_and_is_named():
    with (
        pytest.raises(dg.Failure, match=r"(?s)no_such_package.*install it") as failure,
        errors_for_people(),
    ):
        import_module("no_such_package")
    assert not failure.value.allow_retries


@pytest.mark.slow
def test_a_root_that_was_lost_is_said_in_one_sentence_and_not_begun_anew(deployment, storage):
    @dg.asset
    def made(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
        with errors_for_people():
            mend_product(context, deployment)
        yield from publish(context, deployment, version="v1", inputs={}, counts={})

    @dg.asset(deps=[made])
    def user(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
        with errors_for_people():
            inputs = input_versions(deployment.storage(), [f"made[part{n}]" for n in range(50)])
        yield from publish(context, deployment, version="v1", inputs=inputs, counts={})

    def run(asset):
        resources = {"deployment": deployment}
        return dg.materialize([asset], instance=instance, resources=resources, raise_on_error=False)

    root = Path(storage.root)
    with dg.instance_for_test() as instance:
        assert "the root" in (refused := failure(run(user)))
        assert refused.startswith(f"the root {root} is not there; mount or move it back")
        assert len(refused) < 250
        assert run(made).success  # a new deployment makes its root itself
        root.rename(root.with_name("moved"))
        said = failure(run(made))
        assert said.startswith(f"the root {root} is not there, and this Dagster instance remembers")
        assert not root.exists()
        root.mkdir()
        assert failure(run(made)).startswith(f"the root {root} is empty, and this")
        (root / "lineage").mkdir()
        assert run(made).success
