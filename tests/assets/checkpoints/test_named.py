"""Checkpoints by name: listed, fetched from a hub, and asked by their product."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file

from assets.checkpoints.named import checkpoint_folder, fetch_released
from assets.deployment.settings import load_settings
from assets.records.lineage import Lineage
from model.config import PRESETS
from model.weights import kinds
from model.weights.convert import publish
from model.weights.released import RELEASED, stage_by_name
from model.weights.tiny import build_tiny
from pipeline.cli import main
from pipeline.demo.servers import HubServer
from training.formats.storage import Storage


@pytest.fixture
def config(tmp_path) -> Path:
    chosen = {
        "root": "data",
        "variants": {"lectures": {"preset": "tiny", "start": {"folder": "given", "stage": 3}}},
        "annotations": {"paths": ["rows.jsonl"]},
        "sources": {"own": {"kind": "drop", "folder": "drop"}},
    }
    path = tmp_path / "deployment.yaml"
    path.write_text(yaml.safe_dump(chosen))
    export = tmp_path / "data/checkpoints/lectures/base/export"
    export.mkdir(parents=True)
    record = Lineage("base_model[lectures]", "v", "checkpoints/lectures/base")
    record.counts["parameters"] = 1234
    record.write(Storage(str(tmp_path / "data")))
    return path


def test_a_product_is_a_checkpoint_and_any_other_path_stays_what_it_is(config, tmp_path):
    found = checkpoint_folder(Path("base_model[lectures]"), config)
    assert found == tmp_path / "data/checkpoints/lectures/base/export"
    assert checkpoint_folder(tmp_path / "x", config) == tmp_path / "x"
    with pytest.raises(FileNotFoundError, match=r"stage3\[lectures\] has not been made"):
        checkpoint_folder(Path("stage3[lectures]"), config)
    with pytest.raises(FileNotFoundError, match=r"ablation\[keyframe-1\] has not been made"):
        checkpoint_folder(Path("ablation[keyframe-1]"), config)


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A tiny checkpoint of the released layout."""
    folder = tmp_path_factory.mktemp("released")
    build_tiny(folder / "own")
    publish(folder / "own", folder / "Hour-LLaVA")
    return folder / "Hour-LLaVA"


@pytest.fixture
def hub(config):
    """A hub that the settings name."""
    with HubServer() as server:
        config.write_text(config.read_text() + f"hub_endpoint: {server.url}\n")
        yield server


def rows_of(said: str) -> dict[str, str]:
    """First word -> line."""
    return {line.split()[0]: line for line in said.splitlines() if line.strip()}


def test_the_deployments_own_are_listed(config, hub, capsys):
    assert main(["checkpoints", "--config", str(config)]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert "1,234" in rows["base_model[lectures]"]
    assert "not made yet" in rows["stage3[lectures]"]


def test_what_the_author_has_is_known_by_its_files_and_never_by_its_name(
    config, hub, released, tmp_path, capsys
):
    hub.publish("jylins/Anything-adaptation", released, kind="models")
    hub.publish("jylins/plain", released, kind="models")
    hub.publish("jylins/Hour-LLaVA-3B", {"README.md": b"soon"}, kind="models")
    hub.publish("someone/else-tuning", released, kind="models")
    hub.publish("jylins/videomarathon", {"a.parquet": b"rows"})
    # One file without an index: of its bytes only the header is asked for.
    alone = {"config.json": released / "config.json"}
    (weights,) = released.glob("*.safetensors")
    kept = {n: t for n, t in load_file(weights).items() if "vision_resampler" not in n}
    save_file(kept, tmp_path / "alone.safetensors")
    alone["model.safetensors"] = tmp_path / "alone.safetensors"
    hub.publish("jylins/onevision", alone, kind="models")
    hub.publish("jylins/broken", alone | {"config.json": b"[]"}, kind="models")
    lists = {"model.safetensors.index.json": b'{"weight_map": [1]}'}
    hub.publish("jylins/lists", alone | lists, kind="models")
    lists = {"model.safetensors.index.json": b'{"weight_map": {"a": "second.safetensors"}}'}
    hub.publish("jylins/half", alone | lists, kind="models")
    assert main(["checkpoints", "--config", str(config)]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert {name for name in rows if "/" in name} == {
        f"jylins/{name}"
        for name in (
            "Anything-adaptation",
            "plain",
            "Hour-LLaVA-3B",
            "onevision",
            "broken",
            "lists",
            "half",
        )
    }
    assert "second.safetensors of its index is not there" in rows["jylins/half"]
    assert "has no weight_map of file names" in rows["jylins/lists"]
    line = rows["jylins/Anything-adaptation"]
    assert "released Hour-LLaVA" in line
    assert "{preset: tiny, start: {repo: jylins/Anything-adaptation, stage: 2}}" in line
    assert "{repo: jylins/plain, stage: N}" in rows["jylins/plain"]
    assert "{repo: jylins/onevision, stage: 0}" in rows["jylins/onevision"]
    assert "it has no config.json" in rows["jylins/Hour-LLaVA-3B"]
    assert "start:" not in rows["jylins/Hour-LLaVA-3B"]
    assert "expected an object, found list" in rows["jylins/broken"]
    assert main(["checkpoints", "list", "someone", "--config", str(config)]) == 0
    assert "stage 3, tuning" in rows_of(capsys.readouterr().out)["someone/else-tuning"]


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_said_with_what_is_expected_and_what_is_here(
    config, hub, released, tmp_path, capsys
):
    hub.publish("jylins/plain", released, kind="models")
    cache = tmp_path / "cache"
    snapshot_download("jylins/plain", endpoint=hub.url, cache_dir=cache)
    code = (
        "import sys; from pipeline.cli import main; "
        "sys.exit(main(['checkpoints', '--config', sys.argv[1]]))"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(config)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = rows_of(done.stdout)
    assert f"{hub.url} does not answer" in done.stdout
    assert "never checked against it" in done.stdout
    for repo, known in RELEASED.items():
        start = f"{{preset: {known.preset}, start: {{repo: {repo}, stage: {known.stage}}}}}"
        assert start in rows[known.name]
    (folder,) = re.findall(r"\{folder: (.*), stage: N\}", rows["jylins/plain"])
    assert (Path(folder) / "config.json").exists()


def test_one_is_fetched_whole_and_its_start_is_told(config, hub, tmp_path, capsys):
    (repo,) = [repo for repo, known in RELEASED.items() if known.name == "3b-tuning"]
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    (tmp_path / "hub" / "model.safetensors").write_bytes(b"weights")
    hub.publish(repo, tmp_path / "hub", kind="models")
    to = tmp_path / "fetched"
    given = ["checkpoints", "fetch", "3b-tuning", "--to", str(to), "--config", str(config)]
    assert main(given) == 0
    assert (to / "model.safetensors").read_bytes() == b"weights"
    assert f"as a start: {{folder: {to}, stage: 3}}" in capsys.readouterr().out


def test_a_released_one_is_found_under_another_name_and_asked_for_where_none_is_it(
    config, hub, released, tmp_path, monkeypatch, capsys
):
    tiny = dataclasses.replace(PRESETS["tiny"], variant="3b")
    monkeypatch.setattr(kinds, "PRESETS", {"3b": tiny})
    hub.publish("jylins/plain", released, kind="models")
    given = ["checkpoints", "fetch", "3b-tuning", "--to", str(tmp_path / "to")]
    given += ["--config", str(config)]
    assert main(given) == 2
    said = capsys.readouterr().err
    assert "the hub has no jylins/Hour-LLaVA-3B, and nothing that is known to be it" in said
    assert "Of jylins it has jylins/plain" in said
    hub.publish("jylins/HL3-instruct", released, kind="models")
    assert main(given) == 0
    assert (tmp_path / "to" / "config.json").exists()
    assert "3b-tuning is jylins/HL3-instruct on the hub" in capsys.readouterr().err


def test_a_repository_that_the_hub_does_not_have_is_told_those_that_it_has(
    config, hub, released, capsys
):
    hub.publish("someone/there", released, kind="models")
    for name, told in {
        "someone/away": "has no model someone/away at main.*Of someone it has someone/there",
        "nobody/away": "has no model nobody/away at main.*Of nobody it has no model",
        "someone/there@v9": "has no model someone/there at v9",
    }.items():
        assert main(["checkpoints", "fetch", name, "--config", str(config)]) == 2
        assert re.search(told, capsys.readouterr().err)


def test_the_stage_is_read_off_a_name_only_where_it_says_one():
    found = {
        "a/HL-Stage1": 1,
        "a/HL_pretrained": 1,
        "a/HL-stage-2-3B": 2,
        "a/HL-adaptation": 2,
        "a/HL-Instruct": 3,
        "a/HL-pretraining-tuning": None,
        "a/HL-stage12": None,
        "tuning/HL": None,
        "jylins/Hour-LLaVA-7B": 3,
    }
    assert {name: stage_by_name(name) for name in found} == found


def test_a_name_that_is_not_one_is_told_the_known_ones(config):
    with pytest.raises(ValueError, match=r"they are 3b-pretraining, .* 7b-tuning, or name any"):
        fetch_released(load_settings(config), "9b", None, print)
