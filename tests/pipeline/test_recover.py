"""When Dagster's database is lost, the lineage register below the root tells it what is there."""

import dagster as dg
import pytest

from assets.records.lineage import Lineage
from pipeline.recover import recover
from training.formats import layout
from training.formats.storage import Storage


@pytest.fixture
def root(tmp_path):
    """A register as a deployment leaves it: without partitions, with one, with two, and one that
    did not pass.
    """
    storage = Storage(str(tmp_path))
    storage.write_json(layout.PARTS, {"parts": [{"name": "part0"}, {"name": "part1"}]})
    Lineage("annotations", "a1", counts={"rows": 3}).write(storage)
    Lineage("conversations[part0]", "c1", inputs={"annotations": "a1"}).write(storage)
    Lineage("features[part0|tiny]", "f1").write(storage)
    Lineage("conversations[part1]", "c2", failed={"labels": "none has an answer"}).write(storage)
    return storage


def version(instance, asset, partition=None):
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(
            dg.AssetKey(asset), asset_partitions=[partition] if partition else None
        ),
        limit=9,
    ).records
    return [record.asset_materialization.tags["dagster/data_version"] for record in records]


def test_every_product_of_the_register_is_known_again_with_its_version(root):
    said = []
    with dg.instance_for_test() as instance:
        assert recover(instance, root, said.append) == 3
        assert instance.get_dynamic_partitions("part") == ["part0", "part1"]
        assert version(instance, "annotations") == ["a1"]
        assert version(instance, "features", "part0|tiny") == ["f1"]
        assert instance.get_materialized_partitions(dg.AssetKey("conversations")) == {"part0"}
    assert [line.split()[0] for line in said] == [
        "annotations",
        "conversations[part0]",
        "features[part0|tiny]",
    ]


def test_what_dagster_knows_is_left_alone(root):
    with dg.instance_for_test() as instance:
        instance.report_runless_asset_event(
            dg.AssetMaterialization("annotations", tags={"dagster/data_version": "newer"})
        )
        assert recover(instance, root, lambda _: None) == 2
        assert recover(instance, root, lambda _: None) == 0
        assert version(instance, "annotations") == ["newer"]
