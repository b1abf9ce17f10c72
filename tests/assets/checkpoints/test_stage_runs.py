"""A stage as Dagster runs it: overrides that continue a run, a damaged export that is mended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import dagster as dg
import pytest

from assets.checkpoints.base import prepare_base
from assets.checkpoints.runs import previous_checkpoint, publish_results, restore_results, stage_run
from assets.deployment.launchpad import StageLaunch
from assets.deployment.settings import load_settings
from assets.records.coverage import Coverage
from assets.records.lineage import Lineage
from assets.shards.coverage import collection_coverage
from assets.shards.writer import write_kind_part
from pipeline.verify import WHOLE, verify_product
from tests.assets.shards.roots import MIXTURE, make_root, quiet
from tests.materializing import materialize_asset
from training.formats.storage import Storage

DEPLOYMENT = """
root: root
parts: 1
variants: [tiny]
annotations: {paths: [rows.jsonl]}
sources: {clips: {kind: drop, folder: drop}}
collections: {mixtures: root/mixtures.csv}
shards: {workers: 1, rows_per_shard: 8}
training:
  cpu_threads: 1
  overrides:
    stage1: {max_steps: 3, save_every: 1, global_batch: 4, workers: 0, tensorboard: false}
automation: {data: false}
"""


class World:
    """A deployment with all that stage 1 needs."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        from pipeline.definitions import definitions

        self.folder, self.instance, self.assets = folder, instance, definitions().assets
        (folder / "root").mkdir()
        (folder / "deployment.yaml").write_text(DEPLOYMENT)
        self.storage = make_root(folder / "root", images=16)
        (folder / "root/mixtures.csv").write_text(MIXTURE)
        self.settings = load_settings(folder / "deployment.yaml")
        for part in range(10):
            kind = "llava_ov_si_onlyimg"
            report = write_kind_part(self.storage, self.settings, kind, part, quiet)
            share = collection_coverage(kind, report).record()
            made = Lineage(f"{kind}[part{part}]", report.version, coverage=share)
            made.write(self.storage)
        base = prepare_base(self.storage, self.settings, "tiny", quiet)
        Lineage("base_model[tiny]", base.version, base.folder).write(self.storage)

    @property
    def out(self) -> Path:
        (found,) = (self.folder / "root/checkpoints/tiny/stage1").glob("*")
        return found

    def record(self) -> Lineage:
        return Lineage.read(self.storage, "stage1[tiny]")

    def train(self, **overrides) -> str:
        """Materialize the stage; what its log says."""
        config = {"overrides": overrides} if overrides else None
        result = materialize_asset(
            self.assets, self.instance, self.folder, "stage1", "tiny", config
        )
        told = "\n".join(log.user_message for log in self.instance.all_logs(result.run_id))
        # Three steps with few images need not lower the loss; what they leave has to be usable.
        assert self.record().folder.startswith("checkpoints/tiny/stage1/"), told
        return told

    def run(self, **overrides):
        """The run and the folder that the launchpad's overrides lead to."""
        settings = StageLaunch(overrides=overrides).applied(self.settings, 1)
        start = previous_checkpoint(self.settings, "tiny", 1)
        inputs = {start: Lineage.read(self.storage, start).version}
        return stage_run(settings, self.storage, "tiny", 1, inputs)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with dg.instance_for_test() as instance:
        yield World(tmp_path_factory.mktemp("world"), instance)


HARMLESS = {
    "micro_tokens": 5000, "workers": 1, "save_every": 2, "max_dropped_share": 0.3,
    "compile": False, "micro_batch": 2, "keep": 4, "milestone_every": 2, "prefetch": 1,
    "data_timeout_s": 9.0, "tensorboard": True, "nonfinite_limit": 5,
}  # fmt: skip


@pytest.mark.slow
def test_overrides_that_change_no_step_lead_to_the_same_folder(world):
    _, folder = world.run()
    assert world.run(**HARMLESS)[1] == folder
    for name, value in {"max_steps": 4, "warmup": 0.5, "weight_decay": 0.1, "seed": "x"}.items():
        assert world.run(**{name: value})[1] != folder, name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stage_goes_on_under_harmless_overrides_and_mends_a_damaged_export(world):
    world.train()
    trained_on = Coverage.read(world.record().coverage)
    assert trained_on.sentence == "100 % of rows (16 of 16)"
    assert trained_on.by_kind() == [
        {"kind": "llava_ov_si_onlyimg", "rows": 16, "asked for": 16, "share": "100 %"}
    ]
    record, out, weights = world.record(), world.out, world.out / "export/model.safetensors"
    assert verify_product(world.storage, record).verdict == WHOLE
    whole = weights.read_bytes()

    damaged = bytearray(whole)
    damaged[-9] ^= 1
    weights.write_bytes(damaged)
    assert str(verify_product(world.storage, record)) == (
        f"stage1[tiny]: CHANGED: {record.folder}/export/model.safetensors has other content"
    )
    told = world.train()
    assert "export/model.safetensors has other content; set aside as damaged/result.json.1" in told
    assert "continuing from step-3" in told
    assert weights.read_bytes() == whole
    assert (out / "damaged/export.1/model.safetensors").read_bytes() == damaged
    mended = world.record()
    assert mended.version == record.version
    assert verify_product(world.storage, mended).verdict == WHOLE

    shutil.rmtree(out / "export")  # as it was after the second step
    shutil.rmtree(out / "state/step-3")
    (out / "result.json").unlink()
    told = world.train(**HARMLESS)
    assert "continuing from step-2" in told
    assert weights.read_bytes() == whole
    assert world.record().version == record.version
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_a_finished_stage_is_fetched_from_a_remote_root_and_not_trained_again(world, tmp_path):
    remote = Storage(f"memory://{tmp_path.name}")
    settings = world.settings.model_copy(
        update={"training": world.settings.training.model_copy(update={"scratch": tmp_path})}
    )
    folder = "checkpoints/tiny/stage1/abc"
    made = {"export/model.safetensors": "w", "result.json": "{}", "metrics.jsonl": "m"}
    own = {"state/step-3/COMMITTED": "", "lock": "", "holder.json": "", "damaged/export.1/x": "x"}
    for name, text in {**made, **own}.items():
        (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).write_text(text)
    publish_results(settings, remote, folder)
    assert remote.list(folder) == sorted(f"{folder}/{name}" for name in made)

    (tmp_path / folder).rename(tmp_path / "gone")
    restore_results(settings, remote, folder)
    found = {
        str(path.relative_to(tmp_path / folder)): path.read_text()
        for path in (tmp_path / folder).rglob("*")
        if path.is_file()
    }
    assert found == made
