"""What can be read of what waits: each asset's check `up_to_date`, the sensor's log, notices."""

import datetime as dt
import json

import dagster as dg
import pytest

from assets.deployment.resources import Deployment
from pipeline import telling
from tests.pipeline.days import SOURCES, Days, write_settings

pytestmark = pytest.mark.slow


@pytest.fixture
def days(tmp_path, monkeypatch):
    settings = write_settings(tmp_path, automation={"retries": 0})
    monkeypatch.setenv("HOURLLAVA_CONFIG", str(settings))
    with dg.DagsterInstance.ephemeral() as instance:
        days = Days(tmp_path, instance)
        days.everything_made()
        days.deployment = Deployment(config=str(settings))
        days.told = []
        monkeypatch.setattr(
            telling,
            "notify",
            lambda _, event, title, body, warn: days.told.append((event, title, body)),
        )
        yield days


def look(days) -> dict[str, tuple[bool, str]]:
    """One look of the sensor: asset -> whether all of it is up to date, and the sentence; only what
    is new.
    """
    context = dg.build_sensor_context(
        days.instance,
        cursor=getattr(days, "telling_cursor", None),
        repository_def=days.defs.get_repository_def(),
    )
    result = telling.tell_what_waits(context, deployment=days.deployment)
    days.telling_cursor = result.cursor
    found = {}
    for event in result.asset_events:
        days.instance.report_runless_asset_event(event)
        found[event.asset_key.to_user_string()] = (event.passed, event.description)
    return found


def test_a_deployment_at_rest_has_nothing_to_say(days):
    assert look(days) == {}


def test_a_new_mixture_shows_on_the_page_of_stage_three_until_it_is_trained(days):
    look(days)
    days.made("hourllava_s3", version="2")
    sentence = "is out of date: changed: hourllava_s3 (read as 1, now 2)"
    assert look(days) == {"stage3": (False, f"3 of 3: stage3[tiny] {sentence}")}
    assert look(days) == {}, "it is said once"
    days.made("stage3[tiny]", version="2")
    said = look(days)
    assert said["stage3"] == (False, f"2 of 3: stage3[3b] {sentence}")
    assert said["evaluation"][1].startswith("1 of 3: evaluation[tiny] is out of date")
    days.made("stage3[3b]", "stage3[7b]")
    assert look(days)["stage3"] == (True, "everything is made from today's inputs")


def test_one_stale_partition_among_others_is_named(days):
    days.add_part("part1")
    days.made("part_rows[part0]", version="2")
    assert look(days)["conversations"][1].startswith(
        "2 of 2: conversations[part0] is out of date: changed: part_rows[part0] (read as 1, now 2)"
    )


def test_the_page_is_right_again_after_a_step_has_spoken_for_its_own_partition(days):
    days.add_part("part1")
    days.made(*(f"videos[part1|{source}]" for source in SOURCES), "conversations[part1]")
    for part in ("part0", "part1"):
        days.made(f"part_rows[{part}]", version="2")
    assert look(days)["conversations"][1].startswith("2 of 2")
    days.run("conversations[part0]", check="up_to_date")
    assert look(days)["conversations"][1].startswith("1 of 2: conversations[part1] is out of date")


def test_a_mixture_that_waits_for_a_failed_part_says_for_which_and_why_and_somebody_is_told(days):
    look(days)
    days.add_part("part1")
    asked = days.tick()
    days.make_all(asked - {"videos[part1|panda]"})
    days.run("videos[part1|panda]", check="coverage", passed=False)
    said = look(days)
    passed, sentence = said["hourllava_s3"]
    assert not passed
    assert "new: videomarathon_video[part1]" in sentence
    assert "because videos[part1|panda] did not pass its checks (coverage: " in sentence
    assert said["conversations"][1].startswith("1 of 2: conversations[part1] is not made yet")
    ((event, title, body),) = days.told
    assert (event, title) == ("held", "Hour-LLaVA: videos[part1|panda] did not pass")
    assert "hourllava_s3" in body
    look(days)
    assert len(days.told) == 1


def test_what_was_tried_for_the_last_time_is_told_with_its_error(days):
    look(days)
    days.now = dt.datetime.now(dt.UTC)
    days.made("part_rows[part0]", version="2")
    days.tick(minutes=0)
    days.made(*(f"videos[part0|{source}]" for source in SOURCES))
    days.run("conversations[part0]", error=OSError("the disk is full"))
    sentence = look(days)["conversations"][1]
    assert "its run failed" in sentence
    assert "the disk is full; not tried again by itself: that was the last" in sentence
    assert [event for event, _, _ in days.told] == ["retries_used_up"]


def test_the_table_of_a_page_says_since_when(days):
    days.made("hourllava_s3", version="2")
    look(days)
    (record,) = days.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey("stage3"), "up_to_date"), limit=1
    )
    rows = record.event.dagster_event.event_specific_data.metadata["products"].records
    today = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d ")
    assert [row.data["product"] for row in rows] == ["stage3[tiny]", "stage3[3b]", "stage3[7b]"]
    assert all(row.data["since"].startswith(today) for row in rows)


def test_the_cursor_of_a_large_deployment_holds_only_what_is_not_up_to_date(days):
    look(days)
    assert json.loads(days.telling_cursor) == {
        "products": {},
        "checks": {},
        "pages": {},
        "since": {},
    }


def event_of(days, run: str, kind: str) -> dg.DagsterEvent:
    events = [entry.dagster_event for entry in days.instance.all_logs(run) if entry.dagster_event]
    return next(event for event in events if event.event_type_value == kind)


def test_a_failed_run_and_a_trained_stage_are_told(days):
    run = days.run("conversations[part0]", error=OSError("the disk is full"))
    failed = days.instance.get_run_by_id(run)
    event = event_of(days, run, "PIPELINE_FAILURE")
    context = dg.build_run_status_sensor_context(
        sensor_name="tell_failures",
        dagster_instance=days.instance,
        dagster_run=failed,
        dagster_event=event,
    ).for_run_failure()
    telling.tell_failures(context, deployment=days.deployment)
    ((event_name, title, body),) = days.told
    assert (event_name, title) == ("run_failed", "Hour-LLaVA: conversations[part0] failed")
    assert "the disk is full" in body
    days.told.clear()
    run = days.run("stage3[tiny]")
    finished = days.instance.get_run_by_id(run)
    event = event_of(days, run, "PIPELINE_SUCCESS")
    context = dg.build_run_status_sensor_context(
        sensor_name="tell_finished_stages",
        dagster_instance=days.instance,
        dagster_run=finished,
        dagster_event=event,
    )
    telling.tell_finished_stages(context, deployment=days.deployment)
    assert [notice[:2] for notice in days.told] == [
        ("stage_finished", "Hour-LLaVA: stage3[tiny] is trained")
    ]
