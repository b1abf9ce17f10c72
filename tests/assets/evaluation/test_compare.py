"""The checkpoints of a variant are compared on the deployment's questions, from the storage root
and back into it.
"""

from __future__ import annotations

import shutil

import pytest

from assets.deployment.variants import Variant, checkpoints_of
from assets.evaluation.compare import compare_checkpoints
from assets.evaluation.questions import write_questions
from assets.records.lineage import Lineage, product
from training.formats.storage import Storage

CHECKPOINTS = checkpoints_of(Variant(preset="tiny"))


@pytest.fixture
def checkpoints(tmp_path, export):
    """A root in which all four checkpoints are the same one."""
    storage = Storage(str(tmp_path / "root"))
    for name in CHECKPOINTS:
        folder = f"checkpoints/tiny/{name}"
        shutil.copytree(export, tmp_path / "root" / folder / "export")
        Lineage(product=product(name, "tiny"), version=name, folder=folder).write(storage)
    return storage


@pytest.mark.slow
def test_four_checkpoints_and_one_blind_one_are_compared_and_kept(
    checkpoints, media, questions, tmp_path
):
    write_questions(media / "questions.jsonl", questions)
    storage, lines = checkpoints, []

    def compare():
        return compare_checkpoints(
            storage,
            "tiny",
            CHECKPOINTS,
            media / "questions.jsonl",
            lines.append,
            device="cpu",
            scratch=tmp_path,
        )

    first = compare()
    assert first.counts == {
        "questions": 5,
        "asked": 5,
        "not askable": 0,
        "about damaged videos": 0,
    }
    row = first.table[0]
    assert {row[name] for name in CHECKPOINTS} == {
        row["base_model"]
    }  # they are the same checkpoint
    assert row["gain"] == 0
    names = {f"{name}.parquet" for name in CHECKPOINTS} | {
        "stage3_blind.parquet",
        "summary.json",
        "gallery.html",
    }
    assert {name.rsplit("/", 1)[1] for name in storage.list(first.folder)} == names
    assert storage.read_json("evaluation/tiny/summary.json")["accuracy"] == first.table
    example = {row["what"]: row["text"] for row in first.example}
    asked = {question.id: question for question in questions}[example["question"]]
    assert example["right answer"] == asked.answer

    lines.clear()
    again = compare()
    assert (again.version, again.table) == (first.version, first.table)
    assert sum("already answered" in line for line in lines) == 5


def test_a_deployment_without_questions_is_told_what_to_set(checkpoints, tmp_path):
    with pytest.raises(ValueError, match=r"evaluation\.questions"):
        compare_checkpoints(checkpoints, "tiny", CHECKPOINTS, None, print, scratch=tmp_path)
