"""Which history the commands open: one rule, wherever they are started."""

import contextlib
import os
import shutil
from pathlib import Path

import dagster as dg
import pytest

from assets.records.lineage import Lineage
from pipeline import web_ui
from pipeline.cli import main
from pipeline.instance_folder import REPOSITORY, instance_folder
from training.formats.storage import Storage


def test_the_folder_is_that_of_the_variable_or_this_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert instance_folder() == REPOSITORY
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    assert instance_folder() == tmp_path
    monkeypatch.setenv("DAGSTER_HOME", "relative")
    with pytest.raises(ValueError, match="set it to an absolute path"):
        instance_folder()


@pytest.mark.parametrize("command", ["ui", "recover", "doctor"])
def test_where_dagster_would_open_another_history_a_command_says_so(
    tmp_path, monkeypatch, capsys, command
):
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert main([command, "--config", str(REPOSITORY / "tests/deployment.yaml")]) == 2
    said = capsys.readouterr().err
    assert f"without DAGSTER_HOME this command opens that of {REPOSITORY}" in said
    assert f"export DAGSTER_HOME={tmp_path}" in said


def test_recover_fills_the_history_of_the_variable_from_any_folder(tmp_path, monkeypatch, capsys):
    """Its dagster.yaml names its folders relative to itself."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    shutil.copy(REPOSITORY / "dagster.yaml", home)
    config = tmp_path / "deployment.yaml"
    text = (REPOSITORY / "tests/deployment.yaml").read_text()
    config.write_text(text.replace("../.test-root", "root"))
    Lineage("annotations", "a1").write(Storage(str(tmp_path / "root")))
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.chdir(elsewhere)
    assert main(["recover", "--config", str(config)]) == 0
    assert f"recovered into the history of {home}" in capsys.readouterr().out
    assert list(elsewhere.iterdir()) == []
    monkeypatch.chdir(home)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert instance.get_latest_materialization_event(dg.AssetKey("annotations"))


def test_the_ui_opens_the_history_of_the_variable_from_any_folder(tmp_path, monkeypatch):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    shutil.copy(REPOSITORY / "dagster.yaml", home)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.chdir(elsewhere)
    opened = []

    def serve(instance, *_):
        opened.append((Path.cwd(), os.environ["DAGSTER_HOME"]))
        instance.add_dynamic_partitions("part", ["part0"])

    monkeypatch.setattr(web_ui, "serve", serve)
    # In this process: a fork of the tests would go on with them.
    monkeypatch.setattr(web_ui, "_below", lambda work: work() or 0)
    monkeypatch.setattr(web_ui, "_code_location", lambda _, file: contextlib.nullcontext(file))
    assert main(["ui"]) == 0
    assert opened == [(home, str(home))]
    assert list(elsewhere.iterdir()) == []
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert instance.get_dynamic_partitions("part") == ["part0"]
