"""A running `hourllava ui` that is gone, with everything it started, when its block ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.demo.client import DagsterClient
from pipeline.instance_folder import HOME_VARIABLE, REPOSITORY
from training.supervise import die_with_parent

STOP_TIMEOUT_S = 60


@contextmanager
def dagster(
    config: Path,
    log: Path,
    home: Path = REPOSITORY,
    workspace: Path = REPOSITORY / "workspace.yaml",
) -> Iterator[DagsterClient]:
    """The webserver, the daemon and a code location, for the deployment of `config`.

    Args:
        log: file that takes what they print.
        home: folder with the `dagster.yaml` of the instance; its history lies below.
        workspace: names the code location; this repository's own by default.

    Raises:
        DagsterError: the code location does not load.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pipeline.cli", "ui", "--port", str(port)]
    command += ["--workspace", str(workspace), "--config", str(config)]
    environment = {
        **os.environ,
        HOME_VARIABLE: str(home),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            cwd=home,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_obey,
        )
    client = DagsterClient(f"http://127.0.0.1:{port}")
    try:
        client.wait_until_ready()
        yield client
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _obey() -> None:
    """In the new process: end with the one that started it, and be interruptible, which a shell's
    background is not.
    """
    die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
