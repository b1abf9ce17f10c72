"""The process that the loader's workers are forked from.

It imports torch and Streaming once, so that each worker does not. That takes seconds; a training
process starts it before its own imports, and both go on side by side. So nothing is imported here.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext


def fork_server() -> ForkServerContext:
    """Workers are forked from a clean server: a training process has threads, and forking those can
    deadlock.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.data.worker_pool"])
    return context


def start_fork_server() -> None:
    """Start the server without waiting for what it imports."""
    fork_server()
    forkserver.ensure_running()
