"""The process that decoding children are forked from.

It imports the decoding stack once, holds nothing secret and never opens a video itself, so that a
child that a broken file has hung or crashed is replaced within milliseconds and none of them can
see the deployment's credentials or reach the network. Run as ``python -m assets.features.nursery
<descriptor>``; the coordinator talks to it through a socket:

    coordinator -> nursery   ["fork", id, opener, side, slots, limits] with files (its channel, its stderr, the ring)
                             ["kill", id]
    nursery -> coordinator   ["ready", note about isolation]
                             ["exit", id, status as of os.waitpid]
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import os
import resource
import selectors
import signal
import sys
from typing import Any, NoReturn

from assets.features.channel import Channel
from assets.features.ring import Ring

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
STDERR_BYTES = 1 << 20


def main() -> None:
    channel = Channel.inherited(int(sys.argv[1]))
    note = _leave_network()
    import torch  # noqa: F401  before any decoder library, and once for all children

    import assets.features.decode

    selector = selectors.DefaultSelector()
    selector.register(channel, selectors.EVENT_READ)
    children: dict[int, int] = {}  # id -> process id
    watched: dict[int, int] = {}  # pidfd -> id
    channel.send("ready", note)
    while True:
        for key, _ in selector.select():
            if key.fileobj is channel:
                message, files = channel.receive_files()
                if (
                    message is None
                ):  # the coordinator is gone, and so is the reason for any child to live
                    for pid in children.values():
                        os.kill(pid, signal.SIGKILL)
                    return
                if message[0] == "fork":
                    _, name, opener, side, slots, limits = message
                    pid = os.fork()
                    if pid == 0:
                        _child(
                            assets.features.decode.serve,
                            files,
                            opener,
                            side,
                            slots,
                            limits,
                            os.getppid(),
                        )
                    for descriptor in files:
                        os.close(descriptor)
                    children[name] = pid
                    pidfd = os.pidfd_open(pid)
                    watched[pidfd] = name
                    selector.register(pidfd, selectors.EVENT_READ)
                elif message[0] == "kill" and message[1] in children:
                    os.kill(children[message[1]], signal.SIGKILL)
            else:
                selector.unregister(key.fd)
                os.close(key.fd)
                name = watched.pop(key.fd)
                _, status = os.waitpid(children.pop(name), 0)
                channel.send("exit", name, status)


def _child(
    serve: Any,
    files: list[int],
    opener: str,
    side: int,
    slots: int,
    limits: dict[str, Any],
    parent: int,
) -> NoReturn:
    """One decoding process, from fork to exit; never returns into the nursery's loop."""
    status = 1
    try:
        channel_file, stderr_file, ring_file = files
        os.setpgid(0, 0)
        _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above took effect
            os._exit(1)
        os.dup2(stderr_file, 2)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        keep = {0, 1, 2, channel_file, ring_file}
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in keep:
                try:
                    os.close(int(name))
                except OSError:  # the descriptor of the listing itself
                    continue
        faulthandler.enable()
        if limits["memory_bytes"]:
            resource.setrlimit(resource.RLIMIT_DATA, (limits["memory_bytes"],) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (STDERR_BYTES, STDERR_BYTES))
        module, _, function = opener.partition(":")
        opened = getattr(importlib.import_module(module), function)
        serve(Channel.inherited(channel_file), Ring(ring_file, side, slots), opened, limits)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _leave_network() -> str:
    """Move into a network namespace without interfaces, where the system lets us. Returns what came
    of it.
    """
    libc = _libc()
    for flags in (
        CLONE_NEWNET,
        CLONE_NEWNET | CLONE_NEWUSER,
    ):  # the first needs privileges, the second none
        if libc.unshare(flags) == 0:
            return "decoding processes have no network"
    return (
        f"decoding processes keep the network: unshare failed ({os.strerror(ctypes.get_errno())})"
    )


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


if __name__ == "__main__":
    main()
