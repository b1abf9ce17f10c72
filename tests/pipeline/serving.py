"""`hourllava serve` as a process of its own, for the tests of its page and for its picture."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

WAIT_S = 0.1


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """The address of the command with these options while the block runs."""
    port = _free_port()
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--port", str(port), *options]
    with subprocess.Popen(command) as server:
        address = f"http://127.0.0.1:{port}"
        try:
            while not _answers(f"{address}/v1/models"):
                if server.poll() is not None:
                    raise RuntimeError(f"the server ended with {server.returncode}")
                time.sleep(WAIT_S)
            yield address
        finally:
            server.terminate()


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=60).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
