"""From a folder of videos without a single question to a tuned and scored checkpoint, through a
running Dagster: drawn films, and an endpoint that describes them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from assets.captions.texts import FOLDER
from assets.deployment.parts import is_held_out
from assets.deployment.settings import load_settings
from assets.evaluation.questions import read_questions
from assets.records.lineage import Lineage
from benchmarks.model_server import ModelServer
from benchmarks.question_world import Painter
from pipeline.cli import main
from pipeline.demo.drawing import invent_film, write_film
from pipeline.demo.instance import REPOSITORY
from pipeline.demo.own import SHARE, VARIANT, tiny_settings, write_released
from pipeline.demo.tuning import fine_tune
from pipeline.fine_tuning import sources_to_ask_about
from training.formats import layout
from training.formats.storage import Storage

EXAMPLE = REPOSITORY / "pipeline" / "examples" / "own_questions.yaml"
NAMES = [f"talk {number:02d}" for number in range(10)]
HELD_OUT = {f"own/{name}" for name in NAMES if is_held_out(f"own/{name}", SHARE)}
SECRET = "sk-nobody-may-read-this"
# What is asked for: three of the 22 tasks, so that it is quick.
TASKS = {"object": ["recognition", "attribute"], "scene": ["place"]}


def test_the_example_is_valid_and_asks_for_no_rows():
    settings = load_settings(EXAMPLE)
    assert settings.questions.sources == ["own"]
    assert settings.questions.budget.requests
    assert (settings.annotations.paths, settings.annotations.repo, settings.landing) == (
        [],
        None,
        None,
    )
    assert settings.held_out_share == 0.15


class World:
    """A folder in which the job has run.

    Attributes:
        code: what the command ended with.
        server: who was asked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder / "mine", folder / "mine" / "my.yaml"
        for name in NAMES:
            film = invent_film(f"own/{name}", 20, 5, 2)
            write_film(self.folder / "given" / "videos" / f"{name}.mp4", film)
        write_released(self.folder / "given" / "released", "own")
        texts = yaml.safe_load((FOLDER / "questions.yaml").read_text())
        for topic in list(texts["topics"]):
            tasks = texts["topics"].pop(topic)
            chosen = {name: tasks["tasks"][name] for name in TASKS.get(topic, ())}
            if chosen:
                texts["topics"][topic] = {**tasks, "tasks": chosen}
        (self.folder / "prompts").mkdir()
        (self.folder / "prompts" / "questions.yaml").write_text(yaml.safe_dump(texts))
        shutil.copy(REPOSITORY / "dagster.yaml", folder)
        with ModelServer(Painter()) as self.server:
            self.config.write_text(yaml.safe_dump(self._settings()))
            self.code = fine_tune(self.config, VARIANT, self.folder / "dagster.log", folder)
        self.storage = Storage(str(self.folder / "data"))

    def _settings(self):
        settings = tiny_settings(EXAMPLE)
        settings["questions"] |= {"clip_s": 10, "frames": 4, "side": 160, "prompts": "prompts"}
        settings["questions"]["describer"] |= {"url": self.server.url, "model": "painter"}
        settings["questions"] |= {"sheet_rows": 2}
        settings["training"]["overrides"]["stage3"]["epochs"] = 2
        return settings

    def table(self, rel: str) -> list[dict]:
        return pq.read_table(self.storage.local(rel)).to_pylist()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOURLLAVA_ENDPOINT_KEY", SECRET)
        return World(tmp_path_factory.mktemp("asked"))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_one_command_goes_from_videos_to_scores_before_and_after(tuned):
    assert tuned.code == 0
    asked = read_questions(tuned.storage.local(layout.HELD_OUT))
    assert asked
    (row, *_) = tuned.storage.read_json(f"evaluation/{VARIANT}/summary.json")["accuracy"]
    assert row["asked"] == len(asked)
    assert row["gain"] == pytest.approx(row["stage3"] - row["base_model"], abs=1e-3)


@pytest.mark.slow
def test_no_held_out_video_was_trained_on(tuned):
    stage3 = Lineage.read(tuned.storage, f"stage3[{VARIANT}]")
    trained = set(tuned.storage.read_bytes(f"{stage3.folder}/bill.videos.txt").decode().split("\n"))
    questions = read_questions(tuned.storage.local(layout.HELD_OUT))
    assert {question.id.partition(": ")[0] for question in questions} == HELD_OUT
    assert trained - {""} == {f"own/{name}" for name in NAMES} - HELD_OUT


@pytest.mark.slow
def test_lineage_walks_from_the_checkpoint_to_the_captions_and_what_made_them(tuned, capsys):
    assert main(["lineage", f"stage3[{VARIANT}]", "--config", str(tuned.config)]) == 0
    said = capsys.readouterr().out
    assert "questions[own]" in said
    assert "captions[own]" in said
    assert Lineage.read(tuned.storage, "captions[own]").config["describer"] == "painter"


@pytest.mark.slow
def test_a_row_leads_back_to_its_clip_its_prompts_and_the_model(tuned):
    rows = {row["id"]: row for row in tuned.table(layout.question_rows("own"))}
    clips = {
        (row["video"], row["clip"]): row
        for row in tuned.table(layout.captions("own", "clips.parquet"))
    }
    annotated = tuned.table(layout.ANNOTATIONS)
    assert len(annotated) == len(rows) > 3 * len(NAMES)
    for row in annotated:
        written = rows[row["question_id"]]
        (number,) = written["evidence_clips"]
        clip = clips[row["video"], number]
        assert (written["evidence_start"], written["evidence_end"]) == (clip["start"], clip["end"])
        kept = [
            tuned.storage.read_json(layout.model_answer(one["prompt_key"]))
            for one in (written, clip)
        ]
        assert [answer["prompt"]["model"] for answer in kept] == ["painter", "painter"]
        assert (
            json.dumps(clip["objects" if "square" in row["question"] else "scene"])
            in (kept[0]["prompt"]["text"])
        )
        assert written["question"] in json.loads(kept[0]["text"])["rows"][0]["question"]


@pytest.mark.slow
def test_the_command_line_says_where_a_row_comes_from(tuned, capsys):
    row = tuned.table(layout.question_rows("own"))[0]
    assert main(["lineage", row["id"], "--config", str(tuned.config)]) == 0
    said = capsys.readouterr().out
    clip = f"clip {row['evidence_clips'][0]} of own/{row['video']}, {row['evidence_start']:.1f} to"
    assert clip in said
    assert said.count("by painter") == 2
    answers = [line.split(": ")[1] for line in said.splitlines() if "prompt and answer: " in line]
    assert [Path(path).is_file() for path in answers] == [True, True]
    assert "stage3" in said.partition("went into:")[2]


@pytest.mark.slow
def test_what_was_asked_once_is_not_asked_again_by_the_job(tuned):
    settings = load_settings(tuned.config)
    assert sources_to_ask_about(tuned.storage, settings) == []
    assert sources_to_ask_about(Storage(str(tuned.folder / "elsewhere")), settings) == ["own"]


@pytest.mark.slow
def test_the_key_was_sent_and_stands_nowhere(tuned):
    assert {body["authorization"] for body in tuned.server.requests} == {f"Bearer {SECRET}"}
    files = [path for path in tuned.folder.parent.rglob("*") if path.is_file()]
    assert len(files) > 100
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
