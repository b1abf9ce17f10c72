"""Supervises the decoding processes: starts them, gives them slots of the frame buffer, kills those
that make no progress.

This is the only place that decides which decoder may write to which slot. What becomes of the video
of a killed decoder is decided by the coordinator.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from assets.annotations.catalogue import PresentVideo
from assets.deployment.settings import Features, Limits
from assets.features.jobs import VideoJob
from assets.features.options import ExtractionOptions
from assets.features.workers.frame_buffer import FrameBuffer
from assets.features.workers.nvdec import nvdec_installed
from assets.features.workers.processes import DecoderProcess, ForkServer

# Slots that a decoder has at most: enough for it not to wait for the coordinator's next turn.
SLOTS_OF_A_DECODER = 16

# How a decoder decodes: `module:function`, looked up in the decoding process.
PYAV = "assets.features.workers.backends:open_pyav"
DECORD = "assets.features.workers.backends:open_decord"
NVDEC = "assets.features.workers.nvdec:open_nvdec"  # and `:number` of the GPU

# Decoding processes on each GPU. One does not fill a video engine, and a GPU for computing has
# several engines.
NVDEC_PROCESSES = 7


def choose_backends(settings: Features, gpus: int, log: Callable[[str], None]) -> list[str]:
    """The backend of each decoding process. Pixels are the same whichever it is, so a video may go
    to any of them; each takes the next video when it is done with one, so that their shares follow
    what they achieve.

    "auto" means PyAV on the CPU, which was right on every clip tried and takes the least CPU time,
    and beside it the video engines of the GPUs, where PyNvVideoCodec is installed. There is no
    falling back to decord, which needs PyAV's timeline and does not report damage.

    Args:
        settings: the deployment's.
        gpus: that encode.
        log: takes lines.
    """
    workers = settings.decode_workers
    if settings.decoder == "decord":
        return [DECORD] * workers
    engines: list[str] = []
    if settings.decoder in ("auto", "nvdec") and gpus and nvdec_installed():
        engines = [f"{NVDEC}:{gpu}" for gpu in range(gpus) for _ in range(NVDEC_PROCESSES)]
    elif settings.decoder == "nvdec":
        why = "PyNvVideoCodec is not installed" if gpus else "there is no GPU"
        log(f"settings say features.decoder: nvdec, but {why}; decoding with PyAV")
    # The engines first: they get the first and so the longest videos, and are the faster ones.
    return engines + [PYAV] * workers


def on_gpu(backend: str) -> bool:
    """Whether a backend decodes on a GPU."""
    return backend.startswith(NVDEC)


class DecoderPool:
    """Decoding processes and the slots that they fill.

    Args:
        fork_server: starts and kills them.
        buffer: whose slots they fill.
        selector: tells of their messages; each is registered with its `DecoderProcess` as data.
        limits: what a video may cost.

    Attributes:
        decoders: those that live, by id.
        free_slots: slots of the buffer that belong to no decoder and hold no picture.
    """

    def __init__(
        self,
        fork_server: ForkServer,
        buffer: FrameBuffer,
        selector: selectors.BaseSelector,
        limits: Limits,
    ) -> None:
        self._fork_server, self._buffer = fork_server, buffer
        self._selector, self._limits = selector, limits
        self.decoders: dict[int, DecoderProcess] = {}
        self.free_slots: list[int] = list(range(buffer.slots))

    @property
    def busy(self) -> bool:
        """Whether any of them has a video."""
        return any(decoder.job for decoder in self.decoders.values())

    def fork(self, backend: str) -> None:
        """Start a decoder."""
        # CUDA reserves address space far beyond what it uses, so memory cannot be limited where the
        # GPU decodes.
        memory = 0 if on_gpu(backend) else self._limits.memory_bytes
        decoder = self._fork_server.fork(backend, self._buffer, {"memory_bytes": memory})
        self.decoders[decoder.id] = decoder
        self._selector.register(decoder.connection, selectors.EVENT_READ, decoder)

    def without_job(self) -> list[DecoderProcess]:
        """Those that could take a video.

        One that has had `recycle_after` videos is asked to quit instead; the coordinator replaces
        it when it has ended.
        """
        unused = [
            decoder
            for decoder in self.decoders.values()
            if decoder.job is None and not decoder.killed
        ]
        for decoder in unused:
            if decoder.jobs >= self._limits.recycle_after:
                decoder.killed = "recycled"
                self._send(decoder, "quit")
        return [decoder for decoder in unused if not decoder.killed]

    def assign(self, decoder: DecoderProcess, job: VideoJob, chosen: ExtractionOptions) -> None:
        """Give a job to a decoder that has none."""
        decoder.job, decoder.jobs, decoder.waited_s = job.number, decoder.jobs + 1, 0.0
        decoder.started = decoder.heard = time.monotonic()
        decoder.without_slots_since = None
        options = {
            "size": self._buffer.side,
            "sampling": chosen.sampling,
            "min_frames": chosen.min_frames,
            "max_frames": self._limits.max_frames,
            "max_pixels": self._limits.max_pixels,
        }
        cpu_s = 2 * self._deadline_s(job.video)
        self._send(decoder, "job", job.number, str(job.local), options, cpu_s)

    def give_slots(self) -> None:
        """Give free slots to those that work, first to those that have fewest.

        Decoders on a GPU take turns there with the encoder, which slows it down. So while others
        decode, they get slots only when less than half of the buffer is filled: they make up what
        the CPU cannot give.
        """
        active = [
            decoder
            for decoder in self.decoders.values()
            if decoder.job is not None and not decoder.killed
        ]
        now = time.monotonic()
        mixed = len({on_gpu(decoder.opener) for decoder in active}) > 1
        half = self._buffer.slots // 2
        for decoder in sorted(active, key=lambda d: (on_gpu(d.opener), len(d.slots))):
            held_back = mixed and on_gpu(decoder.opener) and len(self.free_slots) <= half
            missing = 0 if held_back else SLOTS_OF_A_DECODER - len(decoder.slots)
            # Several at a time, to send fewer messages; fewer where the buffer is small.
            worthwhile = min(SLOTS_OF_A_DECODER // 2, self._buffer.slots // len(active))
            if self.free_slots and missing >= worthwhile:
                count = min(missing, len(self.free_slots))
                slots = [self.free_slots.pop() for _ in range(count)]
                decoder.slots |= set(slots)
                self._send(decoder, "slots", slots)
                if decoder.without_slots_since is not None:
                    decoder.waited_s += now - decoder.without_slots_since
                    decoder.without_slots_since, decoder.heard = None, now
            elif not decoder.slots and decoder.without_slots_since is None:
                decoder.without_slots_since = now

    def kill_stalled(self, jobs: Mapping[int, VideoJob]) -> None:
        """Kill those that make no progress, or take too long for their video.

        Time in which a decoder waits for slots does not count. Before it has opened the file there
        are no pictures to wait for, so only the deadline counts then.
        """
        now, limits = time.monotonic(), self._limits
        for decoder in self.decoders.values():
            if decoder.job is None or decoder.killed or decoder.without_slots_since is not None:
                continue
            job = jobs[decoder.job]
            spent = now - decoder.started - decoder.waited_s
            if job.facts and now - decoder.heard > limits.stall_s:
                why = f"no picture for {limits.stall_s:.0f} s, {spent:.0f} s into the video"
                self.kill(decoder, why)
            elif spent > self._deadline_s(job.video):
                self.kill(decoder, f"not done after {spent:.0f} s")

    def kill(self, decoder: DecoderProcess, why: str) -> None:
        """Kill a decoder. Its slots are free once its exit is known: see `remove`."""
        decoder.killed = why
        self._fork_server.kill(decoder)

    def remove(self, decoder: DecoderProcess) -> None:
        """Forget a decoder that has ended. Nobody writes to its slots any more: they are free."""
        del self.decoders[decoder.id]
        if decoder.connection in self._selector.get_map():
            self._selector.unregister(decoder.connection)
        self.free_slots += sorted(decoder.slots)

    def _deadline_s(self, video: PresentVideo) -> float:
        return max(self._limits.deadline_s, video.duration / 2)

    @staticmethod
    def _send(decoder: DecoderProcess, *message: Any) -> None:
        # One that has just died: the fork server will tell how.
        with suppress(BrokenPipeError, ConnectionResetError):
            decoder.connection.send(*message)
