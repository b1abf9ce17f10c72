"""The fork server: the process that decoding processes are forked from.

It imports the decoding libraries once, holds no secrets and never opens a video itself. So a
decoder that a broken file has hung or crashed is replaced within milliseconds, and no decoder can
see the deployment's credentials or reach the network.

Why not the fork server of `multiprocessing`?

- It inherits the whole environment, with the credentials in it, and cannot be given another one.
- There is one for each Python process, shared with whatever else uses it there, such as Dagster's
  executor. It cannot leave the network for the sake of our decoders.
- The coordinator would kill a decoder by its process id, which may belong to another process by
  then. Here only the parent kills, and it knows which of its children still live.
- Its children hold a connection to the resource tracker, through which a decoder that a hostile
  file took over could remove shared memory of the coordinator.

Run as `python -m assets.features.workers.fork_server <descriptor>`, where the descriptor is a
socket that the coordinator holds the other end of:

    coordinator -> fork server   ["fork", id, opener, side, slots, limits]
                                 with files: the decoder's connection, its stderr, the frame buffer
                                 ["kill", id]
    fork server -> coordinator   ["ready", sentence about the isolation]
                                 ["exit", id, status as of os.waitpid]
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import resource
import selectors
import signal
import sys
import traceback
from functools import partial
from typing import Any, NoReturn

from assets.features.workers.connection import Connection
from assets.features.workers.frame_buffer import FrameBuffer
from assets.fetching.isolation import gain_no_privileges, leave_network, standard_library

PR_SET_PDEATHSIG = 1  # from Linux's prctl.h

MAX_STDERR_BYTES = 1 << 20


def main() -> None:
    """Serve the coordinator at the other end of the socket in `sys.argv[1]`."""
    connection = Connection.from_descriptor(int(sys.argv[1]))
    isolation = leave_network()
    # Imported here for all children at once, torch before any decoder library. Not earlier: they
    # start threads, and a process with threads may not enter a user namespace.
    import torch  # noqa: F401

    import assets.features.workers.decode  # noqa: F401

    connection.send("ready", isolation)
    ForkServerLoop(connection).run()


class ForkServerLoop:
    """Forks, kills and awaits decoders as the coordinator says."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._pids: dict[int, int] = {}  # by the decoder's id
        self._ids: dict[int, int] = {}  # by the pidfd of its process

    def run(self) -> None:
        """Serve until the coordinator is gone; then kill all children."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._connection:
                    self._report_exit(key.fd)
                    continue
                message, files = self._connection.receive_with_files()
                match message:
                    case None:
                        for pid in self._pids.values():
                            os.kill(pid, signal.SIGKILL)
                        return
                    case ["fork", decoder, *arguments]:
                        self._fork(decoder, files, arguments)
                    case ["kill", decoder] if decoder in self._pids:
                        os.kill(self._pids[decoder], signal.SIGKILL)

    def _fork(self, decoder: int, files: list[int], arguments: list[Any]) -> None:
        pid = os.fork()
        if pid == 0:
            run_decoder(files, os.getppid(), *arguments)
        for descriptor in files:
            os.close(descriptor)
        self._pids[decoder] = pid
        pidfd = os.pidfd_open(pid)  # becomes readable when the process ends
        self._ids[pidfd] = decoder
        self._selector.register(pidfd, selectors.EVENT_READ)

    def _report_exit(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        decoder = self._ids.pop(pidfd)
        _, status = os.waitpid(self._pids.pop(decoder), 0)
        self._connection.send("exit", decoder, status)


def run_decoder(
    files: list[int], parent: int, opener: str, side: int, slots: int, limits: dict[str, Any]
) -> NoReturn:
    """One decoding process, from fork to exit. Never returns into the fork server's loop.

    Args:
        files: descriptors of its connection, of its stderr and of the frame buffer.
        parent: process id of the fork server.
        opener: `module:function` that opens videos; see `assets.features.workers.backends`. With
            `:number` behind it, the function is given this `device`.
        side, slots: of the frame buffer.
        limits: `memory_bytes`, 0 for no limit.
    """
    status = 1
    try:
        connection_file, stderr_file, buffer_file = files
        os.setpgid(0, 0)
        standard_library().prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # dies with its parent
        gain_no_privileges()
        if os.getppid() != parent:  # the parent died before the line above took effect
            os._exit(1)
        os.dup2(stderr_file, 2)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        _close_files(keep={0, 1, 2, connection_file, buffer_file})
        faulthandler.enable()
        if limits["memory_bytes"]:
            resource.setrlimit(resource.RLIMIT_DATA, (limits["memory_bytes"],) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_STDERR_BYTES, MAX_STDERR_BYTES))
        from assets.features.workers.decode import decode_videos

        module, function, *device = opener.split(":")
        open_video = getattr(importlib.import_module(module), function)
        if device:
            open_video = partial(open_video, device=int(device[0]))
        buffer = FrameBuffer(buffer_file, side, slots)
        decode_videos(Connection.from_descriptor(connection_file), buffer, open_video, limits)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _close_files(keep: set[int]) -> None:
    """Close every descriptor but these: those of the fork server and of other decoders."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:  # the descriptor of the listing itself
                continue


if __name__ == "__main__":
    main()
