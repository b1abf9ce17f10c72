"""The tables of docs/architecture.md, from the definitions themselves.

python -m docs.tables            # prints them
python -m docs.tables --write    # puts them into the page
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph

from assets.deployment.partitions import (
    arm_partitions,
    asked_source_partitions,
    llava_part_partitions,
    part_partitions,
    source_partitions,
    variant_partitions,
)
from assets.records.publishing import UP_TO_DATE

INTACT = "intact"  # the one check that every asset has
PAGE = Path(__file__).with_name("architecture.md")
Rows = list[list[str]]


def graph() -> AssetGraph:
    from pipeline.definitions import definitions

    return definitions().resolve_asset_graph()


def assets(graph: AssetGraph) -> Rows:
    heading = ["asset", "group", "partitions", "made from", "by itself", "pool"]
    return [heading] + [
        _asset(graph, key)
        for level in graph.toposorted_asset_keys_by_level
        for key in sorted(level)
    ]


def checks(graph: AssetGraph) -> Rows:
    heading = ["asset", "check", "stops what is made from it", "passes when"]
    specs = [
        graph.get_check_spec(key)
        for key in sorted(graph.asset_check_keys, key=lambda key: key.to_user_string())
        if key.name != UP_TO_DATE  # the page says it once, of all assets
    ]
    intact = next(spec for spec in specs if spec.name == INTACT)
    rows = [
        [
            _code(spec.asset_key),
            f"`{spec.name}`",
            "yes" if spec.blocking else "no",
            str(spec.description),
        ]
        for spec in specs
        if spec.name != INTACT
    ]
    return [heading, *rows, ["each of them", f"`{INTACT}`", "no", str(intact.description)]]


TABLES = {"Assets": assets, "Checks": checks}


def markdown(rows: Rows) -> str:
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    )


def _asset(graph: AssetGraph, key: dg.AssetKey) -> list[str]:
    node = graph.get(key)
    watched = (
        "" if node.is_materializable else "recorded with it" if node.is_partitioned else "watched"
    )
    rule = node.automation_condition.get_label() if node.automation_condition else None
    pools = ", ".join(f"`{pool}`" for pool in sorted(node.pools or ()))
    parents = ", ".join(_code(parent) for parent in sorted(node.parent_keys))
    return [
        _code(key),
        node.group_name,
        _partitions(node.partitions_def),
        parents,
        rule or watched,
        pools,
    ]


def _partitions(definition: dg.PartitionsDefinition | None) -> str:
    if isinstance(definition, dg.MultiPartitionsDefinition):
        (other,) = set(definition.partition_dimension_names) - {"part"}
        return f"{other} x part"
    known = {
        "part": part_partitions,
        "LLaVA part": llava_part_partitions,
        "variant": variant_partitions,
        "source": source_partitions,
        "asked source": asked_source_partitions,
        "arm": arm_partitions,
    }
    return next((name for name, one in known.items() if one == definition), "")


def _code(key: dg.AssetKey) -> str:
    return f"`{key.to_user_string()}`"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", action="store_true", help="put the tables into docs/architecture.md"
    )
    given = parser.parse_args()
    text, found = PAGE.read_text(), graph()
    for heading, rows in TABLES.items():
        table = markdown(rows(found))
        print(f"### {heading}\n\n{table}\n")
        start = re.compile(r"^\|(?:.*\n\|)*.*$", re.M).search(text, text.index(f"### {heading}\n"))
        assert start is not None, f"{PAGE}: no table under {heading}"
        text = text[: start.start()] + table + text[start.end() :]
    if given.write:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
