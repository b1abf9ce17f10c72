"""Checkpoints by name: listed, fetched from a hub, and asked by their product."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from assets.checkpoints.named import checkpoint_folder, fetch_released
from assets.deployment.settings import load_settings
from assets.records.lineage import Lineage
from model.weights.released import RELEASED
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


def test_the_list_names_the_released_ones_with_what_to_write_and_the_deployments_own(
    config, capsys
):
    assert main(["checkpoints", "--config", str(config)]) == 0
    said = capsys.readouterr().out
    for repo, known in RELEASED.items():
        line = next(line for line in said.splitlines() if line.startswith(f"{known.name} "))
        start = f"{{preset: {known.preset}, start: {{repo: {repo}, stage: {known.stage}}}}}"
        assert start in line
    own = {line.split("  ")[0] for line in said.splitlines() if "[lectures]" in line}
    assert own == {"base_model[lectures]", "stage3[lectures]"}
    assert "1,234" in said
    assert "not made yet" in said


def test_one_is_fetched_whole_and_its_start_is_told(config, tmp_path, capsys):
    (repo,) = [repo for repo, known in RELEASED.items() if known.name == "3b-tuning"]
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    (tmp_path / "hub" / "model.safetensors").write_bytes(b"weights")
    with HubServer() as hub:
        hub.publish(repo, tmp_path / "hub", kind="models")
        config.write_text(config.read_text() + f"hub_endpoint: {hub.url}\n")
        to = tmp_path / "fetched"
        given = ["checkpoints", "fetch", "3b-tuning", "--to", str(to), "--config", str(config)]
        assert main(given) == 0
    assert (to / "model.safetensors").read_bytes() == b"weights"
    assert f"as a start: {{folder: {to}, stage: 3}}" in capsys.readouterr().out


def test_a_name_that_is_not_one_is_told_the_known_ones(config):
    with pytest.raises(ValueError, match=r"they are 3b-pretraining, .* 7b-tuning, or name any"):
        fetch_released(load_settings(config), "9b", None, print)
