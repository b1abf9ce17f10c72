"""The coordinator: hands out videos to decoders, pictures to encoders, finished files to the
storage.

It computes nothing and imports no torch. `assets.features.decoders` looks after the decoding
processes. One encoder for each device; whoever has least to do gets the next video.
"""

from __future__ import annotations

import heapq
import selectors
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from assets.features.decoders import GRANT, Decoders
from assets.features.jobs import Abandoned, Failure, Job, Success, Usage, Video
from assets.features.options import Options
from assets.features.processes import EncoderProcess, Nursery, Worker, describe_exit
from assets.features.ring import Ring
from assets.features.strip import FrameStrip
from training.formats.feature_file import feature_path
from training.formats.storage import Storage

TICK_S = 0.2
REPORT_S = 60.0
START_S = 300.0  # for an encoder to load, or the nursery to import


class Pool:
    """Runs one extraction over any number of videos.

    Args:
        storage: where features go.
        variant: names their folder.
        options: see :class:`Options`.
        encoder: folder of the vision encoder.
        metadata: what every file's header says, beside what is known of its video.
        backends: the decoder of each worker, as ``module:function``.
        log: takes lines.
        advance: told how many more frames were decoded.
    """

    def __init__(
        self,
        storage: Storage,
        variant: str,
        options: Options,
        encoder: Path,
        metadata: dict[str, str],
        backends: list[str],
        log: Callable[[str], None],
        advance: Callable[[int], None],
    ) -> None:
        self.storage, self.variant, self.options, self.log = storage, variant, options, log
        self._advance, self._reported = advance, time.monotonic()
        self.encoder_folder, self.metadata, self.backends = encoder, metadata, backends
        self.usage = Usage()
        self.strip = FrameStrip()
        self.facts: dict[str, Any] = {}
        self.outcomes: deque[Success | Failure] = deque()
        self._queue: list[tuple[float, str, Video]] = []
        self._fetched: deque[tuple[Video, Future[Path]]] = deque()
        self._jobs: dict[int, Job] = {}
        self._publishing: dict[Future[None], Success] = {}
        self._dropped: dict[int, Job] = {}
        self._unflushed = False
        self._numbers = 0

    def run(self, videos: Iterable[Video]) -> Iterator[Success | Failure]:
        """Extract; yields each video's outcome as it becomes known.

        Raises:
            RuntimeError: an encoder or the nursery died; what is published stays.
        """
        self._queue = [(-video.duration, video.video, video) for video in videos]
        heapq.heapify(self._queue)  # longest first, so that none is left over for the end
        with ExitStack() as stack:
            self._stack = stack
            self._selector = stack.enter_context(selectors.DefaultSelector())
            # Uploads and fsync on one side, downloads of a remote root on the other: neither holds
            # up the loop.
            self._publisher = stack.enter_context(ThreadPoolExecutor(2, "publish"))
            self._fetcher = ThreadPoolExecutor(2, "fetch")
            stack.callback(self._fetcher.shutdown, cancel_futures=True)
            stack.callback(self._abandon)
            self._start()
            while self._queue or self._fetched or self._jobs or self._dropped or self._publishing:
                self._turn()
                while self.outcomes:
                    yield self.outcomes.popleft()
            self._finish()

    # --- Starting and ending
    # ---------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Encoders and nursery load side by side; the ring is made once the pictures' size is
        known.
        """
        self.nursery = Nursery()
        self._stack.callback(self.nursery.close)
        self.encoders = [self._encoder(device) for device in self.options.devices]
        for encoder in self.encoders:
            self._await_ready(encoder)
        others = [self._encoder(f"cuda:{i}") for i in range(1, self.encoders[0].facts["devices"])]
        for encoder in others:
            self._await_ready(encoder)
        self.encoders += others
        message = self._receive_within(
            self.nursery.channel, START_S, self.nursery.error, "the nursery of decoders"
        )
        self.facts = {
            **self.encoders[0].facts,
            "devices": len(self.encoders),
            "isolation": message[1],
        }
        self.log(
            f"encoding on {len(self.encoders)} x {self.facts['device']} in "
            f"{self.facts['precision']}, decoding in {len(self.backends)} processes; {message[1]}"
        )
        side, limits = int(self.facts["side"]), self.options.limits
        slots = 2 * GRANT * len(self.backends) + 2 * self.options.batch_size * len(self.encoders)
        slots = max(2 * len(self.backends), min(slots, limits.ring_bytes // Ring.slot_bytes(side)))
        self.ring = Ring.create(side, slots)
        self._stack.callback(self.ring.close)
        for encoder in self.encoders:
            encoder.channel.send("ring", side, slots, files=(self.ring.descriptor,))
            self._selector.register(encoder.channel, selectors.EVENT_READ, encoder)
        self._selector.register(self.nursery.channel, selectors.EVENT_READ, self.nursery)
        self.decoders = Decoders(self.nursery, self.ring, self._selector, limits)
        wanted = min(len(self.backends), len(self._queue))
        for backend in self.backends[:wanted]:
            self.decoders.fork(backend)
        self.usage.started = time.monotonic()

    def _encoder(self, device: str) -> EncoderProcess:
        encoder = EncoderProcess(
            {
                "encoder": str(self.encoder_folder),
                "pooled_side": self.options.pooled_side,
                "device": device,
                "batch_size": self.options.batch_size,
            }
        )
        self._stack.callback(encoder.close)
        return encoder

    def _await_ready(self, encoder: EncoderProcess) -> None:
        message = self._receive_within(
            encoder.channel, START_S, encoder.error, f"the encoder on {encoder.device}"
        )
        encoder.facts = message[1]

    @staticmethod
    def _receive_within(
        channel: Any, seconds: float, error: Callable[[], str], who: str
    ) -> list[Any]:
        channel.sock.settimeout(seconds)
        try:
            message = channel.receive()
        except TimeoutError:
            raise RuntimeError(f"{who} did not start within {seconds:.0f} s: {error()}") from None
        channel.sock.settimeout(None)
        if message is None:
            raise RuntimeError(f"{who} ended while starting:\n{error()}")
        return list(message)

    def _finish(self) -> None:
        """Ask the encoders for their numbers."""
        self.usage.finished = time.monotonic()
        for encoder in self.encoders:
            encoder.channel.send("report")
            message = self._receive_within(
                encoder.channel, START_S, encoder.error, f"the encoder on {encoder.device}"
            )
            self.usage.encoders.append(message[1])

    def _abandon(self) -> None:
        """Remove the temporary files of whatever is unfinished when the loop ends early."""
        for job in [*self._jobs.values(), *self._dropped.values()]:
            self._discard(job)

    # --- The loop
    # --------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._prefetch()
        self._dispatch()
        for key, _ in self._selector.select(TICK_S):
            if isinstance(key.data, Worker):
                # Else its exit was heard in this same turn, and with it all that it said.
                if key.data.name in self.decoders.workers:
                    self._hear_worker(key.data)
            elif isinstance(key.data, EncoderProcess):
                self._hear_encoder(key.data)
            else:
                self._hear_nursery()
        self.decoders.grant()
        self._flush()
        self.decoders.watch(self._jobs)
        self._collect_published()
        self._sample()

    def _prefetch(self) -> None:
        """Have the next videos' files at hand; for a local root that costs nothing."""
        ahead = 1 if self.storage.is_local else 2 + len(self.decoders.workers)
        while self._queue and len(self._fetched) < ahead:
            _, _, video = heapq.heappop(self._queue)
            future: Future[Path] = Future()
            if self.storage.is_local:
                future.set_result(self.storage.local(video.relpath))
            else:
                future = self._fetcher.submit(self.storage.local, video.relpath)
            self._fetched.append((video, future))

    def _dispatch(self) -> None:
        for worker in self.decoders.ready():
            self._prefetch()
            if not self._fetched or not self._fetched[0][1].done():
                return
            video, future = self._fetched.popleft()
            try:
                local = future.result()
            except FileNotFoundError:
                self.outcomes.append(
                    Failure(video, "missing", "the catalogue lists it, but the file is not there")
                )
                continue
            self._numbers += 1
            job = Job(self._numbers, video, local)
            self._jobs[job.number] = job
            self.decoders.assign(worker, job, self.options.min_frames)

    def _flush(self) -> None:
        """Have batches encoded that nothing will fill any more."""
        if self._unflushed and not self.decoders.busy:
            self._unflushed = False
            for encoder in self.encoders:
                encoder.channel.send("flush")

    # --- What decoders say
    # -----------------------------------------------------------------------------------------

    def _hear_worker(self, worker: Worker) -> None:
        message = worker.channel.receive()
        if message is None:  # its exit status comes through the nursery
            self._selector.unregister(worker.channel)
            return
        if worker.killed:
            return
        worker.last = time.monotonic()
        job = self._jobs.get(message[1])
        if job is None:
            return
        match message:
            case ["frames", _, frames]:
                self._forward(worker, job, frames)
            case ["start", _, facts]:
                self._begin(job, facts)
            case ["end", _, stats, usage]:
                worker.job = None
                self.usage.decode_cpu_s += usage["cpu_s"]
                self.usage.decode_busy_s += usage["busy_s"]
                self.usage.worker_bytes = max(self.usage.worker_bytes, usage["memory_bytes"])
                self._end(job, stats)
            case ["fail", _, reason, detail]:
                worker.job = None
                self._fail(job, reason, detail)

    def _begin(self, job: Job, facts: dict[str, Any]) -> None:
        job.facts = facts
        job.encoder = min(self.encoders, key=lambda encoder: (encoder.jobs, encoder.pending))
        job.encoder.jobs += 1
        path = job.publishing.enter_context(
            self.storage.writing(feature_path(self.variant, job.video.video))
        )
        job.encoder.channel.send("begin", job.number, facts["frames"], str(path))
        self.strip.expect(job.number, job.video.video, facts["frames"])

    def _forward(self, worker: Worker, job: Job, frames: list[list[Any]]) -> None:
        assert job.encoder is not None
        self.usage.frames += len(frames)
        slots = {slot for _, slot, _ in frames}
        if not slots <= worker.granted:  # only its own slots are its to fill
            self.decoders.kill(worker, "it announced pictures in slots that are not its own")
            return
        worker.granted -= slots
        for k, slot, _ in frames:
            self.strip.offer(job.number, k, self.ring.pictures[slot])
        job.encoder.pending += len(frames)
        job.frames += len(frames)
        self._advance(len(frames))
        self._unflushed = True
        job.encoder.channel.send("frames", [[job.number, *frame] for frame in frames])

    def _end(self, job: Job, stats: dict[str, float]) -> None:
        job.damaged = any(stats.values())
        if job.damaged and self.options.damaged == "skip":
            said = ", ".join(f"{name} {count:g}" for name, count in stats.items() if count)
            self._fail(job, "damaged", said)
        else:
            assert job.encoder is not None
            job.encoder.channel.send("end", job.number, self._header(job, stats))

    def _header(self, job: Job, stats: dict[str, float]) -> dict[str, str]:
        facts = {name: str(value) for name, value in job.facts.items() if name != "frames"}
        counts = {name: f"{count:g}" for name, count in stats.items()}
        own = {
            "video": job.video.video,
            "source_sha256": job.video.sha256,
            "damaged": str(int(job.damaged)),
        }
        return {**self.metadata, **facts, **counts, **own}

    def _fail(self, job: Job, reason: str, detail: str, stderr: str = "") -> None:
        self.strip.forget(job.number)
        self._close(job)
        if (
            job.encoder is not None
        ):  # it may be about to open the temporary file, so that one stays until it is not
            job.encoder.jobs -= 1
            job.encoder.channel.send("drop", job.number)
            self._dropped[job.number] = job
        self.outcomes.append(Failure(job.video, reason, detail, stderr))

    def _discard(self, job: Job) -> None:
        error = Abandoned(job.video.video)
        try:
            job.publishing.__exit__(Abandoned, error, None)
        except Abandoned:
            return

    def _close(self, job: Job) -> None:
        del self._jobs[job.number]
        if missing := self.options.expected_frames(job.video.duration) - job.frames:
            self._advance(missing)
        if not self.storage.is_local:
            job.local.unlink(missing_ok=True)  # a copy that nobody needs again

    # --- What the others say
    # ---------------------------------------------------------------------------------------

    def _hear_nursery(self) -> None:
        message = self.nursery.channel.receive()
        if message is None:
            raise RuntimeError(f"the nursery of decoders ended:\n{self.nursery.error()}")
        _, name, status = message
        worker = self.decoders.workers[name]
        while worker.channel.waiting() and not worker.killed:  # what it said before it died
            if worker.channel in self._selector.get_map():
                self._hear_worker(worker)
            else:
                break
        self.decoders.bury(worker)
        if worker.job is not None:
            reason, detail = ("timeout", worker.killed) if worker.killed else describe_exit(status)
            self._fail(self._jobs[worker.job], reason, detail, worker.said())
        worker.close()
        if self._queue or self._fetched:
            self.decoders.fork(worker.opener)

    def _hear_encoder(self, encoder: EncoderProcess) -> None:
        message = encoder.channel.receive()
        if message is None:
            raise RuntimeError(f"the encoder on {encoder.device} ended:\n{encoder.error()}")
        match message:
            case ["free", slots]:
                encoder.pending -= len(slots)
                self.decoders.free += slots
            case ["dropped", number]:
                self._discard(self._dropped.pop(number))
            case ["done", number, content, size]:
                job = self._jobs[number]
                encoder.jobs -= 1
                self._close(job)
                facts = job.facts
                success = Success(
                    job.video, facts["frames"], facts["duration"], job.damaged, content, size, facts
                )
                self._publishing[self._publisher.submit(job.publishing.close)] = success

    def _sample(self) -> None:
        """Note how full the ring is; now and then say so, for it tells which side is the slower
        one.
        """
        self.usage.ring_used += sum(encoder.pending for encoder in self.encoders)
        self.usage.ring_samples += 1
        if (now := time.monotonic()) - self._reported > REPORT_S:
            self._reported = now
            share = sum(encoder.pending for encoder in self.encoders) / self.ring.slots
            slower = "encoding is the slower side" if share > 0.5 else "decoding is the slower side"
            self.log(
                f"{len(self._jobs)} videos in work, ring {share:.0%} full of decoded frames: "
                f"{slower}"
            )

    def _collect_published(self) -> None:
        for future in [future for future in self._publishing if future.done()]:
            future.result()
            self.outcomes.append(self._publishing.pop(future))
