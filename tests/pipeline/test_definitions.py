"""The code location: what depends on what, and what loading it may cost."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from pipeline.executors import PRELOADED

REPOSITORY = Path(__file__).parents[2]

ONEVISION_SHARDS = {"llava_ov_si_onlyimg", "llavavideo_text", "llavavideo_si", "llavavideo_mi"}
GRAPH = {
    "0_start_here": set(),
    "captions": set(),
    "questions": {"captions"},
    "landing": {"questions"},
    "hub_annotations": set(),
    "hub_llava_onevision": set(),
    "hub_llava_video": set(),
    "annotations": {"landing", "hub_annotations"},
    "catalogue": {"annotations"},
    "llava_onevision": {"hub_llava_onevision"},
    "llava_video": {"hub_llava_video"},
    "part_rows": {"catalogue"},
    "videos": {"part_rows"},
    "conversations": {"part_rows", "videos"},
    "videomarathon_json": {"conversations"},
    **{kind: {"llava_onevision"} for kind in ONEVISION_SHARDS},
    "llavavideo_video": {"llava_video"},
    "videomarathon_video": {"conversations"},
    "hourllava_s3": {
        "llavavideo_text",
        "llavavideo_si",
        "llavavideo_mi",
        "llavavideo_video",
        "videomarathon_video",
    },
    "base_model": set(),
    "stage1": {"base_model", "llava_ov_si_onlyimg"},
    "stage2": {"stage1", "llavavideo_text", "llavavideo_si", "llavavideo_mi", "llavavideo_video"},
    "vision_encoder": {"stage2"},
    "features": {"videos", "vision_encoder"},
    "stage3": {"stage2", "hourllava_s3", "features"},
    "evaluation": {"base_model", "stage1", "stage2", "stage3"},
}


@pytest.fixture(scope="module")
def graph():
    from pipeline.definitions import definitions

    return definitions().resolve_asset_graph()


def test_the_graph_is_the_one_of_the_design(graph):
    found = {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
    }
    assert found == GRAPH


def test_stage_two_reads_only_the_parts_that_stage_three_does_not(graph):
    """Stage 2 takes part 0 of the image kinds and parts 0 and 1 of the short videos, and nothing
    else.
    """
    expected = {
        "llavavideo_text": ["part0"],
        "llavavideo_si": ["part0"],
        "llavavideo_mi": ["part0"],
    }
    expected["llavavideo_video"] = ["part0", "part1"]
    mappings = graph.get(dg.AssetKey("stage2")).partition_mappings
    assert {
        key.to_user_string(): list(mapping.partition_keys)
        for key, mapping in mappings.items()
        if isinstance(mapping, dg.SpecificPartitionsPartitionMapping)
    } == expected


def test_every_dependency_between_partitioned_assets_says_how_partitions_map(graph):
    unsaid = []
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        for parent in node.parent_keys:
            if graph.get(parent).is_partitioned and parent not in node.partition_mappings:
                unsaid.append((key.to_user_string(), parent.to_user_string()))
    assert unsaid == []


def test_every_asset_tells_a_stranger_what_it_is(graph):
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert len(node.description or "") > 60, key
        assert node.group_name != "default", key
        assert node.kinds, key
        assert node.owners, key


def test_every_asset_says_what_starts_it_and_where_its_code_is(graph):
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.tags["hourllava/automation"] in {"data", "training", "by-hand", "watched"}, key
        assert node.is_external or "dagster/code_references" in node.metadata, key


CHECKS = {
    "captions": {"described": True},
    "questions": {"balanced": False, "judged": False},
    "annotations": {"usable": False},
    "llava_onevision": {"all_there": False},
    "llava_video": {"all_there": False},
    "videos": {"coverage": True, "nothing_more_to_get": False},
    "conversations": {"sound": True},
    **{
        kind: {"whole": True}
        for kind in (*ONEVISION_SHARDS, "llavavideo_video", "videomarathon_video")
    },
    "hourllava_s3": {"one_place": True, "labels": True},
    **{
        f"stage{number}": {"loss": True, "loss_falls": False, "export_loads": True}
        for number in (1, 2, 3)
    },
    "features": {"complete": True, "none_quarantined": False},
    "evaluation": {"above_blind": False},
}


def test_every_asset_that_is_made_here_can_be_read_again(graph):
    checked = {key.asset_key for key in graph.asset_check_keys if key.name == "intact"}
    assert checked == set(graph.executable_asset_keys)
    assert not any(
        graph.get(key).blocking for key in graph.asset_check_keys if key.name == "intact"
    )


def test_checks_stop_what_follows_wherever_going_on_would_waste_work(graph):
    found: dict[str, dict[str, bool]] = {}
    for key in graph.asset_check_keys:
        if key.name not in ("up_to_date", "intact"):
            found.setdefault(key.asset_key.to_user_string(), {})[key.name] = graph.get(key).blocking
    assert found == CHECKS


def test_whatever_is_made_from_something_says_whether_it_is_up_to_date_and_only_warns(graph):
    made = {key for key in graph.materializable_asset_keys if graph.get(key).parent_keys}
    checks = {key for key in graph.asset_check_keys if key.name == "up_to_date"}
    assert {key.asset_key for key in checks} == made
    assert not any(graph.get(key).blocking for key in checks)


def test_a_check_speaks_of_the_partition_that_was_made(graph):
    """Only `up_to_date` speaks of all of them at once."""
    for key in graph.asset_check_keys:
        own = None if key.name == "up_to_date" else graph.get(key.asset_key).partitions_def
        assert graph.get(key).partitions_def == own, key


def test_every_check_says_what_it_looks_at(graph):
    assert all(len(graph.get(key).description or "") > 50 for key in graph.asset_check_keys)


@pytest.mark.slow
def test_loading_the_code_location_imports_neither_torch_nor_its_friends():
    script = (
        "import json, sys; from pipeline.definitions import definitions; definitions();"
        "print(json.dumps([m for m in ('torch', 'transformers', 'streaming', 'decord', "
        "'torchvision') if m in sys.modules]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == []


@pytest.mark.slow
def test_dagster_validates_the_workspace():
    result = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "DAGSTER_HOME": ""},
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_what_the_fork_server_is_to_import_exists():
    """It says nothing of a module that it cannot find, and steps would outlive their run."""
    assert [name for name in PRELOADED if importlib.util.find_spec(name) is None] == []
