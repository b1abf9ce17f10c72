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
from assets.records.withdrawals import Withdrawal, Withdrawals
from model.weights.convert import publish
from model.weights.tiny import build_tiny
from pipeline.cli import main
from pipeline.demo.drawing import invent_film, write_film
from pipeline.demo.instance import REPOSITORY
from pipeline.demo.servers import HubServer
from pipeline.doctor import fitting
from pipeline.doctor.cluster import check_nodes
from pipeline.doctor.fitting import check_estimate, check_fitting
from pipeline.doctor.gpus import check_gpus
from pipeline.doctor.services import check_instance
from pipeline.estimate.installed import Gpu
from pipeline.estimate.machine import plan_of, run_of
from tests.servers.world import acquire, catalogued

TINY = """
root: root
parts: 1
variants: [tiny]
annotations: {paths: [rows.jsonl]}
sources: {clips: {kind: drop, folder: drop}}
download: {min_free_bytes: 1}
hub_endpoint: http://127.0.0.1:9
"""
ROW = '{"video": "one.mp4", "question": "What colour?", "answer": "red"}\n'


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A deployment of the tiny variant in its own folder, with an instance that was never used."""
    (tmp_path / "drop").mkdir()
    (tmp_path / "drop" / "one.mp4").write_bytes(b"a video")
    (tmp_path / "rows.jsonl").write_text(ROW)
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


@pytest.mark.slow
def test_a_start_that_is_not_there_is_missing_and_one_that_is_there_is_not(machine, capsys):
    start = "variants: {mine: {preset: tiny, start: {folder: given, stage: 3}}}"
    code, rows, _ = doctor(machine, capsys, ("variants: [tiny]", start))
    assert code == 1
    given = machine / "given"
    assert rows["start of mine"] == ("missing", f"no config.json in {given}")
    build_tiny(given)
    _, rows, _ = doctor(machine, capsys, ("variants: [tiny]", start))
    assert rows["start of mine"] == ("ok", f"{given}: own export of tiny, whole, stage 3")
    large = ("variants: [tiny]", start.replace("preset: tiny", "preset: 3b"))
    _, rows, _ = doctor(machine, capsys, large)
    assert rows["start of mine"] == ("missing", f"{given}: own export of tiny")
    (weights,) = given.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    _, rows, _ = doctor(machine, capsys, ("variants: [tiny]", start))
    assert rows["start of mine"][0] == "missing"
    assert str(given) in rows["start of mine"][1]


def test_a_start_on_the_hub_is_looked_at_there(machine, capsys, tmp_path):
    build_tiny(tmp_path / "own")
    publish(tmp_path / "own", tmp_path / "released")
    start = "variants: {mine: {preset: tiny, start: {repo: someone/HL-tuning, stage: 3}}}"
    with HubServer() as hub:
        commit = hub.publish("someone/HL-tuning", tmp_path / "released", kind="models")
        there = ("variants: [tiny]", start), ("http://127.0.0.1:9", hub.url)
        _, rows, _ = doctor(machine, capsys, *there)
        state, found = rows["start of mine"]
        assert state == "ok"
        assert found.startswith(f"someone/HL-tuning@{commit[:12]}: released Hour-LLaVA of tiny")
        earlier = start.replace("stage: 3", "stage: 2")
        _, rows, _ = doctor(machine, capsys, ("variants: [tiny]", earlier), there[1])
        assert rows["start of mine"][0] == "note"
        assert "its name says stage 3" in rows["start of mine"][1]
        other = start.replace("HL-tuning", "HL")
        code, rows, _ = doctor(machine, capsys, ("variants: [tiny]", other), there[1])
        assert (code, rows["start of mine"][0]) == (1, "missing")
        assert "Of someone it has someone/HL-tuning" in rows["start of mine"][1]
    _, rows, todo = doctor(machine, capsys, ("variants: [tiny]", start))
    assert rows["start of mine"][0] == "note"
    assert "http://127.0.0.1:9 does not answer; in its cache here: no model" in todo + str(rows)


ASKED = (
    "questions: {sources: [clips], describer: {kind: endpoint, url: 'http://127.0.0.1:9/v1', "
    "model: painter}}"
)
BENCHMARK = '{"id": "1", "media": "text", "question": "2 + 2?", "answer": "4"}\n'
ODD_COLUMNS = '{"clip": "one.mp4", "frage": "Welche Farbe?", "answer": "rot"}\n'


@pytest.mark.parametrize(
    ("content", "state", "told"),
    [
        (None, "missing", "rows.jsonl: no such file (annotations.paths in the settings)"),
        ("", "missing", "rows.jsonl: holds no rows"),
        (b"\x1f\x8b\x08packed", "missing", "rows.jsonl: is gzip by its content"),
        (ODD_COLUMNS, "missing", "rows.jsonl: columns are missing. Found: clip, frage, answer"),
        ("one.mp4\n", "missing", "none of its 1 rows can be used: 1 not_json"),
        (ROW.replace("one.mp4", ""), "missing", "can be used: 1 no_video"),
        (ROW + ROW.replace("red", ""), "note", "of its 2 rows 1 are set aside: 1 no_answer"),
        (ROW, "ok", "rows.jsonl: its 1 rows can be read"),
        (ROW.replace("red", "") * 1000 + ROW, "note", "none of its first 1,000 rows can be used"),
        (ROW * 1001, "ok", "rows.jsonl: its first 1,000 rows can be read"),
    ],
)
def test_rows_that_cannot_be_read_are_missing(machine, capsys, content, state, told):
    rows_file = machine / "rows.jsonl"
    rows_file.unlink()
    if content is not None:
        rows_file.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, rows, todo = doctor(machine, capsys)
    assert code == (1 if state == "missing" else 0)
    assert rows["rows rows.jsonl"][0] == state
    assert told in rows["rows rows.jsonl"][1]
    assert ("rows rows.jsonl: " in todo) == (state != "ok")


def test_every_file_of_a_folder_of_rows_is_looked_at_and_an_address_is_not(machine, capsys):
    paths = ("paths: [rows.jsonl]", "paths: [asked, 'http://127.0.0.1:9/far.csv']")
    (machine / "asked").mkdir()
    code, rows, _ = doctor(machine, capsys, paths)
    assert (code, rows["rows asked"][0]) == (1, "missing")
    (machine / "asked" / "good.csv").write_text("video,question,answer\none.mp4,What?,this\n")
    (machine / "asked" / "bad.csv").write_text("film,question,answer\none.mp4,What?,this\n")
    code, rows, _ = doctor(machine, capsys, paths)
    states = {name: rows[f"rows {name}"][0] for name in ("good.csv", "bad.csv", "far.csv")}
    assert states == {"good.csv": "ok", "bad.csv": "missing", "far.csv": "ok"}


def test_a_drop_folder_without_the_videos_that_rows_ask_for_is_missing(machine, capsys):
    video = machine / "drop" / "one.mp4"
    assert doctor(machine, capsys)[1]["source clips"][0] == "ok"
    (machine / "rows.jsonl").write_text(ROW + ROW.replace("one", "two"))
    code, rows, todo = doctor(machine, capsys)
    assert (code, rows["source clips"][0]) == (0, "note")
    assert rows["source clips"][1].endswith("lacks 1 of the 2 videos that rows ask for: two")
    video.rename(video.with_name("another.mp4"))
    code, rows, todo = doctor(machine, capsys)
    assert (code, rows["source clips"][0]) == (1, "missing")
    assert "has none of the 2 videos that rows ask for: one, two" in rows["source clips"][1]
    shutil.rmtree(machine / "drop")
    code, rows, todo = doctor(machine, capsys)
    assert (code, rows["source clips"][0]) == (1, "missing")
    assert "missing: source clips: make the folder and put the files there, or correct" in todo
    no_share = ("folder: drop", "folder: drop, coverage_threshold: 0")
    assert doctor(machine, capsys, no_share)[1]["source clips"][0] == "note"
    assert "videos of clips" not in rows
    (machine / "rows.jsonl").unlink()  # the rows are not known, and whose videos they name is
    assert doctor(machine, capsys)[1]["videos of clips"][0] == "missing"
    assert "videos of clips" not in doctor(machine, capsys, no_share)[1]


def test_a_video_that_was_adopted_or_withdrawn_needs_no_file_any_more(machine, capsys):
    write_film(machine / "drop" / "one.mp4", invent_film("one", 4, 2, 2))
    (machine / "rows.jsonl").write_text(ROW + ROW.replace("one", "two"))
    settings = load_settings(machine / "deployment.yaml")
    storage = catalogued(settings)
    acquire(storage, settings, "clips")
    Withdrawals(videos={"clips/two": Withdrawal.now("asked")}).write(storage)
    shutil.rmtree(machine / "drop")
    code, rows, _ = doctor(machine, capsys)
    assert (code, rows["source clips"][0]) == (0, "note")
    assert "videos of clips" not in rows


def test_the_landing_folder_is_looked_at(machine, capsys):
    both = ("root: root", "root: root\nlanding: landed")
    assert doctor(machine, capsys, both)[1]["landing"][0] == "note"
    alone = ("annotations: {paths: [rows.jsonl]}", "landing: landed")
    code, rows, _ = doctor(machine, capsys, alone)
    assert (code, rows["landing"][0]) == (1, "missing")
    (machine / "landed" / "new").mkdir(parents=True)
    assert doctor(machine, capsys, both)[1]["landing"][0] == "ok"
    (machine / "landed" / "new" / "q.jsonl").write_text(ODD_COLUMNS)
    code, rows, _ = doctor(machine, capsys, alone)
    assert (code, rows["landing"][0], rows["rows landing/new/q.jsonl"][0]) == (1, "ok", "missing")
    (machine / "landed" / "new" / "q.jsonl").write_text(ROW)
    code, rows, _ = doctor(machine, capsys, alone)
    assert (code, rows["rows landing/new/q.jsonl"][0]) == (0, "ok")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "bench.jsonl: no such file"),
        ("", "bench.jsonl: no questions"),
        (ROW, "bench.jsonl, line 1: unknown keys video"),
        (b"\xff\xfe", "bench.jsonl, line 1: byte 1 of it is not UTF-8"),
        (BENCHMARK * 2, "bench.jsonl, line 2: the id '1' occurs twice, first in line 1"),
        (BENCHMARK, None),
    ],
)
def test_the_questions_of_a_benchmark_are_read(machine, capsys, content, told):
    if content is not None:
        text = content if isinstance(content, bytes) else content.encode()
        (machine / "bench.jsonl").write_bytes(text)
    named = ("parts: 1", "parts: 1\nevaluation: {questions: bench.jsonl}")
    code, rows, todo = doctor(machine, capsys, named)
    state, found = rows["evaluation questions"]
    assert (code, state) == ((0, "ok") if told is None else (1, "missing"))
    assert (told or "bench.jsonl: 1 questions") in found
    assert ("missing: evaluation questions: " in todo) == (told is not None)


def test_a_folder_whose_videos_a_model_is_to_be_asked_about_needs_some(machine, capsys):
    asked = ("annotations: {paths: [rows.jsonl]}", ASKED)
    assert "videos of clips" not in doctor(machine, capsys, asked)[1]
    (machine / "drop" / "one.mp4").unlink()
    assert doctor(machine, capsys, asked)[1]["videos of clips"][0] == "missing"


@pytest.mark.slow
def test_large_variants_need_a_gpu(machine, capsys):
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has one")
    code, rows, todo = doctor(machine, capsys, ("[tiny]", "[tiny, 3b]"))
    assert (code, rows["GPU"][0]) == (1, "missing")
    assert "missing: GPU: train 3b on a machine with NVIDIA GPUs" in todo
    assert "GiB" in rows["3b, stage 3"][1]


def gpu_findings(tmp_path, variant, gpus, processes=1, more=""):
    text = TINY.replace("[tiny]", f"[{variant}]") + f"training: {{processes: {processes}}}\n{more}"
    (tmp_path / "deployment.yaml").write_text(text)
    settings = load_settings(tmp_path / "deployment.yaml")
    checks = (check_gpus, check_fitting, check_estimate)
    return {finding.what: finding for check in checks for finding in check(settings, gpus)}


@pytest.mark.slow
def test_a_stage_that_does_not_fit_is_told_with_what_would(tmp_path):
    alone = gpu_findings(tmp_path, "7b", [Gpu("small", 24 * 2**30, "999")])
    assert alone["7b, stage 2"].state == "missing"
    assert "devices of this size" in alone["7b, stage 2"].advice
    large = gpu_findings(tmp_path, "7b", [Gpu("large", 140 * 2**30, "999")] * 8, processes=8)
    assert {large[f"7b, stage {stage}"].state for stage in (1, 2, 3)} == {"ok"}


@pytest.mark.parametrize(
    ("pool", "states"),
    [
        ("nodes: 8, least_nodes: 4", {1: "ok", 2: "ok", 3: "ok"}),
        ("nodes: 32, least_nodes: 4", {1: "missing", 2: "missing", 3: "ok"}),
        ("nodes: 8, least_nodes: 5", {1: "missing", 2: "missing", 3: "missing"}),
    ],
)
def test_nodes_that_a_stage_cannot_use_are_told_with_those_that_fit(tmp_path, pool, states):
    compute = f"compute: {{gpu: {{engine: slurm, gpus_per_node: 8, {pool}}}}}"
    (tmp_path / "deployment.yaml").write_text(TINY.replace("[tiny]", "[7b]") + compute)
    rows = list(check_nodes(load_settings(tmp_path / "deployment.yaml")))
    assert [row.what for row in rows] == [f"nodes of 7b, stage {stage}" for stage in states]
    assert [row.state for row in rows] == list(states.values())
    fit = {1: "1, 2, 4, 8, 16.", 2: "1, 2, 4, 8, 16.", 3: "1, 2, 4, 8, 16, 32."}
    advice = [row.advice.partition(" Set")[0] for row in rows if row.state == "missing"]
    assert advice == [
        f"numbers of nodes that fit: {fit[stage]}"
        for stage, state in states.items()
        if state == "missing"
    ]


@pytest.mark.slow
def test_the_plans_words_are_the_doctors_and_the_hosts_memory_counts(tmp_path, monkeypatch):
    gpus = [Gpu("NVIDIA GeForce RTX 4090", 24 * 2**30, "999")]
    lora = "training: {overrides: {stage3: {lora: {rank: 64}}}}"
    text = TINY.replace("[tiny]", "[3b]") + lora
    (tmp_path / "deployment.yaml").write_text(text)
    settings = load_settings(tmp_path / "deployment.yaml")

    def stage3(gib):
        monkeypatch.setattr(fitting, "free_memory_of_host", lambda: gib * 2**30)
        return {finding.what: finding for finding in check_fitting(settings, gpus)}["3b, stage 3"]

    enough = stage3(64)
    run = run_of(settings, "3b", 3)
    assert enough.state == "ok"
    assert enough.found.endswith(str(plan_of(run, 1, 24 * 2**30, 64 * 2**30)))
    assert "costs about" in enough.found
    less = stage3(1)
    assert less.found != enough.found
    assert "of the host;" not in less.found


@pytest.mark.slow
def test_the_sizes_of_cards_that_a_stage_fits_are_told(tmp_path):
    what = "7b, stage 3, fits"
    alone = gpu_findings(tmp_path, "7b", [])[what].found
    assert alone.startswith("1 x 24 GiB: no; ")
    assert alone.endswith(" of the host")
    two = gpu_findings(tmp_path, "7b", [], processes=2)[what].found
    assert two.startswith("2 x 24 GiB: ")
    assert two.endswith("slower")


def test_a_card_that_is_not_known_is_asked_for_and_one_in_the_settings_is_taken(tmp_path):
    gpus = [Gpu("Tesla T4", 16 * 2**30, "999")]
    own = "lectures: {preset: 3b, start: {folder: given, stage: 3}}"
    more = "estimate: {card: RTX 4090}\n"

    def told(text):
        (tmp_path / "deployment.yaml").write_text(text)
        (found,) = check_estimate(load_settings(tmp_path / "deployment.yaml"), gpus)
        return found.found

    recipe = TINY.replace("[tiny]", "[3b]")
    assert "docs/estimate.md has the published recipe" in told(recipe + more)
    lectures = TINY.replace("[tiny]", f"{{{own}}}") + "training: {long_videos_only: true}\n"
    assert "no rate is known of Tesla T4" in told(lectures)
    assert "give --hours, --videos and --questions" in told(lectures + more)
    write_film(tmp_path / "drop" / "one.mp4", invent_film("one", 4, 2, 2))
    (tmp_path / "rows.jsonl").write_text(ROW)
    assert "1 videos of 0.0 h and 1 questions on 1 x RTX 4090, 24 GiB" in told(lectures + more)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_on_a_login_node_the_ranks_are_those_of_the_clusters_nodes(tmp_path):
    pool = "compute: {folder: jobs, gpu: {engine: slurm, nodes: 4, gpus_per_node: 8}}"
    (tmp_path / "deployment.yaml").write_text(TINY.replace("[tiny]", "[7b]") + pool)
    settings = load_settings(tmp_path / "deployment.yaml")
    found = {finding.what: finding.found for finding in check_fitting(settings, [])}
    assert found["7b, stage 3, fits"].startswith("32 x 24 GiB: ")
    assert "on each of 32 device(s)" in found["7b, stage 3"]
