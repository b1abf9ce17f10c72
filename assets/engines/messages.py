"""Messages of a job to the step that waits for it: Dagster Pipes over a file on the shared folder.

Dagster's own reader of files empties the file first. Here the job may run for hours already, when a
restarted Dagster finds it again; then its earlier messages are told once more, in the new run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_pipes import PipesDefaultMessageWriter


class JobMessages(dg.PipesMessageReader):
    """Reads when it is told to (`forward`), since whoever waits for the job looks at it anyway."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read = 0  # bytes
        self._handler: dg.PipesMessageHandler | None = None

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[dict[str, Any]]:
        self._handler = handler
        self._file.touch()
        try:
            yield {PipesDefaultMessageWriter.FILE_PATH_KEY: str(self._file)}
        finally:
            self.forward()

    def forward(self) -> None:
        """Hand on what was written since the last call, whole lines alone."""
        assert self._handler is not None
        with open(self._file, "rb") as file:
            file.seek(self._read)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b"\n"):
                break
            self._read += len(line)
            self._handler.handle_message(json.loads(line))

    def no_messages_debug_text(self) -> str:
        return f"Attempted to read messages of the job from {self._file}."
