"""How the processes that open strangers' files are locked up: what they may know, and that they
have no network.

Nothing but the standard library is imported here: a process with threads, which numpy and decoders
start, may not enter a user namespace.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

# From Linux's sched.h and prctl.h; Python 3.11 names none of them.
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_NO_NEW_PRIVS = 38

# What they may know of the environment. Everything else stays out: it may hold credentials.
ENVIRONMENT = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
)


def bare_environment() -> dict[str, str]:
    """What such a process may know of this one's environment, and one thread for each library."""
    known = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    return known | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def leave_network() -> str:
    """Move this process into a network namespace without interfaces, where the system allows it.

    Returns:
        A sentence that says whether it did.
    """
    libc = standard_library()
    # The first needs privileges; the second needs none, but some systems forbid it.
    for flags in (CLONE_NEWNET, CLONE_NEWNET | CLONE_NEWUSER):
        if libc.unshare(flags) == 0:
            return "decoding processes have no network"
    error = os.strerror(ctypes.get_errno())
    return f"decoding processes keep the network: unshare failed ({error})"


def gain_no_privileges() -> None:
    """Neither this process nor one that it starts can gain privileges from now on."""
    standard_library().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def standard_library() -> Any:
    """The C library, whose calls Python has no names for."""
    return ctypes.CDLL(None, use_errno=True)
