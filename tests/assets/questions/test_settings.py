"""Settings of questions, and how written rows land."""

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from assets.annotations.collect import collect_annotations
from assets.annotations.landing import landing_fingerprint, look_into_landing
from assets.deployment.settings import load_settings
from assets.endpoints.options import Questions
from training.formats import layout
from training.formats.storage import Storage

ENDPOINT = {"kind": "endpoint", "url": "http://127.0.0.1:9/v1", "model": "seer"}
SOURCES = {
    "mine": {"kind": "drop", "folder": "videos"},
    "links": {"kind": "url", "hosts": ["127.0.0.1"]},
}


@pytest.fixture
def load(tmp_path):
    def loaded(questions, **more):
        path = tmp_path / "deployment.yaml"
        values = {"root": "root", "sources": SOURCES, "questions": questions, **more}
        path.write_text(yaml.safe_dump(values))
        return load_settings(path)

    return loaded


@pytest.mark.parametrize(
    ("questions", "said"),
    [
        ({}, "no question-answer rows: give annotations.repo"),
        ({"sources": ["mine"]}, "needs a questions.describer"),
        ({"sources": ["links"], "describer": ENDPOINT}, "only sources of the kind drop"),
        ({"describer": ENDPOINT, "budget": {"money": 5}}, "needs prices"),
        ({"describer": {**ENDPOINT, "url": "http://me:secret@host/v1"}}, "secrets stand in"),
        ({"describer": {**ENDPOINT, "url": "localhost:8000"}}, "is no address"),
        ({"describer": {**ENDPOINT, "modle": "x"}}, "did you mean 'model'"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(load, questions, said):
    with pytest.raises(ValueError, match=said):
        load(questions)


LOCAL = {"kind": "local", "checkpoint": "any"}


@pytest.mark.parametrize(
    ("asked", "pools"),
    [
        ({}, ("endpoint", "endpoint")),
        ({"describer": ENDPOINT}, ("endpoint", "endpoint")),
        ({"describer": LOCAL}, ("gpu", "gpu")),
        ({"describer": {**LOCAL, "device": "cpu"}}, ("cpu", "cpu")),
        ({"describer": LOCAL, "writer": ENDPOINT}, ("gpu", "endpoint")),
        ({"describer": ENDPOINT, "writer": LOCAL}, ("gpu", "gpu")),
    ],
)
def test_the_gpu_is_held_by_who_uses_it(asked, pools):
    assert Questions(**asked).pools == pools


def test_the_pools_of_the_graph_are_those_of_the_settings(load, tmp_path):
    asked = {"sources": ["mine"], "describer": LOCAL, "writer": ENDPOINT}
    load(asked, landing="landing")
    script = (
        "from assets.captions.assets import captions as c; "
        "from assets.questions.assets import questions as q; "
        "print(c.op.pool, q.op.pool, c.op.retry_policy is None, q.op.retry_policy is None)"
    )
    given = {**os.environ, "HOURLLAVA_CONFIG": str(tmp_path / "deployment.yaml")}
    said = subprocess.check_output([sys.executable, "-c", script], env=given, text=True)
    assert said.split() == ["gpu", "endpoint", "True", "False"]


def write_rows(storage: Storage, *questions: str) -> None:
    rows = [
        {"id": str(n), "video": "film", "data_source": "mine", "question": q, "answer": "Red."}
        for n, q in enumerate(questions)
    ]
    with storage.writing(layout.question_rows("mine")) as path:
        pq.write_table(pa.Table.from_pylist(rows), path)


def test_written_rows_land_beside_those_of_people_and_go_with_their_source(load, tmp_path):
    asked = {"sources": ["mine"], "describer": ENDPOINT}
    settings = load(asked, landing="landing")
    storage = Storage(settings.root)
    write_rows(storage, "What colour?")
    before = landing_fingerprint(settings)
    landed = look_into_landing(settings)
    assert [file.name for file in landed.files] == ["questions/mine.parquet"]
    assert landed.missing == str(tmp_path / "landing")
    assert collect_annotations(storage, settings, print).counts["rows"] == 1

    write_rows(storage, "What colour?", "What else?")
    assert landing_fingerprint(settings) != before
    (tmp_path / "landing").mkdir()
    person = "video,data_source,question,answer\nfilm,mine,Who?,Ann\n"
    (tmp_path / "landing" / "own.csv").write_text(person)
    os.utime(tmp_path / "landing" / "own.csv", (1, 1))  # nobody is copying it
    assert collect_annotations(storage, settings, print).counts["rows"] == 3

    without = load({}, landing="landing")
    assert collect_annotations(storage, without, print).counts["rows"] == 1
