"""docs/architecture.md tells what the definitions say."""

import re
import tomllib
from itertools import pairwise

import pytest

from docs import tables
from tests.pages import REPOSITORY, page, pages

ARCHITECTURE = page("docs/architecture.md")


@pytest.fixture(scope="module")
def graph():
    return tables.graph()


@pytest.mark.parametrize("heading", tables.TABLES)
def test_the_tables_are_those_of_the_definitions(graph, heading):
    found, right = ARCHITECTURE.section(heading).tables(), tables.TABLES[heading](graph)
    assert found == [right], (
        f"`python -m docs.tables --write` would write:\n{tables.markdown(right)}"
    )


def test_the_floors_are_those_of_the_import_contract():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    contracts = {item["name"]: item for item in project["tool"]["importlinter"]["contracts"]}
    named = [row[0].strip("`") for row in ARCHITECTURE.section("Floors").tables()[0][1:]]
    assert named == contracts["floors of assets/"]["layers"]


def test_the_table_knows_every_set_of_partitions(graph):
    rows = {row[0]: row[2] for row in tables.assets(graph)[1:]}
    assert rows["`videos`"] == "source x part"
    assert rows["`features`"] == "variant x part"
    assert rows["`llavavideo_si`"] == "LLaVA part"
    assert rows["`conversations`"] == "part"
    assert rows["`stage1`"] == "variant"
    assert rows["`annotations`"] == ""


def test_the_drawing_of_the_data_has_the_edges_of_the_definitions(graph):
    (drawing,) = ARCHITECTURE.section("Data").blocks("mermaid")
    small = ["llavavideo_text", "llavavideo_si", "llavavideo_mi"]
    edges = set()
    for line in drawing.text.splitlines()[1:]:
        stations = re.split(r" --(?: [\w\s,-]+ --)?> ", re.sub(r"\[.*?\]", "", line.strip()))
        groups = [
            [n for name in s.split(" & ") for n in (small if name == "small" else [name])]
            for s in stations
        ]
        for left, right in pairwise(groups):
            edges |= {(parent, child) for parent in left for child in right}
    expected = {
        (parent.to_user_string(), key.to_user_string())
        for key in graph.get_all_asset_keys()
        for parent in graph.get(key).parent_keys
    }
    implied = {
        (name, "evaluation") for name in ("base_model", "stage1", "stage2")
    }  # drawn through stage3
    assert edges == expected - implied


def test_sensors_that_pages_name_exist():
    from pipeline.sensors import SENSORS

    sensors = {sensor.name for sensor in SENSORS}
    assert sensors == set(re.findall(r"`(\w+_automation|watch_\w+)`", ARCHITECTURE.text))
    named = {
        name
        for shown in pages()
        for name in re.findall(r"`(\w+_automation|watch_\w+)`", shown.text)
    }
    assert named <= sensors
