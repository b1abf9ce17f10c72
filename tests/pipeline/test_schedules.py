"""Several nights of a deployment: which videos are asked for again, and which are left alone."""

import datetime as dt
import gc
import json
from pathlib import Path

import dagster as dg
import pytest

from assets.annotations.build import build_catalogue
from assets.annotations.catalogue import Catalogue
from assets.annotations.collect import collect_annotations
from assets.deployment.partitions import source_and_part
from assets.deployment.resources import Deployment
from assets.deployment.settings import load_settings
from assets.sources.base import (
    EXHAUSTED,
    MANUAL_MISSING,
    OK,
    PENDING,
    PERMANENT,
    TRANSIENT,
    FetchContext,
)
from assets.sources.outcomes import Evidence
from pipeline.schedules import download_nightly
from training.formats.storage import Storage

FIRST_NIGHT = dt.datetime(2026, 3, 2, 20, 0, tzinfo=dt.UTC)
# The sources of tests/deployment.yaml, which the code location was loaded with: panda by URL, ego4d
# from a folder.
SETTINGS = """
root: root
parts: 1
variants: [tiny]
annotations: {paths: [rows.jsonl]}
sources:
  panda: {kind: url}
  youcook2: {kind: hub, repo: lmms-lab/YouCook2, archives: ["YouCookIIVideos.zip"]}
  ego4d: {kind: drop, folder: drop}
hub_endpoint: http://127.0.0.1:9
"""
REASONS = {PERMANENT: "not_in_repo", MANUAL_MISSING: "not_dropped", EXHAUSTED: "connection"}


class Nights:
    """A catalogue of one video of each source, and an instance whose evenings pass."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        rows = [
            {
                "id": source,
                "video": f"{source}/{source}.mp4",
                "data_source": source,
                "URL": f"http://a.example/{source}",
            }
            for source in ("panda", "youcook2", "ego4d")
        ]
        lines = [
            json.dumps({**row, "question_type": "scene/oe", "question": "Who?", "answer": "Me."})
            for row in rows
        ]
        (folder / "rows.jsonl").write_text("\n".join(lines))
        (folder / "drop").mkdir()
        (folder / "deployment.yaml").write_text(SETTINGS)
        self.folder, self.instance, self.night = folder, instance, FIRST_NIGHT
        self.deployment = Deployment(config=str(folder / "deployment.yaml"))
        self.settings = load_settings(folder / "deployment.yaml")
        self.storage = Storage(self.settings.root)

    def catalogue(self) -> None:
        collect_annotations(self.storage, self.settings, lambda _: None)
        report = build_catalogue(self.storage, self.settings, lambda _: None)
        self.instance.add_dynamic_partitions("part", report.parts)

    def becomes(self, **statuses: str) -> None:
        """What became of the video of each source, as a run of now would record it."""
        for source, status in statuses.items():
            reason, evidence = REASONS.get(status), self.evidence(source)
            with Catalogue(self.storage, source, "part0") as catalogue:
                decided_by = evidence.fingerprint(catalogue.row(source), reason)
                catalogue.update(source, status=status, reason=reason, decided_by=decided_by)

    def evidence(self, source: str) -> Evidence:
        download = self.settings.download.model_copy(update={"attempts": 1})
        context = FetchContext(
            self.storage, source, "part0", download, self.settings.hub_endpoint, set, set, print
        )
        return Evidence(self.settings.sources[source].fetcher(context), download)

    def passes(self) -> set[str]:
        """The partitions that the evening asks for."""
        at = self.night
        with dg.build_schedule_context(self.instance, scheduled_execution_time=at) as context:
            asked = download_nightly(context, deployment=self.deployment)
        self.night += dt.timedelta(days=1)
        return (
            {str(request.partition_key) for request in asked} if isinstance(asked, list) else set()
        )


@pytest.fixture
def nights(tmp_path):
    with dg.instance_for_test() as instance:
        yield Nights(tmp_path, instance)
        # An evaluation leaves an instance that it has entered. Collected after the end of this one,
        # it would make Dagster look into this one's storage in another test.
        gc.collect()


def test_before_there_is_a_catalogue_nothing_is_asked_for(nights):
    assert nights.passes() == set()


def test_what_was_never_tried_or_failed_in_passing_is_asked_for_until_it_is_there(nights):
    nights.catalogue()
    nights.becomes(panda=PENDING, youcook2=TRANSIENT, ego4d=OK)
    assert nights.passes() == {"part0|panda", "part0|youcook2"}
    nights.becomes(youcook2=EXHAUSTED)
    assert nights.passes() == {"part0|panda", "part0|youcook2"}
    nights.becomes(panda=OK)
    assert nights.passes() == {"part0|youcook2"}
    nights.becomes(youcook2=OK)
    assert nights.passes() == set()


def test_what_cannot_be_had_waits_for_a_person(nights):
    nights.catalogue()
    nights.becomes(panda=PERMANENT, youcook2=PERMANENT, ego4d=MANUAL_MISSING)
    assert nights.passes() == set()


def test_a_drop_folder_is_looked_into_when_a_missing_video_was_put_there(nights):
    nights.catalogue()
    nights.becomes(panda=OK, youcook2=OK, ego4d=MANUAL_MISSING)
    assert nights.passes() == set()
    (nights.folder / "drop/late").mkdir()
    (nights.folder / "drop/late/other.mp4").write_bytes(b"x")
    assert nights.passes() == set()
    (nights.folder / "drop/late/ego4d.mp4").write_bytes(b"x")
    assert nights.passes() == {"part0|ego4d"}


def test_a_setting_that_decided_an_outcome_makes_it_due_when_it_changes(nights):
    nights.catalogue()
    nights.becomes(panda=OK, youcook2=PERMANENT, ego4d=OK)
    assert nights.passes() == set()
    text = (nights.folder / "deployment.yaml").read_text()
    widened = text.replace('["YouCookIIVideos.zip"]', '["*.zip"]')
    (nights.folder / "deployment.yaml").write_text(widened)
    assert nights.passes() == {"part0|youcook2"}


def test_an_outcome_of_unknown_origin_is_tried_once_more(nights):
    nights.catalogue()
    nights.becomes(panda=PERMANENT, youcook2=OK, ego4d=OK)
    assert nights.passes() == set()
    with Catalogue(nights.storage, "panda", "part0") as catalogue:
        catalogue.update("panda", decided_by=None)
    assert nights.passes() == {"part0|panda"}


def test_youtube_is_never_asked_without_its_owners_consent(nights):
    nights.catalogue()
    nights.becomes(panda=PENDING, youcook2=OK, ego4d=OK)
    text = (nights.folder / "deployment.yaml").read_text()
    for accepted, asked in (("false", set()), ("true", {"part0|panda"})):
        youtube = f"panda: {{kind: youtube, accept_terms: {accepted}}}"
        (nights.folder / "deployment.yaml").write_text(text.replace("panda: {kind: url}", youtube))
        assert nights.passes() == asked


@pytest.mark.slow
def test_what_is_still_being_fetched_is_not_asked_for_twice(nights):
    nights.catalogue()
    nights.becomes(panda=PENDING, youcook2=PENDING, ego4d=OK)
    running = {"dagster/partition": "part0|panda"}
    run = nights.instance.add_run(
        dg.DagsterRun(
            "__ASSET_JOB",
            status=dg.DagsterRunStatus.STARTED,
            tags=running,
            asset_selection=frozenset({dg.AssetKey("videos")}),
        )
    )
    assert nights.passes() == {"part0|youcook2"}
    nights.instance.report_run_failed(run)
    assert nights.passes() == {"part0|panda", "part0|youcook2"}


def test_each_evening_asks_once_for_runs_that_the_job_accepts(nights):
    nights.catalogue()
    nights.becomes(panda=PENDING, youcook2=OK, ego4d=OK)
    at = FIRST_NIGHT
    with dg.build_schedule_context(nights.instance, scheduled_execution_time=at) as context:
        (request,) = download_nightly(context, deployment=nights.deployment)
    assert request.run_key == "2026-03-02:part0|panda"
    assert request.partition_key in source_and_part.get_partition_keys(
        dynamic_partitions_store=nights.instance
    )


def test_it_runs_from_the_first_start_where_data_follows_by_itself():
    assert download_nightly.default_status is dg.DefaultScheduleStatus.RUNNING
    assert download_nightly.job.name == "04_acquire_videos"
