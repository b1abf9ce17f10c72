"""Thousands of broken annotation files: whatever stands in them, the collection ends with rows or
with one short sentence, and the rows of a sound file beside them stay.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.annotations.collect import collect_annotations
from assets.annotations.files import local_file
from assets.annotations.readings import Readings
from assets.fetching.errors import AnnotationError
from tests.servers.world import make_settings, question, quiet
from training.formats.storage import Storage

MUTANTS = 1500  # of each form
SOURCES = {"panda": {"kind": "youtube"}, "mine": {"kind": "url"}}

ROWS: list[dict[str, Any]] = [
    {
        "id": f"q{n}",
        "video": f"panda/v{n}.mp4",
        "question": f'Who "is" it, {n}?\nLook; well|now',
        "answer": "Jürgen ☕",
        "options": '["red", "blue"]',
        "duration": "1:02:03",
        "url": "https://youtu.be/dQw4w9WgXcQ",
    }
    for n in range(6)
]
# Pieces that were seen to end something, somewhere.
PIECES = (
    *(b'"', b'""', b"'", b",", b";", b"\t", b"|", b"\n", b"\r", b"\r\n", b"\0", b"\\", b"{", b"}"),
    *(b"[", b"]", b":", b"NaN", b"-Infinity", b"1e999", b"null", b"true", b"9" * 5000, b"\xff"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b'"\\ud800"', b"\xed\xa0\x80", b"[" * 3000),
    *(b'{"a":' * 600, b"]" * 50, b"../", b"C:\\a.mp4", b"http://[", b"\xc3", b"sep=;\n", b"\x85"),
    *(b"PAR1", b"PK\x03\x04", b"\x1f\x8b", b'["panda"]', b'{"en": "x"}', b"\xe2\x80\xa8", b"1e400"),
)


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    data = io.BytesIO()
    nested = [{**row, "options": ["red", "blue"], "more": {"a": [1, None]}} for row in rows]
    pq.write_table(pa.Table.from_pylist(nested), data, row_group_size=2)
    return data.getvalue()


FORMS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".csv": as_csv,
    ".jsonl": lambda rows: b"\n".join(json.dumps(row).encode() for row in rows),
    ".json": lambda rows: json.dumps(rows, indent=1).encode(),
    ".keyed.json": lambda rows: json.dumps({f"k{n}": row for n, row in enumerate(rows)}).encode(),
    ".parquet": as_parquet,
}
# Values in place of a field's: what people and programs write where a text is expected.
VALUES: tuple[Any, ...] = (
    *(None, "", [], {}, [["a"]], {"a": {"b": 1}}, True, -1, 0.1, float("nan"), 10**40, "\ud800"),
    *("x" * 5000, "\0", ["panda"], {"from": "human"}, "[1, 2", "{'a': 1}", "../../x", "PT", "1:99"),
    *([{"from": "human", "value": ["x"]}, {"from": "gpt", "value": None}], "|", "a|", [None, 1]),
)


def mutant(rng: random.Random, data: bytes) -> bytes:
    """The bytes of a file with one to four things done to them."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.choice((1, 1, 2, 8, 64)))
        change = rng.randrange(6)
        if change == 0:
            data = data[:at] + rng.choice(PIECES) + data[at:]
        elif change == 1:
            data = data[:at] + rng.choice(PIECES) + data[to:]
        elif change == 2:
            data = data[:at] + data[to:]
        elif change == 3:
            data = data[:at]
        elif change == 4:
            data = data[:at] + rng.randbytes(to - at) + data[to:]
        else:
            data = data[:at] + data[at:to] * rng.randint(2, 20) + data[to:]
    return data


def with_other_values(rng: random.Random) -> list[dict[str, Any]]:
    """Rows with values that nobody expects, under names that somebody does."""
    rows = [dict(row) for row in ROWS]
    for row in rng.sample(rows, 2):
        name = rng.choice([*row, "conversations", "data_source", "(key)", "option_a", "q"])
        row[name] = rng.choice(VALUES)
        if rng.random() < 0.2:
            del row[rng.choice(list(row))]
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_no_file_of_annotations_escapes(form: str, tmp_path: Path) -> None:
    rng = random.Random(f"annotations {form}")
    settings = make_settings(tmp_path / "root", SOURCES, [question("v", "panda")])
    storage = Storage(settings.root)
    refused = read = 0
    for number in range(MUTANTS):
        try:
            data = FORMS[form](with_other_values(rng) if number % 3 == 0 else ROWS)
        except (UnicodeEncodeError, pa.ArrowException, OverflowError, csv.Error):
            continue  # a value that this form cannot have
        if number % 3:
            data = mutant(rng, data)
        path = tmp_path / f"mutant{form}"
        path.write_bytes(data)
        file = local_file(path, path.name)
        refusal = ""
        try:
            reading = Readings(storage, settings, number, quiet).of(file)
        except AnnotationError as error:
            refused, refusal = refused + 1, str(error)
        else:
            read += 1
            assert reading.rows_read >= sum(reading.rejected.values())
            assert len(json.dumps(reading.columns)) < 100_000
        assert not refusal or path.name in refusal
        assert len(refusal) < 2000
    assert read > MUTANTS / 10, "most faults cost a row"
    assert read + refused > MUTANTS / 2


@pytest.mark.slow
def test_a_hundred_broken_files_cost_a_sound_one_nothing(tmp_path: Path) -> None:
    rng = random.Random("annotations beside each other")
    settings = make_settings(tmp_path / "root", SOURCES, [question("v", "panda", id="sound")])
    paths = list(settings.annotations.paths)
    for number in range(100):
        form = rng.choice(list(FORMS))
        path = tmp_path / f"{number}{form}"
        path.write_bytes(mutant(rng, FORMS[form](ROWS)))
        paths.append(str(path))
    chosen = settings.annotations.model_copy(update={"paths": paths})
    settings = settings.model_copy(update={"annotations": chosen})
    storage = Storage(settings.root)
    report = collect_annotations(storage, settings, quiet)
    assert len(report.problems) + len(report.read) == 101
    assert {row["file"] for row in report.read} >= {"qa.jsonl"}
    assert report.problems
    again = collect_annotations(storage, settings, quiet)
    assert (again.version, again.counts) == (report.version, report.counts)
