"""Several days of a deployment, simulated: what runs by itself, what does not, and when."""

import datetime as dt
from collections.abc import Iterator

import dagster as dg
import pytest

from assets.deployment.partitions import llava_part_partitions, source_partitions

UTC = dt.UTC
DATA_ASSETS = dg.AssetSelection.tag("hourllava/automation", "data")
TRAINING_ASSETS = dg.AssetSelection.tag("hourllava/automation", "training")


class Days:
    """A clock, an instance and the two automation sensors' evaluations."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        from pipeline.definitions import definitions

        self.instance, self.defs = instance, definitions()
        self.now = dt.datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
        self.cursors: dict[str, object] = {}
        self.evaluations = 0

    def tick(self, sensor: dg.AssetSelection = DATA_ASSETS, **later: int) -> set[str]:
        """What one evaluation asks for, ``asset`` or ``asset[partition]``; the requests are taken
        to be running.
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
        for key in self.defs.resolve_asset_graph().get_all_asset_keys():
            if self.defs.resolve_asset_graph().get(key).is_partitioned:
                asked |= {
                    f"{key.to_user_string()}[{p}]" for p in result.get_requested_partitions(key)
                }
            elif result.get_num_requested(key):
                asked.add(key.to_user_string())
        return asked

    def made(self, *names: str, version: str = "1") -> None:
        """Record that products were made, with contents of ``version``."""
        for name in names:
            asset, _, partition = name.partition("[")
            key: str | dg.MultiPartitionKey | None = partition.rstrip("]") or None
            self.instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    asset, partition=key, tags={"dagster/data_version": version}
                )
            )

    def checked(self, name: str, check: str, passed: bool) -> None:
        """A run that makes ``name`` and finds this in its check; where a blocking one fails, it
        publishes nothing.
        """
        asset, _, partition = name.partition("[")
        node = self.defs.resolve_asset_graph().get(dg.AssetKey(asset))
        (spec,) = [s for s in node.assets_def.check_specs if s.name == check]

        @dg.asset(name=asset, partitions_def=node.partitions_def, check_specs=[spec])
        def stand_in() -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
            severity = dg.AssetCheckSeverity.ERROR if spec.blocking else dg.AssetCheckSeverity.WARN
            result = dg.AssetCheckResult(check_name=check, passed=passed, severity=severity)
            if spec.blocking and not passed:
                yield result
                raise dg.Failure("as in assets/records/publishing.py")
            yield dg.MaterializeResult(data_version=dg.DataVersion("2"), check_results=[result])

        key = partition.rstrip("]") or None
        run = dg.materialize(
            [stand_in], partition_key=key, instance=self.instance, raise_on_error=False
        )
        assert run.success is (passed or not spec.blocking)

    def make_all(self, asked: set[str], version: str = "1") -> None:
        self.made(*sorted(asked), version=version)

    def add_part(self, name: str) -> None:
        self.instance.add_dynamic_partitions("part", [name])

    def settle(self, sensor: dg.AssetSelection = DATA_ASSETS, version: str = "1") -> list[set[str]]:
        """Evaluate and make until nothing more is asked for; what each round asked for."""
        rounds = []
        for _ in range(20):
            asked = self.tick(sensor)
            if not asked:
                if rounds and not self.tick(sensor):
                    return rounds
                if not rounds:
                    return rounds
                continue
            rounds.append(asked)
            self.make_all(asked, version)
        raise AssertionError(f"never settles: {rounds[-1]}")


@pytest.fixture
def days():
    with dg.instance_for_test() as instance:
        yield Days(instance)


SOURCES = source_partitions.get_partition_keys()


def everything_made(days: Days) -> None:
    """A deployment as it stands after a person has run it once, in every part."""
    days.add_part("part0")
    days.made("landing", "hub_annotations", "hub_llava_onevision", "hub_llava_video")
    days.made("annotations", "catalogue", "llava_onevision", "llava_video")
    for part in llava_part_partitions.get_partition_keys():
        days.made(
            *(
                f"{kind}[{part}]"
                for kind in (
                    "llava_ov_si_onlyimg",
                    "llavavideo_text",
                    "llavavideo_si",
                    "llavavideo_mi",
                    "llavavideo_video",
                )
            )
        )
    days.made("part_rows[part0]", *(f"videos[part0|{source}]" for source in SOURCES))
    days.made("conversations[part0]", "videomarathon_video[part0]", "videomarathon_json")
    for variant in ("tiny", "3b", "7b"):
        days.made(
            *(f"{name}[{variant}]" for name in ("base_model", "stage1", "stage2", "vision_encoder"))
        )
        days.made(f"features[part0|{variant}]")
    days.made("hourllava_s3")
    for variant in ("tiny", "3b", "7b"):
        days.made(f"stage3[{variant}]", f"evaluation[{variant}]")


def test_a_fresh_clone_starts_nothing_by_itself(days):
    assert days.tick() == set()
    assert days.tick(TRAINING_ASSETS) == set()
    assert days.tick(TRAINING_ASSETS, days=1) == set()


def test_a_deployment_at_rest_stays_at_rest_for_days(days):
    everything_made(days)
    assert days.settle() == []
    for _ in range(3):
        assert days.tick(TRAINING_ASSETS, days=1) == set()
        assert days.tick() == set()


def test_a_landing_costs_only_its_own_part_and_then_the_mixture(days):
    everything_made(days)
    days.settle()
    days.made("landing", version="2")
    assert days.tick() == {"annotations"}
    days.made("annotations", version="2")
    assert days.tick() == {"catalogue"}
    days.add_part("part1")
    days.made("catalogue", "part_rows[part1]", version="2")
    rounds = days.settle(version="2")
    asked = [name for names in rounds for name in names]
    assert set(asked) == {
        *(f"videos[part1|{source}]" for source in SOURCES),
        "conversations[part1]",
        "videomarathon_video[part1]",
        *(f"features[part1|{variant}]" for variant in ("tiny", "3b", "7b")),
        "hourllava_s3",
        "videomarathon_json",
    }
    assert len(asked) == len(set(asked)), rounds
    assert "hourllava_s3" in rounds[-1]


def test_conversations_wait_for_every_source_of_their_part(days):
    everything_made(days)
    days.settle()
    days.add_part("part1")
    days.made("part_rows[part1]")
    videos = {f"videos[part1|{source}]" for source in SOURCES}
    assert days.tick() == videos
    late = sorted(videos)[0]
    days.made(*sorted(videos - {late}))
    assert days.tick() == set()
    days.made(late)
    assert "conversations[part1]" in days.tick()


def test_the_same_bytes_again_move_nothing(days):
    everything_made(days)
    days.settle()
    days.made(
        "landing", "annotations", "catalogue", *(f"videos[part0|{source}]" for source in SOURCES)
    )
    days.made("hourllava_s3")
    assert days.settle() == []
    days.tick(TRAINING_ASSETS)
    assert days.tick(TRAINING_ASSETS, days=1) == set()


def test_stage_three_waits_for_the_night_and_for_changed_contents(days):
    everything_made(days)
    days.tick(TRAINING_ASSETS)
    days.made("hourllava_s3", version="2")
    assert days.tick(TRAINING_ASSETS, hours=1) == set()
    assert days.tick(TRAINING_ASSETS, days=1) == {
        f"stage3[{variant}]" for variant in ("tiny", "3b", "7b")
    }
    assert days.tick(TRAINING_ASSETS, hours=1) == set()


def test_what_lands_while_a_training_runs_is_trained_the_night_after(days):
    everything_made(days)
    days.tick(TRAINING_ASSETS)
    days.made("hourllava_s3", version="2")
    assert days.tick(TRAINING_ASSETS, days=1)
    days.made("hourllava_s3", version="3")
    days.tick(TRAINING_ASSETS, hours=1)
    days.made(*(f"stage3[{variant}]" for variant in ("tiny", "3b", "7b")), version="2")
    asked = days.tick(TRAINING_ASSETS, days=1)
    assert {name for name in asked if name.startswith("stage3")} == {
        f"stage3[{v}]" for v in ("tiny", "3b", "7b")
    }


def test_stage_three_never_starts_half_way_through_a_landing(days):
    """A part without features is missing; the night passes until it is there."""
    everything_made(days)
    days.tick(TRAINING_ASSETS)
    days.add_part("part1")
    days.made("hourllava_s3", version="2")
    assert days.tick(TRAINING_ASSETS, days=1) == set()
    days.made(*(f"features[part1|{variant}]" for variant in ("tiny", "3b", "7b")))
    assert {f"stage3[{v}]" for v in ("tiny", "3b", "7b")} <= days.tick(TRAINING_ASSETS, days=1)


def test_one_part_that_fails_its_check_holds_its_variant_until_it_passes(days):
    """Dagster's own all_deps_blocking_checks_passed would be content with the parts that pass."""
    everything_made(days)
    days.add_part("part1")
    days.made(*(f"features[part1|{variant}]" for variant in ("tiny", "3b", "7b")))
    days.tick(TRAINING_ASSETS)
    days.made("hourllava_s3", version="2")
    days.checked("features[part0|tiny]", "complete", passed=True)
    days.checked("features[part1|tiny]", "complete", passed=False)
    assert days.tick(TRAINING_ASSETS, days=1) == {"stage3[3b]", "stage3[7b]"}
    days.made("stage3[3b]", "stage3[7b]", version="2")
    assert "stage3[tiny]" not in days.tick(TRAINING_ASSETS, days=1)
    days.checked("features[part1|tiny]", "complete", passed=True)
    assert "stage3[tiny]" in days.tick(TRAINING_ASSETS, days=1)


def test_a_check_that_only_warns_holds_nothing(days):
    everything_made(days)
    days.tick(TRAINING_ASSETS)
    days.checked("features[part0|tiny]", "none_quarantined", passed=False)
    assert days.tick(TRAINING_ASSETS, days=1) == {"stage3[tiny]"}


def test_a_mixture_that_fails_its_check_holds_every_training(days):
    everything_made(days)
    days.tick(TRAINING_ASSETS)
    days.made("features[part0|tiny]", version="2")
    days.checked("hourllava_s3", "labels", passed=False)
    assert days.tick(TRAINING_ASSETS, days=1) == set()
    days.checked("hourllava_s3", "labels", passed=True)
    assert days.tick(TRAINING_ASSETS, days=1) == {
        f"stage3[{variant}]" for variant in ("tiny", "3b", "7b")
    }


def test_a_part_of_shards_that_fails_its_check_does_not_reach_the_mixture(days):
    everything_made(days)
    days.settle()
    days.checked("videomarathon_video[part0]", "whole", passed=False)
    days.made("llavavideo_text[part1]", version="2")
    assert days.tick() == set()
    days.checked("videomarathon_video[part0]", "whole", passed=True)
    assert days.tick() == {"hourllava_s3"}


def test_data_runs_by_itself_and_training_only_when_switched_on():
    from pipeline.sensors import data_automation, training_automation, watch_outside_data

    assert data_automation.default_status is dg.DefaultSensorStatus.RUNNING
    assert watch_outside_data.default_status is dg.DefaultSensorStatus.RUNNING
    assert training_automation.default_status is dg.DefaultSensorStatus.STOPPED


def test_above_a_hundred_parts_the_mixture_still_follows_every_one_of_them(days):
    """From 100 parts on Dagster no longer shows the mixture as out of date; what runs by itself
    still sees it.
    """
    mixture = dg.AssetSelection.assets("hourllava_s3")
    parts = [f"part{index}" for index in range(101)]
    for kind in ("llavavideo_text", "llavavideo_si", "llavavideo_mi", "llavavideo_video"):
        days.made(*(f"{kind}[{part}]" for part in llava_part_partitions.get_partition_keys()))
    days.instance.add_dynamic_partitions("part", parts)
    days.made(*(f"videomarathon_video[{part}]" for part in parts), "hourllava_s3")
    assert days.tick(mixture) == set()
    days.made("videomarathon_video[part7]")
    assert days.tick(mixture) == set()
    days.made("videomarathon_video[part7]", version="2")
    assert days.tick(mixture) == {"hourllava_s3"}
    days.made("hourllava_s3", version="2")
    days.add_part("part101")
    assert days.tick(mixture) == set()
    days.made("videomarathon_video[part101]")
    assert days.tick(mixture) == {"hourllava_s3"}
