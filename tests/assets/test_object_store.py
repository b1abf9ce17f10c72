"""The long videos' way from a drop folder to shards and features on an S3 root, through Dagster,
with a local S3 server: the same bytes as on a local root, receipts and their mending included.
"""

import dagster as dg
import pytest

from assets.records.lineage import Lineage, all_records
from pipeline.verify import verify
from tests.assets.test_damage import KINDS, SOURCE_PART, VARIANT_PART, World
from tests.servers.s3 import s3_root
from training.formats.storage import Storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def root():
    with s3_root() as url:
        yield url


@pytest.fixture(scope="module")
def worlds(root, tmp_path_factory):
    """The same deployment on the object store and on a local folder."""
    with dg.instance_for_test() as instance, dg.instance_for_test() as other:
        remote = World(tmp_path_factory.mktemp("remote"), instance, root)
        yield remote, World(tmp_path_factory.mktemp("local"), other)


def content(storage: Storage) -> dict[str, bytes]:
    """Files by name, without records, stamps and reports: these hold runs and times."""
    left_out = ("lineage", "stamps", "damaged")
    return {
        name: storage.read_bytes(name)
        for name in storage.list()
        if name.split("/")[0] not in left_out
        and not name.endswith(("lineage.json", ".report.json", ".jsonl"))
        and "/catalogue/" not in name
    }


def test_the_object_store_holds_the_bytes_of_a_local_root(worlds):
    remote, local = worlds
    found, expected = content(remote.storage), content(local.storage)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []
    versions = [
        {record.product: (record.version, record.receipt) for record in all_records(storage)}
        for storage in (remote.storage, local.storage)
    ]
    assert versions[0] == versions[1]


def test_everything_is_verified_by_its_bytes(worlds):
    remote, _ = worlds
    found = verify(remote.storage, all_records(remote.storage))
    assert found.wrong == []
    assert found.verdict.startswith("whole: ")


@pytest.mark.parametrize(
    ("asset", "partition", "name"),
    [kind[:3] for kind in KINDS if kind[1] in (SOURCE_PART, VARIANT_PART, "part0")],
    ids=[kind[0] for kind in KINDS if kind[1] is not None],
)
def test_a_damaged_object_is_found_by_its_etag_and_made_again(worlds, asset, partition, name):
    remote, _ = worlds
    whole = remote.storage.read_bytes(name)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    remote.storage.write_bytes(name, bytes(damaged))
    assert remote.make(asset, partition).success
    assert any(
        f"{name} has other content; set aside as damaged/{name}.1" in line for line in remote.lines
    )
    assert remote.storage.read_bytes(name) == whole
    assert (
        Lineage.read(remote.storage, f"{asset}[{partition}]").damage(remote.storage, full=True)
        == []
    )
