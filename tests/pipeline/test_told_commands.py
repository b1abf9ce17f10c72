"""Commands that a person is told to run work as they are printed: with the settings of the run that
prints them.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from assets.deployment import addresses
from assets.deployment.addresses import ask_address, config_option
from assets.deployment.settings import CONFIG_VARIABLE, DEFAULT_CONFIG, load_settings
from assets.records.lineage import Lineage
from model.weights.convert import publish
from model.weights.tiny import build_tiny
from pipeline.cli import build_parser, main
from pipeline.demo.instance import REPOSITORY
from pipeline.demo.servers import HubServer
from pipeline.demo.tuning import SCORES, print_scores
from training.formats.storage import Storage

LECTURES = {
    "root": "data",
    "variants": {"lectures": {"preset": "tiny", "start": {"folder": "given", "stage": 3}}},
    "annotations": {"paths": ["rows.jsonl"]},
    "sources": {"own": {"kind": "drop", "folder": "videos"}},
    "training": {"long_videos_only": True},
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch) -> Path:
    """Settings in a folder whose name a shell would take apart; the variable names no others."""
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    folder = tmp_path / "it's mine"
    folder.mkdir()
    path = folder / "my settings.yaml"
    path.write_text(yaml.safe_dump(LECTURES))
    return path


def scored(config: Path) -> Storage:
    """The root of settings, with the record and the summary of an evaluation."""
    storage = Storage(load_settings(config).root)
    folder = "evaluation/lectures"
    storage.write_json(f"{folder}/summary.json", {"accuracy": [dict.fromkeys(SCORES, 1)]})
    Lineage("evaluation[lectures]", "e", folder=folder).write(storage)
    return storage


def last_command(said: str) -> list[str]:
    """The words of the last line that is printed, up to what it says about the command."""
    line, _, _ = said.strip().splitlines()[-1].partition("   ")
    program, *words = shlex.split(line)
    assert program == "hourllava"
    return words


def test_the_command_that_asks_the_tuned_checkpoint_reads_the_same_settings(config, capsys):
    print_scores(scored(config), "lectures", config)
    asked = build_parser().parse_args(last_command(capsys.readouterr().out))
    assert asked.checkpoint == Path("stage3[lectures]")
    assert load_settings(asked.config) == load_settings(config)


def test_settings_that_are_read_anyway_are_not_named(config, capsys, monkeypatch):
    assert config_option(None) == config_option(DEFAULT_CONFIG) == ""
    monkeypatch.chdir(config.parent)
    assert shlex.split(config_option(Path(config.name))) == ["--config", config.name]
    monkeypatch.setenv(CONFIG_VARIABLE, str(config))
    assert config_option(Path(config.name)) == ""
    assert config_option(DEFAULT_CONFIG) == f" --config {DEFAULT_CONFIG}"
    print_scores(scored(config), "lectures", config)
    assert "--config" not in last_command(capsys.readouterr().out)


def test_the_page_of_a_checkpoint_says_with_which_settings_it_is_served(config, monkeypatch):
    assert ask_address("stage3[lectures]").startswith("`hourllava serve`, then ")
    monkeypatch.chdir(config.parent)
    monkeypatch.setenv(CONFIG_VARIABLE, config.name)
    command, _, address = ask_address("stage3[lectures]").partition(", then ")
    assert shlex.split(command.strip("`"))[1:] == ["serve", "--config", str(config)]
    assert address == f"http://127.0.0.1:{addresses.PORT}/?checkpoint=stage3%5Blectures%5D"


def test_the_list_of_checkpoints_fetches_from_the_same_hub(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    build_tiny(tmp_path / "own")
    publish(tmp_path / "own", tmp_path / "released")
    with HubServer() as hub:
        hub.publish("someone/HL-tuning", tmp_path / "released", kind="models")
        config.write_text(yaml.safe_dump(LECTURES | {"hub_endpoint": hub.url}))
        assert main(["checkpoints", "list", "someone", "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert f"hourllava checkpoints fetch REPOSITORY{config_option(config)} takes one" in said
    assert main(["checkpoints", "fetch", "--config", str(config)]) == 2
    assert f"hourllava checkpoints{config_option(config)} lists them" in capsys.readouterr().err


def test_the_doctor_sends_people_on_with_the_same_settings(config, capsys, monkeypatch):
    shutil.copy(REPOSITORY / "dagster.yaml", config.parent)
    monkeypatch.setenv("DAGSTER_HOME", str(config.parent))
    assert main(["doctor", "--config", str(config)]) == 1
    said = capsys.readouterr().out
    assert f"hourllava checkpoints{config_option(config)} lists those there are" in said
