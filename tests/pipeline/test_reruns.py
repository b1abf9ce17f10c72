"""What automation does about failures, about what it did not see, and about what people did."""

import datetime as dt

import dagster as dg
import pytest

from assets.records.lineage import Lineage
from assets.records.publishing import failure_for_a_person
from assets.records.withdrawals import give_up_part
from pipeline.recover import recover
from tests.pipeline.days import DATA_ASSETS, TRAINING_ASSETS, Days, write_settings

pytestmark = pytest.mark.slow

RETRY_S = 600


@pytest.fixture
def days(tmp_path, monkeypatch):
    path = write_settings(
        tmp_path, variants=["tiny"], automation={"retries": 2, "retry_after_s": RETRY_S}
    )
    monkeypatch.setenv("HOURLLAVA_CONFIG", str(path))
    with dg.DagsterInstance.ephemeral() as instance:
        yield Days(tmp_path, instance)


def failing_at(days, name, error, **later):
    """Tick, and let what is asked for fail."""
    assert name in days.tick(**later)
    days.run(name, error=error)


def due(days):
    """A conversation that is due, on a clock that is the machine's: runs are stamped with it."""
    days.everything_made()
    days.tick()
    days.now = dt.datetime.now(dt.UTC)
    days.made("part_rows[part0]", version="2")
    return "conversations[part0]"


def test_a_run_that_failed_by_the_machine_is_tried_again_later_and_later_and_then_no_more(days):
    name = due(days)
    days.made(*(f"videos[part0|{source}]" for source in ("ego4d", "panda", "youcook2")))
    failing_at(days, name, OSError("the disk is full"), minutes=0)
    assert days.tick(minutes=5) == set()
    failing_at(days, name, OSError("the disk is full"), minutes=6)
    assert days.tick(minutes=8) == set(), "the second wait is twice the first"
    failing_at(days, name, OSError("the disk is full"), minutes=13)
    for _ in range(3):
        assert days.tick(days=1) == set()
    days.made("part_rows[part0]", version="3")
    assert name in days.tick(), "other inputs are another matter"


def test_a_retry_that_succeeds_is_the_last(days):
    name = due(days)
    failing_at(days, name, OSError("the disk is full"), minutes=0)
    assert name in days.tick(minutes=11)
    days.run(name)
    assert name not in days.tick(days=1)


@pytest.mark.parametrize("automatic", [True, False])
def test_what_a_person_has_to_mend_or_has_started_is_not_tried_again(days, automatic):
    name = due(days)
    assert name in days.tick(minutes=0)
    error = failure_for_a_person("no such column") if automatic else OSError("the disk is full")
    days.run(name, error=error, automatic=automatic)
    for _ in range(3):
        assert name not in days.tick(days=1)


def test_what_a_person_has_mended_is_tried_again_by_itself(days, tmp_path):
    """By a setting, or by making a damaged input again, though that gives the same bytes."""
    name = due(days)
    assert name in days.tick(minutes=0)
    days.run(name, error=failure_for_a_person("too many samples were dropped"))
    assert name not in days.tick()
    write_settings(tmp_path, shards={"max_drop_share": 0.5})
    assert name in days.tick()
    days.run(name, error=failure_for_a_person("videos[part0|panda] is damaged"))
    assert name not in days.tick()
    days.run("videos[part0|panda]", version="1")
    assert name in days.tick()
    assert name not in days.tick()


def test_a_training_that_the_machine_ended_is_tried_again_before_the_next_night(days):
    days.everything_made()
    days.now = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    days.tick(TRAINING_ASSETS)
    days.made("hourllava_s3", version="2")
    # Two o'clock has passed since then; from here on the clock is the machine's, as that of runs.
    days.now = dt.datetime.now(dt.UTC)
    assert "stage3[tiny]" in days.tick(TRAINING_ASSETS, minutes=0)
    days.run("stage3[tiny]", error=dg.Failure("killed", allow_retries=False))
    assert "stage3[tiny]" not in days.tick(TRAINING_ASSETS, minutes=5)
    assert "stage3[tiny]" in days.tick(TRAINING_ASSETS, minutes=6)


def test_a_landing_before_the_first_tick_is_seen(days):
    days.everything_made()
    days.made("landing", version="2")
    assert days.tick() == {"annotations"}


def test_what_a_person_made_is_not_made_again(days):
    """Materialized by hand: the collection, then every part of its shards, then the mixture."""
    days.everything_made()
    days.tick()
    days.made("llava_onevision", version="2")
    kinds = ("llava_ov_si_onlyimg", "llavavideo_text", "llavavideo_si", "llavavideo_mi")
    days.made(*(f"{kind}[part{n}]" for kind in kinds for n in range(10)), version="2")
    days.made("hourllava_s3", version="2")
    assert days.settle() == []


def test_a_first_sighting_is_no_change(days):
    """What was collected by hand was of the commit that is seen only afterwards."""
    days.everything_made()
    days.tick()
    for name in ("hub_llava_video", "hub_llava_onevision", "hub_annotations", "landing"):
        days.report(name, None, "1")
    assert days.settle() == []


def test_a_hub_that_was_not_reachable_and_then_is_causes_nothing_by_itself(days):
    days.everything_made()
    days.report("hub_llava_video", None, "not reachable")
    assert days.tick() == set()
    days.report("hub_llava_video", None, "1")
    assert days.tick() == set()
    days.report("hub_llava_video", None, "2")
    assert days.tick() == {"llava_video"}


def test_a_hub_that_cannot_be_reached_does_not_hold_a_landing(days):
    days.everything_made()
    days.report("hub_annotations", None, "not reachable")
    days.made("landing", version="2")
    assert days.tick() == {"annotations"}


def test_after_recover_nothing_is_repeated(days, tmp_path):
    days.everything_made("part0", "part1")
    with dg.instance_for_test() as empty:
        assert recover(empty, days.storage, lambda _: None) > 60
        later = Days(tmp_path, empty)
        assert later.settle() == []
        assert later.settle(TRAINING_ASSETS) == []
        assert later.tick(TRAINING_ASSETS, days=1) == set()


def bad_part(days):
    """A landing whose rows name missing videos: its part does not pass the coverage check."""
    days.everything_made()
    days.tick()
    days.add_part("part1")
    asked = days.tick()
    days.run("videos[part1|panda]", check="coverage", passed=False)
    days.make_all(asked - {"videos[part1|panda]"}, version="2")


def test_a_bad_landing_holds_the_mixture_says_why_and_lets_later_ones_through_up_to_it(days):
    bad_part(days)
    assert days.settle() == []
    (reason,) = days.state().stale_reasons("hourllava_s3")
    assert reason == "new: videomarathon_video[part1]"
    (hold,) = days.state().holds("hourllava_s3")
    assert hold.startswith(
        "videomarathon_video[part1] was not made yet, because conversations[part1] was not made "
        "yet, because videos[part1|panda] did not pass its checks (coverage: "
    )
    days.add_part("part2")
    asked = {name for names in days.settle() for name in names}
    assert "videomarathon_video[part2]" in asked
    assert "features[part2|tiny]" in asked
    assert not asked & {"hourllava_s3", "videomarathon_json"}


def test_when_the_bad_part_is_given_up_the_rest_goes_on_by_itself(days):
    bad_part(days)
    days.add_part("part2")
    days.settle()
    give_up_part(days.storage, "part1", "its videos are gone")
    days.instance.delete_dynamic_partition("part", "part1")
    rounds = days.settle(version="2")
    assert [name for names in rounds for name in sorted(names)] == [
        "hourllava_s3",
        "videomarathon_json",
    ]
    assert "stage3[tiny]" in days.tick(TRAINING_ASSETS) | days.tick(TRAINING_ASSETS, days=1)


def test_a_part_that_was_in_the_mixture_and_is_given_up_leaves_it(days):
    days.everything_made("part0", "part1")
    days.tick()
    give_up_part(days.storage, "part1", "a licence ended")
    days.instance.delete_dynamic_partition("part", "part1")
    (reason,) = days.state().stale_reasons("hourllava_s3")
    assert reason == "no longer there: videomarathon_video[part1]"
    assert days.tick() == {"hourllava_s3", "videomarathon_json"}


def test_a_typed_part_holds_nothing(days):
    days.everything_made()
    days.tick()
    days.instance.add_dynamic_partitions("part", ["part7"])
    days.made("llavavideo_text[part1]", version="2")
    assert days.tick() == {"hourllava_s3"}


def test_a_deployment_before_inputs_were_recorded_runs_each_collection_once(days):
    days.everything_made()
    Lineage("annotations", "1").write(days.storage)
    assert days.tick() == {"annotations"}
    days.made("annotations")
    assert days.tick(DATA_ASSETS, days=1) == set()
