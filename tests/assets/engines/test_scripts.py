"""Settings of jobs, and the options and scripts that are made of them."""

from __future__ import annotations

import subprocess

import pytest

from assets.deployment.compute import Compute, Pool
from assets.deployment.launchpad import FeaturesLaunch, StageLaunch
from assets.deployment.settings import Settings
from assets.engines import script
from assets.engines.jobs import job_name
from assets.engines.slurm import Job
from assets.engines.telling import why
from model.configuration import parse

BASE = {"root": "data", "annotations": {"paths": ["rows.jsonl"]}, "sources": {}}


def settings(**gpu) -> Settings:
    return parse(Settings, {**BASE, "compute": {"gpu": gpu}})


def test_options_say_what_the_settings_say(tmp_path):
    pool = Pool(
        engine="slurm",
        partition="h100",
        account="vision",
        time_limit="1-00:00:00",
        gpus_per_node=8,
        extra=["--qos=high"],
        stop_before_s=600,
    )
    assert script.options(pool, tmp_path, "name", "comment", 4) == [
        "--job-name=name",
        "--comment=comment",
        f"--output={tmp_path}/log.txt",
        "--nodes=4",
        "--ntasks-per-node=1",
        "--signal=B:USR1@600",
        "--partition=h100",
        "--account=vision",
        "--time=1-00:00:00",
        "--gpus-per-node=8",
        "--no-requeue",
        "--qos=high",
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"engine": "slurm", "partitoin": "x"}, "did you mean 'partition'"),
        ({"partition": "x"}, "only jobs have these; add engine: slurm"),
        ({"engine": "slurm", "extra": ["--output=/tmp/x"]}, "is decided elsewhere"),
        ({"engine": "slurm", "extra": ["job.sh"]}, "no option of sbatch"),
        ({"engine": "slurm", "nodes": 2, "least_nodes": 3}, "least_nodes is above nodes"),
        ({"engine": "slurm", "time_limit": "a day"}, "time_limit"),
    ],
)
def test_settings_that_cannot_work_are_refused(given, told):
    with pytest.raises(ValueError, match=told):
        settings(**given)


def test_machines_are_counted_in_one_place():
    with pytest.raises(ValueError, match=r"compute\.gpu\.nodes says how many"):
        parse(Settings, {**BASE, "compute": {"gpu": {"engine": "slurm"}}, "training": {"nodes": 2}})


def test_the_launchpad_changes_one_runs_jobs():
    before = settings(engine="slurm", partition="h100", nodes=8)
    after = StageLaunch(job={"partition": "debug", "nodes": 2}).applied(before, 3)
    assert after.compute.gpu == Pool(engine="slurm", partition="debug", nodes=2)
    assert after.compute.cpu == before.compute.cpu
    assert FeaturesLaunch(job={"engine": "local"}).applied(before).compute.gpu == Pool()
    with pytest.raises(ValueError, match="job: unknown key 'partion'"):
        FeaturesLaunch(job={"partion": "debug"}).applied(before)


def test_a_job_is_named_after_its_product_and_deployment(tmp_path):
    name = job_name(Compute(folder=tmp_path / "one"), "features[part0|tiny]")
    assert name.endswith("-features-part0-tiny")
    assert name != job_name(Compute(folder=tmp_path / "two"), "features[part0|tiny]")


def test_a_script_keeps_words_whole_and_leaves_slurms_variables_to_the_node(tmp_path):
    """Run by a shell, with a stand-in for `srun` that runs the task."""
    told = tmp_path / "told"
    command = [
        "sh",
        "-c",
        f'printf "%s|" "$@" > {told}',
        "task",
        "a b",
        "$HOME",
        "--id=$SLURM_JOB_ID",
    ]
    pool = Pool(engine="slurm", setup=["export FROM_SETUP='1 2'"])
    path = script.write_script(pool, tmp_path, command, {"WORD": "it's"})
    (tmp_path / "srun").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_NODEID": "0"}
    ended = subprocess.run(["bash", str(path)], env=variables, timeout=60)
    assert ended.returncode == 0
    assert told.read_text() == "a b|$HOME|--id=7|"
    assert (tmp_path / script.STATUS_NAME).read_text() == "0\n"


ASKED_TO_END = 75
ENDS = [
    # state of Slurm, status of the tasks, limit near, preempted, what people are told
    ("TIMEOUT", ASKED_TO_END, True, False, "reached its time limit"),
    ("FAILED", ASKED_TO_END, True, False, "ended in time before its time limit"),
    ("PREEMPTED", None, False, False, "was preempted: it had to make room for another job"),
    ("FAILED", ASKED_TO_END, False, True, "was preempted: it had to make room for another job"),
    ("NODE_FAIL", None, False, False, "lost a node"),
    ("CANCELLED", ASKED_TO_END, False, False, "was cancelled (scancel), not from here"),
    ("FAILED", ASKED_TO_END, False, False, "was asked to end (SIGTERM), by Slurm or by a person"),
    ("FAILED", 3, False, False, "ended as FAILED, with status 3"),
    ("FORGOTTEN", None, False, False, "is gone, and Slurm does not know how it ended"),
    ("FORGOTTEN", ASKED_TO_END, True, False, "ended in time before its time limit"),
]


@pytest.mark.parametrize(("state", "status", "limit_near", "preempted", "told"), ENDS)
def test_each_end_of_a_job_has_a_sentence_of_its_own(state, status, limit_near, preempted, told):
    said = why(Job("7", state, nodes="n[1-2]"), status, limit_near, preempted)
    assert said.startswith(told)
    assert said.endswith(" on n[1-2]")
