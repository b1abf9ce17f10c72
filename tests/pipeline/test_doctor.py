"""`hourllava doctor`: what a machine lacks, told before a run finds out."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from dagster import DagsterInstance

from assets.deployment.settings import load_settings
from pipeline.cli import main
from pipeline.demo.instance import REPOSITORY
from pipeline.doctor.gpus import Gpu, check_gpus
from pipeline.doctor.services import check_instance

TINY = """
root: root
parts: 1
variants: [tiny]
annotations: {paths: [rows.jsonl]}
sources: {clips: {kind: drop, folder: drop}}
download: {min_free_bytes: 1}
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A deployment of the tiny variant in its own folder, with an instance that was never used."""
    (tmp_path / "drop").mkdir()
    (tmp_path / "deployment.yaml").write_text(TINY)
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    return tmp_path


def doctor(machine, capsys, *replacements, port=None):
    """Exit code, and check -> (state, what was found), after some of the settings were replaced."""
    settings = TINY
    for old, new in replacements:
        assert old in settings
        settings = settings.replace(old, new)
    (machine / "deployment.yaml").write_text(settings)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        chosen = port or free.getsockname()[1]
    code = main(["doctor", "--config", str(machine / "deployment.yaml"), "--port", str(chosen)])
    said = capsys.readouterr().out
    table, _, todo = said.partition("\n\n")
    header, *lines = table.splitlines()
    start, end = header.index("state"), header.index("found")
    rows = {line[:start].strip(): (line[start:end].strip(), line[end:]) for line in lines}
    return code, rows, todo


def test_a_machine_that_can_do_what_is_asked_is_told_so(machine, capsys):
    code, rows, _ = doctor(machine, capsys)
    assert code == 0
    assert "missing" not in {state for state, _ in rows.values()}
    assert {
        "python",
        "disk",
        "memory",
        "shared memory",
        "file descriptors",
        "decoder isolation",
    } <= rows.keys()
    assert rows["Dagster instance"][1].endswith("SqliteRunStorage with 0 runs")
    assert not (machine / "root").exists()


def test_a_disk_that_is_too_full_is_missing_and_says_how_full(machine, capsys):
    code, rows, todo = doctor(machine, capsys, ("min_free_bytes: 1", f"min_free_bytes: {1 << 60}"))
    state, found = rows["disk"]
    assert (code, state) == (1, "missing")
    free = int(
        subprocess.check_output(["df", "--output=avail", "-B1", machine], text=True).split()[1]
    )
    assert float(found.split()[0]) == pytest.approx(free / 2**30, rel=0.05)
    assert "missing: disk: free some space" in todo


def test_a_root_that_cannot_be_written_is_missing(machine, capsys):
    code, rows, _ = doctor(machine, capsys, ("root: root", "root: /proc/root"))
    assert (code, rows["storage root"][0]) == (1, "missing")


def test_a_start_that_is_not_there_is_missing_and_one_that_is_there_is_not(machine, capsys):
    start = "variants: {mine: {preset: tiny, start: {folder: given, stage: 3}}}"
    code, rows, _ = doctor(machine, capsys, ("variants: [tiny]", start))
    assert code == 1
    assert rows["start of mine"] == ("missing", f"no config.json in {machine / 'given'}")
    (machine / "given").mkdir()
    (machine / "given" / "config.json").write_text("{}")
    _, rows, _ = doctor(machine, capsys, ("variants: [tiny]", start))
    assert rows["start of mine"] == ("ok", str(machine / "given"))


def test_large_variants_need_a_gpu(machine, capsys):
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has one")
    code, rows, todo = doctor(machine, capsys, ("[tiny]", "[tiny, 3b]"))
    assert (code, rows["GPU"][0]) == (1, "missing")
    assert "missing: GPU: train 3b on a machine with NVIDIA GPUs" in todo
    assert "GiB" in rows["3b, stage 3"][1]


def gpu_findings(tmp_path, variant, gpus, processes=1):
    text = TINY.replace("[tiny]", f"[{variant}]") + f"training: {{processes: {processes}}}\n"
    (tmp_path / "deployment.yaml").write_text(text)
    settings = load_settings(tmp_path / "deployment.yaml")
    return {finding.what: finding for finding in check_gpus(settings, gpus)}


def test_a_stage_that_does_not_fit_is_told_with_what_would(tmp_path):
    alone = gpu_findings(tmp_path, "7b", [Gpu("small", 24 * 2**30, "999")])
    assert alone["7b, stage 2"].state == "missing"
    assert "devices of this size" in alone["7b, stage 2"].advice
    large = gpu_findings(tmp_path, "7b", [Gpu("large", 140 * 2**30, "999")] * 8, processes=8)
    assert {large[f"7b, stage {stage}"].state for stage in (1, 2, 3)} == {"ok"}


def test_more_ranks_than_gpus_are_noticed(tmp_path):
    found = gpu_findings(tmp_path, "tiny", [Gpu("large", 140 * 2**30, "999")], processes=2)
    assert found["training.processes"].state == "missing"


def test_youtube_needs_a_javascript_runtime_only_when_it_is_used(machine, capsys, monkeypatch):
    youtube = ("kind: drop, folder: drop", "kind: youtube, accept_terms: true")
    monkeypatch.setenv("PATH", str(machine))
    code, rows, todo = doctor(machine, capsys, youtube)
    assert (code, rows["source clips"][0]) == (1, "missing")
    assert "install Deno" in todo
    code, rows, _ = doctor(machine, capsys, (youtube[0], "kind: youtube"))
    assert (code, rows["source clips"][0]) == (0, "note")


def test_a_token_is_seen_and_never_shown(machine, capsys, monkeypatch):
    assert doctor(machine, capsys)[1]["hub token"][0] == "note"
    monkeypatch.setenv("HF_TOKEN", "hf_notToBeSeenByAnybody")
    _, rows, todo = doctor(machine, capsys)
    assert rows["hub token"][0] == "ok"
    assert "notToBeSeen" not in str(rows) + todo


def test_a_port_that_is_taken_is_noted(machine, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert doctor(machine, capsys, port=port)[1][f"port {port}"][0] == "note"


def test_too_few_file_descriptors_are_noted(machine):
    """In a process of its own: this one may hold thousands, because the streaming library keeps the
    shared memory of every plain dataset open to the end.
    """
    command = [sys.executable, "-m", "pipeline.cli", "doctor"]
    said = subprocess.run(
        ["bash", "-c", 'ulimit -Sn 4000 && exec "$@"', "doctor", *command],
        env={**os.environ, "HOURLLAVA_CONFIG": str(machine / "deployment.yaml")},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    ).stdout
    (line,) = [line for line in said.splitlines() if line.startswith("file descriptors ")]
    state, found = line.removeprefix("file descriptors ").split(maxsplit=1)
    assert state == "note"
    assert found.startswith("4000 open files")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("storage: {postgres: {postgres_url: {env: NOT_SET_ANYWHERE}}}", "NOT_SET_ANYWHERE"),
        ("storag: {}", "storag"),
    ],
)
def test_an_instance_that_does_not_answer_says_why(tmp_path, text, told):
    (tmp_path / "dagster.yaml").write_text(text)
    (finding,) = check_instance(tmp_path)
    assert finding.state == "missing"
    assert told in finding.found + finding.advice


def test_a_hundred_parts_are_noted_and_one_less_is_not(machine):
    with contextlib.chdir(machine), DagsterInstance.from_config(str(machine)) as instance:
        instance.add_dynamic_partitions("part", [f"part{index}" for index in range(99)])
        assert [finding.what for finding in check_instance(machine)] == ["Dagster instance"]
        instance.add_dynamic_partitions("part", ["part99"])
    assert [(finding.what, finding.state) for finding in check_instance(machine)][1:] == [
        ("parts", "note")
    ]


def test_a_mistake_in_the_settings_is_told_by_its_name(machine, capsys):
    (machine / "deployment.yaml").write_text(TINY + "colour: red\n")
    assert main(["doctor", "--config", str(machine / "deployment.yaml")]) == 2
    assert "unknown key 'colour'" in capsys.readouterr().err


def test_the_module_is_imported_without_torch():
    code = "import sys, pipeline.cli, pipeline.doctor.report; print('torch' in sys.modules)"
    variables = {**os.environ, "PYTHONPATH": str(Path(REPOSITORY))}
    assert (
        subprocess.check_output([sys.executable, "-c", code], env=variables, text=True).strip()
        == "False"
    )
