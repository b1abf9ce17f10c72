"""Messages between the processes of one extraction: JSON over Unix sockets.

Why not `multiprocessing.connection.Connection`, which does nearly this? Decoders read files of
strangers, and a hostile file may take a decoder over. So whatever a decoder sends must be harmless
to the coordinator:

- Messages are JSON. `Connection.send` pickles, and unpickling can run any code.
- The socket keeps message borders (`SOCK_SEQPACKET`): a message arrives whole or not at all.
  `Connection` reads a length first and then waits for that many bytes, so a decoder that is killed
  or hangs in the middle of a message would stop the coordinator as well.
"""

from __future__ import annotations

import array
import json
import select
import socket
from typing import Any

MAX_MESSAGE_BYTES = 1 << 17
MAX_FILES = 8  # that come with one message


class Connection:
    """One end of a connection. Messages are JSON arrays whose first item says what they are."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @staticmethod
    def pair() -> tuple[Connection, Connection]:
        """Two connected ends."""
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Connection(left), Connection(right)

    @staticmethod
    def from_descriptor(descriptor: int) -> Connection:
        """The end that this process has inherited under this descriptor."""
        return Connection(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        """The socket's descriptor; with it, selectors accept a connection."""
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
        """Wait for the next message. None once the other side is gone.

        Raises:
            ValueError: files came with it, which only `receive_with_files` accepts.
        """
        message, files = self.receive_with_files()
        if files:
            raise ValueError(f"unexpected files with message {message!r}")
        return message

    def receive_with_files(self) -> tuple[list[Any] | None, list[int]]:
        """Like `receive`, with the descriptors of the files that came with the message."""
        try:
            data, rights, _, _ = self.sock.recvmsg(
                MAX_MESSAGE_BYTES, socket.CMSG_SPACE(MAX_FILES * 4), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return None, []
        files: array.array[int] = array.array("i")
        for _, _, content in rights:
            files.frombytes(content[: len(content) - len(content) % files.itemsize])
        return (json.loads(data), list(files)) if data else (None, [])

    def has_message(self) -> bool:
        """Whether `receive` would return at once: with a message, or because the other side is
        gone.
        """
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close this end; the other side then receives None."""
        self.sock.close()
