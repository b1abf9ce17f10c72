"""The command line as a person meets it: what is wrong is said in a sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hour_llava  # noqa: F401 registers the model
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForImageTextToText

from model.weights.tiny import build_tiny
from pipeline.cli import main
from pipeline.demo import run as demo_run
from pipeline.demo.following import Follower
from pipeline.instance_folder import REPOSITORY, instance_folder, state_folder

BROKEN = {
    "no file": (None, "no such file"),
    "not YAML": ("root: [", "not valid YAML"),
    "not text": (b"\xff\xfe\x00", "not valid YAML"),
    "a list": ("- a", "expected a mapping"),
    "an unknown key": ("rot: data", "variants"),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("command", [["ui"], ["why", "panda/abc"], ["fine-tune"]])
def test_bad_settings_end_a_command_with_a_sentence_and_exit_code_2(
    command, broken, tmp_path, capsys
):
    content, said = BROKEN[broken]
    config = tmp_path / "my settings.yaml"
    if content is not None:
        config.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main([*command, "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert str(config) in error
    assert said in error
    assert "Traceback" not in error


def test_a_folder_in_place_of_settings_is_named(tmp_path, capsys):
    assert main(["ui", "--config", str(tmp_path)]) == 2
    assert f"{tmp_path}: cannot be read: Is a directory" in capsys.readouterr().err


def test_output_that_nobody_reads_any_more_is_said_in_a_line(tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text(
        "root: data\nannotations: {repo: a/b}\nsources: {own: {kind: drop, folder: .}}\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "why", "x", "--config", str(config)],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "DAGSTER_HOME": str(tmp_path)},
    )
    os.close(writing)
    assert ended.stderr == "hourllava why: nobody reads the output any more\n"
    assert ended.returncode == 141


def test_another_corpus_of_the_demo_that_has_only_one_is_refused(capsys):
    assert main(["demo", "--own", "--seed", "2"]) == 2
    assert "--own has one corpus" in capsys.readouterr().err


@pytest.mark.parametrize(("set_to", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_every_command_sleep_while_they_wait(set_to, found, tmp_path):
    """In a process of its own: the variable counts before torch is imported."""
    code = (
        "import os, sys; from pipeline import cli; "
        "cli._COMMANDS['checkpoints'] = "
        "lambda _: print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY']) or 0; "
        "cli.main(['checkpoints'])"
    )
    known = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    variables = known | ({"OMP_WAIT_POLICY": set_to} if set_to else {})
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", found], done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_shell_completes_commands(shell, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", shell])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for command in ("train", "convert", "evaluate", "fine-tune"):
        assert command in said
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=said, text=True, check=True)


def test_a_read_only_checkout_asks_for_a_folder_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != REPOSITORY)
    with pytest.raises(ValueError, match=r"read-only.*export DAGSTER_HOME"):
        instance_folder()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    assert instance_folder() == state_folder() == tmp_path


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("an export")
    build_tiny(folder / "export")
    return folder / "export"


def test_a_checkpoint_goes_to_the_released_layout_and_back(export, tmp_path, capsys):
    assert main(["convert", "publish", str(export), str(tmp_path / "released")]) == 0
    command = ["convert", "released", "--variant", "tiny", str(tmp_path / "released")]
    assert main([*command, str(tmp_path / "back")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "back")
    ours, back = (
        AutoModelForImageTextToText.from_pretrained(folder).state_dict()
        for folder in (export, tmp_path / "back")
    )
    assert ours.keys() == back.keys()
    assert all(ours[name].equal(back[name]) for name in ours)
    assert main([*command, str(tmp_path / "back")]) == 2
    assert "is already there" in capsys.readouterr().err
    assert main(["convert", "publish", str(tmp_path / "gone"), str(tmp_path / "new")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_checkpoint_is_scored_on_a_file_of_questions(export, tmp_path, capsys):
    asked = [
        {"id": str(number), "media": "text", "path": "", "question": "2 + 2?", "answer": "4",
         "candidates": ["4", "5"], "task": "sums"}
        for number in range(3)
    ]  # fmt: skip
    questions = tmp_path / "my questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in asked))
    answers = tmp_path / "answers.parquet"
    command = ["evaluate", str(export), str(questions), "--answers", str(answers)]
    assert main([*command, "--limit", "2", "--device", "cpu"]) == 0
    rows = pq.read_table(answers).to_pylist()
    assert [row["id"] for row in rows] == ["0", "1"]
    right = sum(row["correct"] for row in rows) / 2
    table = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert table["all"][1:3] == table["sums"][1:3] == ["2", str(right)]
    assert main(["evaluate", str(tmp_path / "gone"), str(questions)]) == 2
    assert "no such checkpoint folder" in capsys.readouterr().err


def test_a_run_that_cannot_work_is_refused_before_ranks_start(tmp_path, capsys):
    run = tmp_path / "run.json"
    run.write_text('{"variant": "tiny", "stag": 1}')
    assert main(["train", str(run)]) == 2
    assert "stag" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "gone.json")]) == 2
    assert "no such run configuration" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stage_is_trained_under_torchrun_in_a_folder_with_a_space(export, tmp_path):
    from tests.training.shard_runs import make_corpus

    folder = tmp_path / "my runs"
    folder.mkdir()
    corpus = make_corpus(folder / "root")
    run = corpus.run(out=str(folder / "out"), start=str(export), max_steps=2, device="cpu")
    run.write(folder / "run.json")
    command = [sys.executable, "-m", "pipeline.cli", "train", str(folder / "run.json")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((folder / "out/result.json").read_text())["steps"] == 2


class SpokenRuns:
    """A client whose runs say what the test tells them to."""

    def __init__(self) -> None:
        self.said: dict[str, list[str]] = {}

    def messages(self, run, after=None):
        begin = int(after or 0)
        lines = self.said.get(run, [])
        return lines[begin:], str(len(lines))


def test_whoever_waits_sees_the_newest_line_of_each_run_and_otherwise_that_it_goes_on():
    client, printed = SpokenRuns(), []
    follower = Follower(client, printed.append, every_s=0)
    client.said = {"a": ["step 1/9 loss 4.0", "step 2/9 loss 3.9, 7 s left\nmore"], "b": []}
    follower.look({"a": "stage1", "b": "part3"})
    assert printed == ["  stage1: step 2/9 loss 3.9, 7 s left"]
    follower.look({"a": "stage1", "b": "part3"})
    assert printed[1] == "  stage1, part3: 0 min 00 s so far"
    follower = Follower(client, printed.append, every_s=3600)
    follower.look({"a": "stage1"})
    assert len(printed) == 2, "not yet"


class EndingRuns(SpokenRuns):
    """A client whose runs have, at each look, the states that come next."""

    def __init__(self, *states: dict[str, str]) -> None:
        super().__init__()
        self.states = list(states)

    def runs(self, ids):
        return {run: {"status": status} for run, status in self.states.pop(0).items()}

    def failure(self, run):
        return f"why {run} failed"


def test_why_a_run_failed_is_said_while_others_go_on(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(demo_run, "LOOK_S", 0)
    names = {"a": "part0", "b": "part1"}
    client = EndingRuns(
        {"a": "STARTED"},
        {"a": "FAILURE", "b": "STARTED"},
        {"a": "FAILURE", "b": "SUCCESS"},
    )
    monkeypatch.setattr(demo_run, "say", lambda line: said.append(f"{len(client.states)}{line}"))
    assert not demo_run.wait(client, names)
    assert said == ["1  part0: FAILURE: why a failed"], "once, with a look still to come"
    assert demo_run.wait(EndingRuns({"a": "SUCCESS", "b": "SUCCESS"}), names)
    assert not demo_run.wait(EndingRuns({"a": "CANCELED", "b": "SUCCESS"}), names)
