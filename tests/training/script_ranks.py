"""Two ranks that run a few lines of their own: real processes that meet as those of torchrun do."""

from __future__ import annotations

import os
import subprocess
import sys

import torch.distributed as dist

from tests.training.fake_training import ROOT


def outputs_of_two_ranks(script: str, *arguments: str) -> list[list[str]]:
    """The lines that each of the two prints."""
    # The ranks meet at a port that is held before they start.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {
        "MASTER_ADDR": store.host,
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": "2",
        "PYTHONPATH": str(ROOT),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            cwd=ROOT,
            env={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    return [rank.communicate(timeout=200)[0].splitlines() for rank in ranks]
