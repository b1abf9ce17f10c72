"""Supervision of the decoding processes: who runs, who owns which slot of the ring, who has stopped
getting anywhere.

The only place that decides who owns a slot. A decoder that a file has hung is killed here; what
becomes of its video is the pool's affair.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from assets.deployment.settings import Limits
from assets.features.jobs import Job, Video
from assets.features.processes import Nursery, Worker
from assets.features.ring import Ring

# Slots that a decoder is topped up to; enough for it not to wait for the coordinator's next turn.
GRANT = 16

# How a worker decodes: module:function, looked up in the decoding process.
PYAV = "assets.features.backends:open_pyav"
DECORD = "assets.features.backends:open_decord"
NVDEC = "assets.features.nvdec:open_nvdec"


class Decoders:
    """Decoding processes and the slots they fill.

    Attributes:
        workers: those that live, by name.
        free: slots of the ring that belong to nobody.
    """

    def __init__(
        self, nursery: Nursery, ring: Ring, selector: selectors.BaseSelector, limits: Limits
    ) -> None:
        self._nursery, self._ring, self._selector, self._limits = nursery, ring, selector, limits
        self.workers: dict[int, Worker] = {}
        self.free: list[int] = list(range(ring.slots))

    @property
    def busy(self) -> bool:
        """Whether any of them has a video."""
        return any(worker.job for worker in self.workers.values())

    def fork(self, backend: str) -> None:
        # CUDA reserves address space far beyond what it uses, so memory cannot be limited where the
        # GPU decodes.
        memory = 0 if backend == NVDEC else self._limits.memory_bytes
        worker = self._nursery.fork(backend, self._ring, {"memory_bytes": memory})
        self.workers[worker.name] = worker
        self._selector.register(worker.channel, selectors.EVENT_READ, worker)

    def ready(self) -> list[Worker]:
        """Those that could take a video. One that has done its share is let go; its exit brings the
        next one.
        """
        idle = [
            worker for worker in self.workers.values() if worker.job is None and not worker.killed
        ]
        for worker in idle:
            if worker.jobs >= self._limits.recycle_after:
                worker.killed = "recycled"
                self._tell(worker, "quit")
        return [worker for worker in idle if not worker.killed]

    def assign(self, worker: Worker, job: Job, min_frames: int) -> None:
        worker.job, worker.jobs, worker.waited = job.number, worker.jobs + 1, 0.0
        worker.started = worker.last = time.monotonic()
        worker.empty_since = None
        options = {
            "size": self._ring.side,
            "min_frames": min_frames,
            "max_frames": self._limits.max_frames,
            "max_pixels": self._limits.max_pixels,
        }
        self._tell(
            worker, "job", job.number, str(job.local), options, 2 * self._deadline(job.video)
        )

    def grant(self) -> None:
        """Top them up with slots, those that have fewest first."""
        active = [
            worker
            for worker in self.workers.values()
            if worker.job is not None and not worker.killed
        ]
        now = time.monotonic()
        for worker in sorted(active, key=lambda worker: len(worker.granted)):
            missing = GRANT - len(worker.granted)
            if self.free and missing >= min(GRANT // 2, self._ring.slots // len(active)):
                slots = [self.free.pop() for _ in range(min(missing, len(self.free)))]
                worker.granted |= set(slots)
                self._tell(worker, "slots", slots)
                if worker.empty_since is not None:
                    worker.waited += now - worker.empty_since
                    worker.empty_since, worker.last = None, now
            elif not worker.granted and worker.empty_since is None:
                worker.empty_since = now

    def watch(self, jobs: Mapping[int, Job]) -> None:
        """Kill those that have stopped getting anywhere."""
        now, limits = time.monotonic(), self._limits
        for worker in self.workers.values():
            if worker.job is None or worker.killed or worker.empty_since is not None:
                continue
            job = jobs[worker.job]
            spent = now - worker.started - worker.waited
            if job.facts and now - worker.last > limits.stall_s:
                self.kill(
                    worker, f"no picture for {limits.stall_s:.0f} s, {spent:.0f} s into the video"
                )
            elif spent > self._deadline(job.video):
                self.kill(worker, f"not done after {spent:.0f} s")

    def kill(self, worker: Worker, why: str) -> None:
        worker.killed = why
        self._nursery.kill(worker)

    def bury(self, worker: Worker) -> None:
        """Forget one whose exit was heard; nobody writes into its slots any more."""
        del self.workers[worker.name]
        if worker.channel in self._selector.get_map():
            self._selector.unregister(worker.channel)
        self.free += sorted(worker.granted)

    def _deadline(self, video: Video) -> float:
        return max(self._limits.deadline_s, video.duration / 2)

    @staticmethod
    def _tell(worker: Worker, *message: Any) -> None:
        with suppress(
            BrokenPipeError, ConnectionResetError
        ):  # it just died; the nursery will tell us of what
            worker.channel.send(*message)
