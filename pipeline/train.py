"""`hourllava train`: one stage's run, outside of Dagster."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pipeline.ask import at_least_one

DESCRIPTION = """\
Train what a run's JSON file says (training.run_config.RunConfig), under torchrun.

Each stage that Dagster trained has such a file, run.json, beside its metrics.jsonl and export/. The
result goes to the folder that it names as `out`. Stopped or killed, the same command goes on from
the newest checkpoint there. What is trained here is not on record in Dagster.

exit codes: 0 finished; 2 the configuration cannot work; 74 a disk or store is at fault; 75 stopped,
a checkpoint was written; 1 anything else."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `hourllava train` takes."""
    parser.add_argument("run", type=Path, metavar="RUN.json", help="the run")
    parser.add_argument(
        "--processes",
        type=at_least_one,
        default=1,
        help="ranks on this machine, one for each GPU (default: 1)",
    )
    parser.add_argument(
        "--nodes",
        type=at_least_one,
        default=1,
        help="machines that train together; start the same command on each (default: 1)",
    )
    parser.add_argument(
        "--rendezvous", metavar="HOST:PORT", help="with --nodes: of one that all of them can reach"
    )
    parser.add_argument(
        "--cpu-threads",
        type=at_least_one,
        default=1,
        help="threads of each rank where there is no GPU (default: 1)",
    )


def train(chosen: argparse.Namespace) -> int:
    """Become the training; returns only where it cannot start."""
    from assets.checkpoints.launcher import Torchrun, thread_variables
    from assets.deployment.settings import Training
    from training.run_config import load_run

    load_run(chosen.run)  # what is wrong with it is told before ranks start
    settings = Training(
        processes=chosen.processes,
        nodes=chosen.nodes,
        rendezvous=chosen.rendezvous,
        cpu_threads=chosen.cpu_threads,
    )
    command = Torchrun(settings).command(chosen.run.resolve())
    variables = {
        **os.environ,
        **thread_variables(chosen.cpu_threads),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    os.execve(command[0], command, variables)
