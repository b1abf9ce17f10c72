"""A stage whose root is a bucket: its machine is replaced while it trains, and the next one goes on
from the checkpoint in the bucket, to the bytes of a run that was left alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from assets.checkpoints.runs import newest_uploaded
from assets.records.lineage import Lineage
from tests.assets.checkpoints.test_stage_runs import DEPLOYMENT, World
from tests.materializing import materialize_asset
from tests.servers.s3 import s3_root
from training.checkpoint_folder import COMMITTED_NAME
from training.formats.storage import Storage
from training.supervise import _descendants

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CONFIG = {"overrides": {"max_steps": 8}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with dg.instance_for_test() as instance:
        yield World(tmp_path_factory.mktemp("world"), instance)


@pytest.fixture
def bucket(world, tmp_path):
    """The world's root in a bucket, and settings beside it whose scratch is this test's."""
    with s3_root() as url:
        storage = Storage(url)
        names = world.storage.list()
        storage.upload({name: world.storage.local(name) for name in names})
        settings = DEPLOYMENT.replace("root: root\n", f"root: {url}\n").replace(
            "root/mixtures.csv", f"{world.folder}/root/mixtures.csv"
        )
        settings = settings.replace(
            "  cpu_threads: 1\n", "  cpu_threads: 1\n  upload_every_s: 0.1\n"
        )
        (tmp_path / "deployment.yaml").write_text(settings)
        yield storage


def train(world, folder, instance):
    return materialize_asset(world.assets, instance, folder, "stage1", "tiny", CONFIG)


def kill_once_uploaded(storage: Storage, scratch: Path) -> None:
    """End every process of the training, as its machine would end, when a checkpoint has reached
    the bucket. From its first checkpoint on it stands still, so it cannot end before.
    """
    until(lambda: any(scratch.glob(f"**/{COMMITTED_NAME}")))
    signal_training(signal.SIGSTOP)
    until(lambda: uploaded(storage))
    signal_training(signal.SIGKILL)


def uploaded(storage: Storage) -> bool:
    storage.forget_listings()
    runs = {name.split("/state/")[0] for name in storage.list("checkpoints/tiny/stage1")}
    return any(newest_uploaded(storage, run) for run in runs)


def until(reached: Callable[[], bool]) -> None:
    for _ in range(6000):
        if reached():
            return
        time.sleep(0.02)
    raise TimeoutError("no checkpoint")


def signal_training(number: int) -> None:
    for process in _descendants(os.getpid()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if "training.train" in Path(f"/proc/{process}/cmdline").read_text():
                os.kill(process, number)


def test_a_replaced_machine_goes_on_from_the_bucket(world, bucket, tmp_path):
    scratch = tmp_path / ".scratch"
    killing = threading.Thread(target=kill_once_uploaded, args=(bucket, scratch))
    with dg.instance_for_test() as instance:
        killing.start()
        assert not train(world, tmp_path, instance).success
        killing.join()
        shutil.rmtree(scratch)
        result = train(world, tmp_path, instance)
        told = "\n".join(entry.user_message for entry in instance.all_logs(result.run_id))
    bucket.forget_listings()
    assert "continuing from step-" in told
    made = Lineage.read(bucket, "stage1[tiny]")
    with dg.instance_for_test() as instance:
        train(world, world.folder, instance)
    alone = Lineage.read(world.storage, "stage1[tiny]")
    assert made.version == alone.version
    assert made.receipt == alone.receipt
    assert [name for name in bucket.list(made.folder) if "/state/" in name] == []
