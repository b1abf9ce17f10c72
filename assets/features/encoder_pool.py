"""Supervises the encoding processes: one for each device."""

from __future__ import annotations

import selectors
from pathlib import Path
from typing import Any

from assets.features.options import ExtractionOptions
from assets.features.workers.frame_buffer import FrameBuffer
from assets.features.workers.processes import EncoderProcess


class EncoderPool:
    """Encoding processes, which load the same encoder and read the same frame buffer.

    Args:
        folder: of the vision encoder.
        options: of the extraction.

    Attributes:
        encoders: all of them. When one dies, the extraction fails.
    """

    def __init__(self, folder: Path, options: ExtractionOptions) -> None:
        self._folder, self._options = folder, options
        self.encoders: list[EncoderProcess] = []

    def start(self) -> None:
        """Start them and wait until they have loaded.

        Where the options leave the devices open, the first encoder says how many GPUs there are.

        Raises:
            RuntimeError: one of them did not start; the message has its last words.
        """
        for device in self._options.devices:
            self._start(device)
        self._await_facts(self.encoders)
        others = [self._start(f"cuda:{i}") for i in range(1, self.facts["devices"])]
        self._await_facts(others)

    def _start(self, device: str) -> EncoderProcess:
        encoder = EncoderProcess(
            {
                "encoder": str(self._folder),
                "pooled_side": self._options.pooled_side,
                "device": device,
                "batch_size": self._options.settings.batch_size,
            }
        )
        self.encoders.append(encoder)
        return encoder

    @staticmethod
    def _await_facts(encoders: list[EncoderProcess]) -> None:
        for encoder in encoders:
            _, encoder.facts = encoder.receive_within()

    @property
    def facts(self) -> dict[str, Any]:
        """What the first of them said of itself."""
        return self.encoders[0].facts

    @property
    def pending(self) -> int:
        """Pictures in the frame buffer that wait for encoders."""
        return sum(encoder.pending for encoder in self.encoders)

    def connect(self, buffer: FrameBuffer, selector: selectors.BaseSelector) -> None:
        """Share the buffer with them; the selector then tells of their messages, with the
        `EncoderProcess` as data.
        """
        for encoder in self.encoders:
            encoder.connection.send("buffer", buffer.side, buffer.slots, files=(buffer.descriptor,))
            selector.register(encoder.connection, selectors.EVENT_READ, encoder)

    def least_busy(self) -> EncoderProcess:
        """The one with the fewest videos, and of these the one with the fewest pictures."""
        return min(self.encoders, key=lambda encoder: (encoder.jobs, encoder.pending))

    def flush(self) -> None:
        """Have them compute batches that are not full."""
        for encoder in self.encoders:
            encoder.connection.send("flush")

    def stats(self) -> list[dict[str, float]]:
        """What each of them counted. Only when all is done: other messages must not come."""
        found = []
        for encoder in self.encoders:
            encoder.connection.send("report")
            found.append(encoder.receive_within()[1])
        return found

    def close(self) -> None:
        """End them, the last one first."""
        for encoder in reversed(self.encoders):
            encoder.close()
