"""The diffs of docs/contributing.md, applied to a copy of the tree: each adds what it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import REPOSITORY, Block, page
from tests.servers.clips import clip

pytestmark = pytest.mark.slow

DIFFS = {block.title: block for block in page("docs/contributing.md").blocks("diff")}

GRAPH = """
import dagster as dg
from pipeline.definitions import definitions

graph = definitions().resolve_asset_graph()

def parents(asset):
    return {parent.to_user_string() for parent in graph.get(dg.AssetKey(asset)).parent_keys}
"""
CHECKS = {
    "source": """
from assets.deployment.partitions import source_partitions
assert "lectures" in source_partitions.get_partition_keys()
""",
    "kind": """
from pathlib import Path
from assets.deployment.settings import load_settings
from assets.annotations.collect import collect_annotations
from assets.videos.acquire import acquire_part
from assets.annotations.build import build_catalogue
from assets.annotations.catalogue import read_catalogue
from training.formats.storage import Storage

settings = load_settings(Path("bucket.yaml"))
storage = Storage(settings.root)
collect_annotations(storage, settings, print)
build_catalogue(storage, settings, print)
report = acquire_part(storage, settings, "lectures", "part0", print)
assert report.counts["ok"] == 1, report
assert storage.exists("VideoMarathon/videos/lectures/first.mp4")
rows = read_catalogue(storage, "lectures", "part0").to_pylist()
(lost,) = [row for row in rows if row["status"] != "ok"]
assert lost["reason"] == "not_in_bucket", lost

import pytest
assert pytest.main(["-q", "-p", "no:cacheprovider", "tests/assets/sources/test_bucket.py"]) == 0
""",
    "shard": """
from assets.collections.mixtures import read_mixture
assert len(graph.get(dg.AssetKey("llavavideo_documents")).partitions_def.get_partition_keys()) == 10
assert "llavavideo_documents" in parents("stage2") & parents("hourllava_s3")
assert sum(entry.kind == "llavavideo_documents" for entry in read_mixture()) == 2
""",
    "stage": """
from model.config import VARIANTS
from training.run_config import RunConfig, StreamConfig
from training.recipes import stage_inputs
assert parents("stage4") == {"stage3", "llavavideo_text", "llavavideo_si", "llavavideo_mi"}
assert {item.part for stream in stage_inputs(4) for item in stream} == {9}
for variant in VARIANTS:
    run = RunConfig(variant, 4, "export", "out", (StreamConfig("mixed", "root", ("index.json",)),))
    assert run.modules == ("llm",)
""",
    "variant": """
from assets.deployment.partitions import variant_partitions
from model.config import PRESETS, VARIANTS, HourLlavaConfig
from training.recipes import STAGES, recipe
assert variant_partitions.get_partition_keys() == ["0.5b"]
assert HourLlavaConfig.from_dict(PRESETS["0.5b"].to_dict()) == PRESETS["0.5b"]
assert all(recipe("0.5b", stage).rates for stage in STAGES)
assert VARIANTS["0.5b"].start and not VARIANTS["0.5b"].is_demo
""",
    "forgetting": """
import runpy
import torch
from model.config import PRESETS
from model.inputs import Visual
from model.memory import lay_out
video = Visual("features", features=torch.zeros(16, 16, 64))
layout = lay_out([video], PRESETS["tiny"], "centre", None)
assert layout.query_rows_Q[:5].tolist() == [5, 6, 9, 10, 16]  # the last is the newline
runpy.run_path("tests/model/test_forgetting_centre.py")["test_the_middle_stays"]()
""",
}
RECIPE_TESTS = "tests/training/test_recipes.py"  # three of the diffs add a test to it
BUCKET = """
root: data
parts: 1
annotations: {paths: [rows.csv]}
sources:
  lectures: {kind: bucket, url: "file://BUCKET", coverage_threshold: 0}
"""
SMALL = """
root: data
variants: [0.5b]
annotations: {paths: [rows.csv]}
sources: {}
"""


@pytest.fixture
def copy(tmp_path) -> Path:
    """What a diff may change, without what git ignores; and the settings and the bucket of the
    checks.
    """
    for room in ("pipeline", "assets", "training", "model"):
        shutil.copytree(
            REPOSITORY / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__")
        )
    (tmp_path / RECIPE_TESTS).parent.mkdir(parents=True)
    shutil.copy(REPOSITORY / RECIPE_TESTS, tmp_path / RECIPE_TESTS)
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket/first.mp4").write_bytes(clip())
    (tmp_path / "rows.csv").write_text("video,question,answer\nfirst,Who?,I\nsecond,Who?,You\n")
    (tmp_path / "bucket.yaml").write_text(BUCKET.replace("BUCKET", str(tmp_path / "bucket")))
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


def apply(diff: Block, folder: Path) -> None:
    """As a reader would: ``patch -p1``, or git's own where patch is not installed."""
    command = ["patch", "-p1"] if shutil.which("patch") else ["git", "apply", "-p1"]
    result = subprocess.run(
        command, cwd=folder, input=diff.text, text=True, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def run(arguments: list[str], folder: Path, settings: str) -> subprocess.CompletedProcess[str]:
    """A Python process in the copy, with the copy's code."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "HOURLLAVA_CONFIG": str(folder / settings),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("name", CHECKS)
def test_a_diff_adds_what_it_says(name, copy):
    apply(DIFFS[name], copy)
    settings = "small.yaml" if name == "variant" else "pipeline/deployment.yaml"
    script = CHECKS[name] if name in ("kind", "forgetting") else GRAPH + CHECKS[name]
    result = run(["-c", script], copy, settings)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", ["shard", "stage", "variant"])
def test_a_diff_that_adds_a_row_adds_a_test_that_holds_with_it_alone(name, copy):
    (added,) = re.findall(r"^\+def (test_\w+)", DIFFS[name].text, re.MULTILINE)
    apply(DIFFS[name], copy)
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"{RECIPE_TESTS}::{added}"]
    with_row = run(command, copy, "pipeline/deployment.yaml")
    assert with_row.returncode == 0, with_row.stdout + with_row.stderr
    for room in ("assets", "training", "model"):
        shutil.rmtree(copy / room)
        shutil.copytree(
            REPOSITORY / room, copy / room, ignore=shutil.ignore_patterns("__pycache__")
        )
    without_row = run(command, copy, "pipeline/deployment.yaml")
    assert without_row.returncode == 1, without_row.stdout + without_row.stderr


def test_no_check_holds_without_its_diff(copy):
    each = f"""
for name, check in {CHECKS!r}.items():
    try:
        exec(check)
    except (AssertionError, LookupError, ValueError) as error:
        print("fails", name, repr(error))
    else:
        print("HOLDS", name)
"""
    result = run(["-c", GRAPH + each], copy, "pipeline/deployment.yaml")
    assert result.stdout.count("fails") == len(CHECKS), result.stdout + result.stderr


def test_every_diff_of_the_page_is_checked():
    assert set(DIFFS) == set(CHECKS)
