"""Small JSON messages between the processes of one extraction, over Unix sockets that keep message
borders.
"""

from __future__ import annotations

import array
import json
import select
import socket
from typing import Any

LARGEST = 1 << 17


class Channel:
    """One end of a connection. Messages are JSON arrays whose first item says what they are."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @staticmethod
    def pair() -> tuple[Channel, Channel]:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Channel(left), Channel(right)

    @staticmethod
    def inherited(descriptor: int) -> Channel:
        """The end whose descriptor was handed down to this process."""
        return Channel(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, *message: Any, files: tuple[int, ...] = ()) -> None:
        """Send one message, and copies of open files with it.

        Raises:
            BrokenPipeError, ConnectionResetError: the other side is gone.
        """
        data = json.dumps(message, separators=(",", ":")).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
        self.sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)

    def receive(self) -> list[Any] | None:
        """The next message, waiting for it; None once the other side is gone."""
        message, files = self.receive_files()
        if files:
            raise ValueError(f"unexpected files with message {message!r}")
        return message

    def receive_files(self) -> tuple[list[Any] | None, list[int]]:
        """Like :meth:`receive`, with the descriptors of files that came along."""
        try:
            data, rights, _, _ = self.sock.recvmsg(
                LARGEST, socket.CMSG_SPACE(8 * 4), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return None, []
        files: array.array[int] = array.array("i")
        for _, _, content in rights:
            files.frombytes(content[: len(content) - len(content) % files.itemsize])
        return (json.loads(data), list(files)) if data else (None, [])

    def waiting(self) -> bool:
        """Whether a message (or the end) can be received at once."""
        ready = select.poll()
        ready.register(self.sock, select.POLLIN)
        return bool(ready.poll(0))

    def close(self) -> None:
        self.sock.close()
