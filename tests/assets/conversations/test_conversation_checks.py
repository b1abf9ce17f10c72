"""Whether grouped conversations can become training samples."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.annotations.catalogue import Catalogue
from assets.conversations.checks import sound
from assets.conversations.grouping import conversations_name
from assets.conversations.samples import SCHEMA
from assets.deployment.settings import Settings
from assets.sources.base import OK, VideoRow
from tests.servers.world import make_settings
from training.formats.storage import Storage


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path, {"mine": {"kind": "drop", "folder": "drop"}})


@pytest.fixture
def storage(settings: Settings) -> Storage:
    """One video that is there, and one that is not."""
    storage = Storage(settings.root)
    with Catalogue(storage, "mine", "part0") as catalogue:
        there = VideoRow(
            "mine/a",
            "mine",
            "a",
            status=OK,
            duration=1800.0,
            path="a.mp4",
            sha256="x",
            damaged=False,
        )
        catalogue.add([there, VideoRow("mine/b", "mine", "b")])
    return storage


def write(storage: Storage, *samples: tuple[str, str, str]) -> None:
    """Samples (id, video, answer) of part 0."""
    rows = []
    for name, video, answer in samples:
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": answer}]
        common = {"id": name, "video": video, "source": "mine", "duration": 1800.0}
        rows.append({**common, "conversations": json.dumps(turns), "question_ids": ["q"]})
    path = Path(storage.path(conversations_name(0)))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)


def test_samples_with_names_videos_and_answers_pass(storage: Storage, settings: Settings) -> None:
    write(storage, ("s0", "mine/a", "red"), ("s1", "mine/a", "blue"))
    verdict = sound(storage, settings, 0)
    assert verdict.passed
    assert verdict.facts == {"samples": 2, "question-answer pairs": 2, "videos": 1, "hours": 0.5}


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        (("s0", "mine/a", "blue"), "s0 stands there 2 times"),
        (("s1", "mine/b", "blue"), "s1: its video mine/b is not there"),
        (("s1", "mine/a", " "), "s1: a question or an answer is missing"),
    ],
)
def test_what_cannot_become_a_sample_is_named_and_stops_the_shards(
    storage: Storage, settings: Settings, second: tuple[str, str, str], fault: str
) -> None:
    write(storage, ("s0", "mine/a", "red"), second)
    verdict = sound(storage, settings, 0)
    assert verdict.blocks
    assert fault in verdict.message
