"""The processes that decode what is asked about: locked up as those of the features' extraction,
and several for one video, since somebody waits for it.

A file that crashes or hangs its decoder ends a process that holds nothing else: the question fails,
and the next video can be asked about.
"""

from __future__ import annotations

import selectors
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from assets.deployment.settings import Limits
from assets.features.workers.frame_buffer import FrameBuffer
from assets.features.workers.processes import DecoderProcess, ForkServer, describe_exit
from model.media.damage import describe_damage
from model.media.refusals import REASONS, MediaError

OPENER = "assets.inference.stretches:open_stretch"
SLOTS = 16  # pictures of a decoder that wait to be taken
FIRST_PASS_S = 600.0  # until a file is understood; a slow disk is read once for it
CPU_S = 24 * 3600  # of a decoder; one that hangs is found by the time without a picture


class StretchFailed(ValueError):
    """A stretch of a video could not be decoded: all of it has to be decoded in one."""


class VideoDecoders:
    """Decodes one video at a time. Processes start with the first one, or before it by `start`.

    Whoever waits in another thread takes its turn. The processes end with this object.

    Args:
        limits: what a decoder may cost.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._turn = threading.Lock()
        self._server: ForkServer | None = None
        self._ready = False  # the server has said so

    def start(self) -> None:
        """Start the process that decoders are forked from, without waiting for it: it imports
        torch, as does whoever loads a model meanwhile.
        """
        if self._server is None or self._server.ended:
            self._server, self._ready = ForkServer(), False
            weakref.finalize(self, self._server.close)

    @contextmanager
    def decoding(
        self, path: Path, *, size: int, min_frames: int, stretches: int = 1
    ) -> Iterator[DecodedVideo]:
        """A video that is being decoded.

        Args:
            size: S; pictures are turned upright and squashed to S x S.
            min_frames: pictures wanted of a video shorter than so many seconds, if it has them.
            stretches: processes that share the video, if it is long enough.

        Raises:
            MediaError: the file cannot be used.
            StretchFailed: it has to be decoded again with one stretch; what came before is no use.
            ValueError: a decoder died of it, or hangs.
        """
        with self._turn, closing(FrameBuffer.create(size, SLOTS * stretches)) as buffer:
            self.start()
            server = self._server
            assert server is not None
            if not self._ready:
                server.receive_within()
                self._ready = True
            with closing(DecodedVideo(path, server, buffer, self._limits)) as video:
                video.begin({"size": size, "min_frames": min_frames, "most": stretches})
                yield video


class DecodedVideo:
    """Pictures of one video while they come.

    Attributes:
        frames: how many pictures there will be.
        duration: seconds.
        damage: what is wrong with the video, for people; complete after the last picture.
    """

    def __init__(self, path: Path, server: ForkServer, buffer: FrameBuffer, limits: Limits) -> None:
        self.frames, self.duration, self.damage = 0, 0.0, ""
        self._path, self._server, self._buffer, self._limits = path, server, buffer, limits
        self._decoders: list[DecoderProcess] = []
        self._stretches = 1
        self._exits: dict[int, int] = {}  # a decoder's id -> its wait status
        self._first: dict[int, int] = {}  # a decoder's id -> the place of its first picture
        # Pictures that nobody has taken yet: their decoder, place in the video, and slot.
        self._coming: deque[tuple[DecoderProcess, int, int]] = deque()
        self._selector = selectors.DefaultSelector()

    def begin(self, options: dict[str, Any]) -> None:
        """Start decoding, and wait until the first decoder has understood the file. It says in how
        many stretches it is decoded; most videos are too short for more than one.
        """
        self._fork(options)
        while not self._first:
            self._listen()
        while len(self._decoders) < self._stretches:
            self._fork(options)

    def _fork(self, options: dict[str, Any]) -> None:
        """Start the decoder of the next stretch."""
        limits = {"memory_bytes": self._limits.memory_bytes}
        decoder = self._server.fork(OPENER, self._buffer, limits)
        stretch = len(self._decoders)
        self._decoders.append(decoder)
        self._selector.register(decoder.connection, selectors.EVENT_READ, decoder)
        job = options | {"stretch": stretch}
        _send(decoder, "job", decoder.id, str(self._path.absolute()), job, CPU_S)
        self._give(decoder, range(stretch * SLOTS, (stretch + 1) * SLOTS))

    def chunks(self, pictures: int) -> Iterator[tuple[list[int], np.ndarray]]:
        """All pictures, so many at a time: their places in the video, in any order, and uint8 RGB
        [N, S, S, 3].
        """
        left = self.frames
        while left:
            count = min(pictures, left)
            side = self._buffer.side
            chunk = np.empty((count, side, side, 3), np.uint8)
            places: list[int] = []
            while len(places) < count:
                while not self._coming:
                    self._listen()
                decoder, place, slot = self._coming.popleft()
                chunk[len(places)] = self._buffer.pictures[slot]
                places.append(place)
                self._give(decoder, [slot])
            yield places, chunk
            left -= count
        while self._selector.get_map():
            self._listen()

    def _give(self, decoder: DecoderProcess, slots: Sequence[int]) -> None:
        if not decoder.slots:
            decoder.heard = time.monotonic()
        decoder.slots.update(slots)
        _send(decoder, "slots", list(slots))

    def _patience(self, decoder: DecoderProcess) -> float:
        """After so many seconds without a word a decoder hangs."""
        return self._limits.stall_s if decoder.id in self._first else FIRST_PASS_S

    def _listen(self) -> None:
        """Take what the decoders say next. Each has its own time to say something: one may hang
        while another still reads through the file.
        """
        decoders = [key.data for key in self._selector.get_map().values()]
        next_due = min(decoders, key=lambda decoder: decoder.heard + self._patience(decoder))
        patience = self._patience(next_due)
        ready = self._selector.select(max(0.0, next_due.heard + patience - time.monotonic()))
        if not ready:
            raise self._failed(f"nothing came of it for {patience:.0f} s: its decoder hangs")
        for key, _ in ready:
            key.data.heard = time.monotonic()
            self._hear(key.data, key.data.connection.receive())

    def _hear(self, decoder: DecoderProcess, message: list[Any] | None) -> None:
        match message:
            case ["start", _, facts]:
                if self._first and facts["chosen"] != self.frames:
                    raise self._failed("its decoders tell different numbers of pictures")
                self._first[decoder.id] = facts["first"]
                self.frames, self.duration = facts["chosen"], facts["duration"]
                self._stretches = min(facts["stretches"], self._buffer.slots // SLOTS)
            case ["frames", _, announced]:
                for k, slot, _ in announced:
                    place = self._first.get(decoder.id, self.frames) + k
                    # It has read a stranger's file, and may be his by now.
                    if slot not in decoder.slots or not 0 <= place < self.frames:
                        raise self._failed("its decoder announces pictures that cannot be")
                    decoder.slots.remove(slot)
                    self._coming.append((decoder, place, slot))
            case ["end", _, counts, _]:
                self._selector.unregister(decoder.connection)
                self.damage = describe_damage(counts)
            case ["corrupt", _, counts]:
                raise self._failed(describe_damage(counts), "too_corrupt")
            case ["fail", _, reason, detail]:
                raise self._failed(detail, reason)
            case None:
                self._selector.unregister(decoder.connection)
                self._await_exits({decoder.id})
                _, detail = describe_exit(self._exits[decoder.id])
                raise self._failed(f"{detail}: {decoder.stderr_excerpt()}".rstrip(": "))

    def _failed(self, detail: str, reason: str = "") -> Exception:
        """What is raised for it."""
        if self._stretches > 1:
            return StretchFailed(f"{self._path}: {detail}")
        if reason == "missing":
            return FileNotFoundError(f"{self._path}: no such file")
        if reason in REASONS:
            return MediaError(reason, str(self._path), detail)
        return ValueError(f"{self._path}: {detail}")

    def _await_exits(self, numbers: set[int]) -> None:
        while not numbers <= self._exits.keys():
            _, number, status = self._server.receive()
            self._exits[number] = status

    def close(self) -> None:
        """End all decoders, whatever they do."""
        self._selector.close()
        for decoder in self._decoders:
            self._server.kill(decoder)
        self._await_exits({decoder.id for decoder in self._decoders})
        for decoder in self._decoders:
            decoder.close()


def _send(decoder: DecoderProcess, *message: Any) -> None:
    # One that has just died: its connection will tell.
    with suppress(BrokenPipeError, ConnectionResetError):
        decoder.connection.send(*message)
