"""The whole way on drawn films whose events are known: from a folder of videos without a question
to rows that `annotations` accepts.
"""

import csv
import json
import subprocess
import sys

import dagster as dg
import pyarrow.parquet as pq
import pytest
import yaml

from assets.records.withdrawals import Withdrawal, Withdrawals
from benchmarks.model_server import ModelServer
from benchmarks.question_world import Painter
from pipeline.demo.drawing import invent_film, write_film
from tests.materializing import materialize_asset
from tests.pages import REPOSITORY
from training.formats import layout
from training.formats.storage import Storage

pytestmark = pytest.mark.slow
FILMS = {"one": 40, "deep/two": 36}  # seconds
SETTINGS = {
    "root": "root",
    "parts": 1,
    "variants": ["tiny"],
    "sources": {"ego4d": {"kind": "drop", "folder": "videos"}},
    "download": {"min_free_bytes": 0},
}


class World:
    """A folder with drawn films, and nothing else."""

    def __init__(self, folder, instance) -> None:
        from pipeline.definitions import definitions

        self.folder, self.instance, self.assets = folder, instance, definitions().assets
        self.films = {name: invent_film(name, s, 2, 3) for name, s in FILMS.items()}
        for name, film in self.films.items():
            write_film(folder / "videos" / f"{name}.mp4", film)
        (folder / "videos" / "broken.mp4").write_bytes(b"no video" * 100)
        self.storage = Storage(str(folder / "root"))

    def settle(self, server: ModelServer, **questions) -> None:
        describer = {"kind": "endpoint", "url": server.url, "model": "painter", "backoff_s": 0}
        chosen = {"sources": ["ego4d"], "describer": describer, "clip_s": 10, "frames": 4}
        settings = {**SETTINGS, "questions": {**chosen, "side": 160, "sheet_rows": 6, **questions}}
        (self.folder / "deployment.yaml").write_text(yaml.safe_dump(settings))

    def make(self, asset: str, partition: str | None = None) -> dg.ExecuteInProcessResult:
        result = materialize_asset(self.assets, self.instance, self.folder, asset, partition)
        assert result.success, [
            event.event_specific_data for event in result.all_events if event.is_step_failure
        ]
        return result

    def table(self, rel: str) -> list[dict]:
        return pq.read_table(self.storage.local(rel)).to_pylist()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Captions and questions of a painter who errs in a third of his rows."""
    painter = Painter(row_errors=0.33)
    with dg.instance_for_test() as instance, ModelServer(painter) as server:
        one = World(tmp_path_factory.mktemp("own"), instance)
        one.painter, one.server = painter, server
        one.settle(server)
        one.captions = one.make("captions", "ego4d")
        one.questions = one.make("questions", "ego4d")
        yield one


def test_every_clip_is_described_as_it_was_drawn(world):
    rows = world.table(layout.captions("ego4d", "clips.parquet"))
    assert len(rows) == 8
    for row in rows:
        film = world.films[row["video"].removeprefix("ego4d/")]
        step = FILMS[row["video"].removeprefix("ego4d/")] / 16
        times = [row["start"] + (n + 0.5) * step for n in range(4)]
        course = list(dict.fromkeys(film.colour_at(second) for second in times))
        said = f"A square ({', then '.join(course)}) drifts on a {film.background} background"
        assert row["summary"] == said
        assert world.storage.exists(layout.model_answer(row["prompt_key"]))
        assert (row["model"], len(row["texts"])) == ("painter", 32)


def test_a_file_that_is_no_video_is_a_row_with_its_reason(world):
    rows = {row["video"]: row for row in world.table(layout.captions("ego4d", "videos.parquet"))}
    assert rows["ego4d/broken"]["reason"] == "not_media"
    assert rows["ego4d/one"]["reason"] == ""
    assert rows["ego4d/one"]["description"]


def test_a_second_run_asks_nothing_and_gives_the_same_bytes(world):
    rels = [layout.captions("ego4d", "clips.parquet"), layout.question_rows("ego4d")]
    before, asked = [world.storage.read_bytes(rel) for rel in rels], len(world.server.requests)
    world.make("captions", "ego4d")
    world.make("questions", "ego4d")
    assert [world.storage.read_bytes(rel) for rel in rels] == before
    assert len(world.server.requests) == asked


def test_the_checks_find_what_was_written_wrongly_and_little_else(world):
    used = world.table(layout.question_rows("ego4d"))
    aside = world.table(layout.questions("ego4d", "rejected.parquet"))
    wrong = world.painter.wrong
    missed = [wrong[row["question"]] for row in used if row["question"] in wrong]
    blamed = [row["reasons"] for row in aside if row["question"] not in wrong]
    assert len(used) > 40
    assert len(wrong) > 15
    assert missed == []
    assert len(blamed) < len(used) / 10
    by_words = {"longest_option_is_right", "duplicate"}  # which know nothing of the meaning
    assert {reason for reasons in blamed for reason in reasons} <= by_words
    found = {wrong[row["question"]]: row["reasons"][0] for row in aside if row["question"] in wrong}
    assert found["answer told"] == "answer_in_the_question"
    assert found["two right options"] in ("options_not_exclusive", "longest_option_is_right")
    assert found["no video needed"] in ("answerable_without_the_video", "duplicate")
    assert found["wrong time"] == "times_outside_the_video"
    assert found["wrong answer"] in ("second_answer_differs", "contradicts_another_clip")


def test_places_of_right_options_are_balanced_and_rows_know_their_evidence(world):
    used = world.table(layout.question_rows("ego4d"))
    choice = [row for row in used if row["form"] == "mc"]
    for film in FILMS:
        letters = [row["answer"][0] for row in choice if row["video"] == film]
        numbers = [letters.count(letter) for letter in "ABCD"]
        assert max(numbers) - min(numbers) <= 1
    for row in choice:
        letter, _, text = row["answer"].partition(". ")
        assert row["options"]["ABCD".index(letter)] == text
    for row in used:
        (clip,) = row["evidence_clips"]
        length = FILMS[row["video"]] / 4
        assert (row["evidence_start"], row["evidence_end"]) == (clip * length, (clip + 1) * length)
        assert world.storage.exists(layout.model_answer(row["prompt_key"]))


def test_the_rows_land_in_annotations_and_become_a_part(world):
    used = world.table(layout.question_rows("ego4d"))
    result = world.make("annotations")
    (made,) = result.asset_materializations_for_node("annotations")
    assert made.metadata["dagster/row_count"].value == len(used)
    rows = world.table(layout.ANNOTATIONS)
    assert {row["video"] for row in rows} == {"ego4d/one", "ego4d/deep/two"}
    by_id = {row["question_id"]: row for row in rows}
    one = next(row for row in used if row["form"] == "mc")
    landed = by_id[one["id"]]
    assert landed["question"].splitlines()[1:] == [
        f"{letter}. {text}" for letter, text in zip("ABCD", one["options"], strict=True)
    ]
    assert (landed["answer"], landed["question_type"]) == (one["answer"], one["question_type"])
    world.make("catalogue")
    world.make("videos", dg.MultiPartitionKey({"part": "part0", "source": "ego4d"}))
    catalogue = world.table(layout.catalogue("ego4d", "part0.parquet"))
    assert {row["status"] for row in catalogue} == {"ok"}


def test_the_lineage_of_the_rows_leads_to_captions_prompts_and_model(world):
    record = world.storage.read_json(f"{layout.questions('ego4d')}/lineage.json")
    captions = world.storage.read_json(f"{layout.captions('ego4d')}/lineage.json")
    assert record["inputs"] == {"captions[ego4d]": captions["version"]}
    assert record["config"]["writer"] == "painter"
    assert captions["config"]["texts"]


def test_a_filled_sheet_corrects_the_rows_and_gives_the_error_rate(world):
    sheet = world.storage.local(layout.questions("ego4d", "sheet.csv"))
    rows = list(csv.DictReader(sheet.read_text("utf-8-sig").splitlines()))
    by_id = {row["id"]: row for row in world.table(layout.question_rows("ego4d"))}
    page = world.storage.read_bytes(layout.questions("ego4d", "frames.html")).decode()
    assert page.count("<img ") == 4 * len(rows) == 24
    choice = [row for row in rows if by_id[row["id"]]["form"] == "mc"]
    for row in rows:
        row["verdict"] = "accept"
    choice[0]["verdict"] = "reject"
    folder = world.folder / "judged"
    folder.mkdir()
    with open(folder / "ego4d.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    world.settle(world.server, judged="judged")
    result = world.make("questions", "ego4d")
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert f"multiple choice: 1 of {len(choice)} wrong" in checks["judged"].description
    assert "published set's multiple-choice labels: 21% wrong" in checks["judged"].description
    after = {row["id"] for row in world.table(layout.question_rows("ego4d"))}
    assert by_id.keys() - after == {choice[0]["id"]}


def test_a_run_that_is_killed_goes_on_where_it_was(world, tmp_path):
    """The process is killed by the server in the middle of its tenth question."""
    script = (
        "import sys; from pathlib import Path;"
        "from assets.deployment.settings import load_settings;"
        "from assets.captions.answerers import askers;"
        "from assets.captions.build import describe_source;"
        "from training.formats.storage import Storage;"
        "s = load_settings(Path(sys.argv[1])); t = Storage(s.root);"
        "describe_source(t, s, 'ego4d', *askers(t, s, 'ego4d', print), print)"
    )
    running: list[subprocess.Popen] = []

    def answer(*what):
        if len(server.requests) == 10:
            running[0].kill()
        return world.painter(*what)

    with ModelServer(answer) as server:
        settings = yaml.safe_load((world.folder / "deployment.yaml").read_text())
        settings["root"] = str(tmp_path / "root")
        settings["sources"]["ego4d"]["folder"] = str(world.folder / "videos")
        settings["questions"]["describer"] |= {"url": server.url, "concurrency": 1}
        path = tmp_path / "deployment.yaml"
        path.write_text(json.dumps(settings))
        command = [sys.executable, "-c", script, str(path)]
        running.append(subprocess.Popen(command, cwd=REPOSITORY))
        assert running[0].wait() == -9
        texts = [json.dumps(body["messages"]) for body in server.requests]
        assert subprocess.run(command, cwd=REPOSITORY, check=True).returncode == 0
        again = [json.dumps(body["messages"]) for body in server.requests[len(texts) :]]
    assert set(texts[:-1]).isdisjoint(again)
    assert texts[-1] in again
    rel = layout.captions("ego4d", "clips.parquet")
    assert Storage(settings["root"]).read_bytes(rel) == world.storage.read_bytes(rel)


def test_who_withdraws_a_described_video_is_told_what_is_left(world):
    from assets.deployment.settings import load_settings
    from assets.tracing.withdraw import plan_removal

    settings = load_settings(world.folder / "deployment.yaml")
    told = plan_removal(world.storage, settings, "ego4d/one", "asked for").by_hand
    assert [line for line in told if line.startswith("captions[ego4d] and questions[ego4d]")]
    Withdrawals(videos={"ego4d/one": Withdrawal.now("asked for")}).write(world.storage)
    world.make("captions", "ego4d")
    world.make("questions", "ego4d")
    for rel in (layout.captions("ego4d", "clips.parquet"), layout.question_rows("ego4d")):
        assert {row["video"].removeprefix("ego4d/") for row in world.table(rel)} == {"deep/two"}
