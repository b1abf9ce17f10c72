"""What `hourllava doctor` says on the login node of a real Slurm."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from assets.deployment.settings import Settings
from model.configuration import parse
from pipeline.doctor.cluster import _check_clock, _seconds, check_jobs, check_scratch
from tests.servers.slurm import SlurmCluster, missing_programs, slurm_cluster


@pytest.fixture(scope="module")
def running_slurm(tmp_path_factory) -> Iterator[SlurmCluster]:
    if missing := missing_programs():
        pytest.skip(f"no Slurm here ({', '.join(missing)}); `make slurm` installs it")
    with slurm_cluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture
def login_node(running_slurm, monkeypatch):
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, running_slurm.environment[name])


def found(folder, **gpu) -> dict[str, tuple[str, str]]:
    settings = parse(
        Settings,
        {
            "root": str(folder / "data"),
            "annotations": {"paths": ["rows.jsonl"]},
            "sources": {},
            "compute": {"folder": str(folder / "jobs"), "gpu": {"engine": "slurm", **gpu}},
        },
    )
    return {item.what: (item.state, item.found) for item in check_jobs(settings)}


@pytest.mark.slow
def test_a_login_node_that_has_everything(login_node, tmp_path):
    rows = found(tmp_path, partition="p", nodes=2, time_limit="10")
    assert rows["Slurm"][0] == rows["clocks"][0] == rows["jobs of gpu"][0] == "ok"
    assert "n[1-2]" in rows["jobs of gpu"][1]
    # Loopback's nodes share every disk of this machine; only a file system's name can be looked at.
    assert rows["folder of jobs"][0] in ("ok", "note")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        ({"partition": "h100"}, "invalid partition"),
        ({"partition": "p", "nodes": 3}, "node configuration is not available"),
        ({"partition": "p", "gpus_per_node": 8}, "invalid generic resource"),
    ],
)
def test_what_slurm_would_refuse_is_said_before_a_run(login_node, tmp_path, gpu, said):
    state, text = found(tmp_path, **gpu)["jobs of gpu"]
    assert state == "missing"
    assert said.lower() in text.lower()


@pytest.mark.slow
def test_a_job_that_would_wait_for_ever_is_told(login_node, tmp_path):
    rows = found(tmp_path, partition="p", time_limit="1-12")
    assert rows["time limit of gpu"] == ("missing", "1-12, and p allows 1:00:00")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("1:30", 90), ("4:00:00", 14400), ("1-12", 129600), ("2-01:02:03", 176523)],
)
def test_times_are_read_as_slurm_writes_them(text, seconds):
    assert _seconds(text) == seconds


@pytest.mark.parametrize(("apart", "state"), [(10, "ok"), (60, "missing"), (-3600, "missing")])
def test_a_controller_with_another_time_is_told(apart, state):
    there = datetime.now() + timedelta(seconds=apart)
    (row,) = _check_clock(f"Configuration data as of {there:%Y-%m-%dT%H:%M:%S}\nAuthType = x")
    assert (row.what, row.state) == ("clocks", state)


@pytest.mark.slow
def test_a_folder_of_jobs_that_others_may_write_is_missing(login_node, tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs").chmod(0o777)
    assert found(tmp_path, partition="p")["folder of jobs"][0] == "missing"


def test_a_machine_without_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    rows = found(tmp_path, partition="p")
    assert rows == {
        "Slurm": ("missing", "no sbatch, squeue, scancel, sinfo, scontrol on this machine")
    }


def test_scratch_of_a_remote_root_is_looked_at(tmp_path):
    def scratch(folder):
        settings = parse(
            Settings,
            {
                "root": "memory://bucket",
                "annotations": {"paths": ["rows.jsonl"]},
                "sources": {},
                "training": {"scratch": str(folder)},
            },
        )
        return [(item.state, item.found) for item in check_scratch(settings)]

    ((state, text),) = scratch(tmp_path / "scratch")
    assert state == "ok"
    assert str(tmp_path / "scratch") in text
    (tmp_path / "file").write_text("")
    ((state, text),) = scratch(tmp_path / "file")
    assert state == "missing"
