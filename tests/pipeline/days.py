"""A deployment whose days pass: what runs by itself, simulated on a register without any files."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import yaml

from assets.automation.conditions import state_of
from assets.automation.runs import BY_AUTOMATION
from assets.automation.state import State
from assets.deployment.partitions import llava_part_partitions, source_partitions
from assets.records.lineage import Lineage, split_product
from assets.records.publishing import failure_for_a_person
from training.formats import layout
from training.formats.kinds import LLAVA_KINDS
from training.formats.storage import Storage

TESTS = Path(__file__).parents[1]
DATA_ASSETS = dg.AssetSelection.tag("hourllava/automation", "data")
TRAINING_ASSETS = dg.AssetSelection.tag("hourllava/automation", "training")
SOURCES = source_partitions.get_partition_keys()
VARIANTS = ("tiny", "3b", "7b")


def write_settings(folder: Path, **changes: object) -> Path:
    """The settings that the tests' code location was loaded with, with a root of their own."""
    settings = yaml.safe_load((TESTS / "deployment.yaml").read_text())
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump({**settings, "root": "root", **changes}))
    return path


class Days:
    """A clock, an instance, a register, and the two automation sensors' evaluations.

    The settings are those that `HOURLLAVA_CONFIG` names: `write_settings` made them.
    """

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        from pipeline.definitions import definitions

        self.instance, self.defs = instance, definitions()
        self.graph = self.defs.resolve_asset_graph()
        self.storage = Storage(str(folder / "root"))
        self.now = dt.datetime(2026, 3, 2, 12, 0, tzinfo=dt.UTC)
        self.cursors: dict[str, object] = {}
        # Product -> the versions that its run has read.
        self.started: dict[str, dict[str, str]] = {}

    def tick(self, sensor: dg.AssetSelection = DATA_ASSETS, **later: int) -> set[str]:
        """What one evaluation asks for; the requests read their inputs, and are taken to be
        running.
        """
        self.now += dt.timedelta(**(later or {"minutes": 1}))
        result = dg.evaluate_automation_conditions(
            defs=self.defs,
            instance=self.instance,
            asset_selection=sensor,
            cursor=self.cursors.get(str(sensor)),
            evaluation_time=self.now,
        )
        self.cursors[str(sensor)] = result.cursor
        asked = set()
        for key in self.graph.get_all_asset_keys():
            if self.graph.get(key).is_partitioned:
                asked |= {
                    f"{key.to_user_string()}[{p}]" for p in result.get_requested_partitions(key)
                }
            elif result.get_num_requested(key):
                asked.add(key.to_user_string())
        self.started |= {name: self.read(name) for name in asked}
        return asked

    def night(self) -> set[str]:
        """What the training sensor asks for at two in the morning (UTC), and then no more."""
        tonight = self.now.replace(hour=2, minute=0, second=30)
        self.now = tonight if tonight > self.now else tonight + dt.timedelta(days=1)
        return self.tick(TRAINING_ASSETS, minutes=0)

    def state(self) -> State:
        return state_of(self.instance, self.graph, self.storage)

    def read(self, name: str) -> dict[str, str]:
        """The versions of a product's inputs now."""
        state = self.state()
        versions = {other: state.version(other) for other in state.wanted(name)}
        return {other: version for other, version in versions.items() if version}

    def made(self, *names: str, version: str = "1") -> None:
        """Record that products were made, with contents of `version`."""
        for name in names:
            asset, partition = split_product(name)
            if asset not in WATCHED:
                inputs = self.started.pop(name, None) or self.read(name)
                Lineage(name, version, inputs=inputs).write(self.storage)
            self.report(asset, partition, version)

    def report(self, asset: str, partition: str | None, version: str) -> None:
        tags = {"dagster/data_version": version}
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(asset, partition=partition, tags=tags)
        )

    def run(
        self,
        name: str,
        *,
        check: str | None = None,
        passed: bool = True,
        error: Exception | None = None,
        automatic: bool = True,
        version: str = "2",
    ) -> str:
        """A real run that makes a product: with a finding of its check, or failing by `error`.

        Returns:
            Its id.
        """
        asset, partition = split_product(name)
        node = self.graph.get(dg.AssetKey(asset))
        specs = [spec for spec in node.assets_def.check_specs if spec.name == check]
        blocked = any(spec.blocking for spec in specs) and not passed
        inputs = self.started.pop(name, None) or self.read(name)

        @dg.asset(name=asset, partitions_def=node.partitions_def, check_specs=specs)
        def stand_in(
            context: dg.AssetExecutionContext,
        ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
            if error:
                raise error
            failed = {str(check): "as in assets/records/publishing.py"} if blocked else {}
            record = Lineage(name, version, inputs=inputs, failed=failed, run_id=context.run_id)
            record.write(self.storage)
            results = [
                dg.AssetCheckResult(
                    check_name=spec.name,
                    passed=passed,
                    severity=dg.AssetCheckSeverity.ERROR
                    if spec.blocking
                    else dg.AssetCheckSeverity.WARN,
                )
                for spec in specs
            ]
            if blocked:
                yield from results
                raise failure_for_a_person("it did not pass its checks")
            yield dg.MaterializeResult(data_version=dg.DataVersion(version), check_results=results)

        result = dg.materialize(
            [stand_in],
            partition_key=partition,
            instance=self.instance,
            raise_on_error=False,
            tags=BY_AUTOMATION if automatic else {},
        )
        assert result.success is (error is None and not blocked)
        return result.run_id

    def make_all(self, asked: set[str], version: str = "1") -> None:
        self.made(*sorted(asked), version=version)

    def add_part(self, name: str) -> None:
        """A part that is new to the catalogue, with its rows."""
        known = self.storage.read_json(layout.PARTS)["parts"] if self.has_catalogue() else []
        self.storage.write_json(layout.PARTS, {"parts": [*known, {"name": name}]})
        self.instance.add_dynamic_partitions("part", [name])
        self.made(f"part_rows[{name}]")

    def has_catalogue(self) -> bool:
        return self.storage.exists(layout.PARTS)

    def settle(self, sensor: dg.AssetSelection = DATA_ASSETS, version: str = "1") -> list[set[str]]:
        """Evaluate and make until nothing more is asked for; what each round asked for."""
        rounds = []
        for _ in range(20):
            asked = self.tick(sensor)
            if not asked:
                if not rounds or not self.tick(sensor):
                    return rounds
                continue
            rounds.append(asked)
            self.make_all(asked, version)
        raise AssertionError(f"never settles: {rounds[-1]}")

    def everything_made(self, *parts: str) -> None:
        """A deployment as it stands after a person has run it once, in every part."""
        self.made(*WATCHED, "annotations", "catalogue", "llava_onevision", "llava_video")
        for part in parts or ("part0",):
            self.add_part(part)
        for llava_part in llava_part_partitions.get_partition_keys():
            self.made(*(f"{kind}[{llava_part}]" for kind in LLAVA_KINDS))
        for part in parts or ("part0",):
            self.made(*(f"videos[{part}|{source}]" for source in SOURCES))
            self.made(f"conversations[{part}]", f"videomarathon_video[{part}]")
        self.made("videomarathon_json")
        for variant in VARIANTS:
            names = ("base_model", "stage1", "stage2", "vision_encoder")
            self.made(*(f"{name}[{variant}]" for name in names))
            self.made(*(f"features[{part}|{variant}]" for part in parts or ("part0",)))
        self.made("hourllava_s3")
        for variant in VARIANTS:
            self.made(f"stage3[{variant}]", f"evaluation[{variant}]")


WATCHED = ("landing", "hub_annotations", "hub_llava_onevision", "hub_llava_video")
