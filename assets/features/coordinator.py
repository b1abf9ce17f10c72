"""The coordinator of an extraction: hands out videos to decoders, their pictures to encoders, and
finished files to the storage.

It computes nothing and opens no video. It only passes messages between the processes, in one loop,
and is the only one that knows which slot of the frame buffer and which video is where:

    video --> decoder --(slot of the frame buffer)--> encoder --> feature file --> storage
"""

from __future__ import annotations

import selectors
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from assets.annotations.catalogue import PresentVideo
from assets.features.decoder_pool import (
    PYAV,
    SLOTS_OF_A_DECODER,
    DecoderPool,
    choose_backends,
    on_gpu,
)
from assets.features.encoder_pool import EncoderPool
from assets.features.frame_strip import FrameStrip
from assets.features.jobs import (
    ExtractedVideo,
    ExtractionUsage,
    FailedVideo,
    VideoJob,
)
from assets.features.options import ExtractionOptions
from assets.features.video_queue import VideoQueue
from assets.features.workers.frame_buffer import FrameBuffer
from assets.features.workers.processes import (
    DecoderProcess,
    EncoderProcess,
    ForkServer,
    describe_exit,
)
from model.media.damage import describe_damage
from training.formats import layout
from training.formats.storage import Storage

TURN_S = 0.2  # the longest wait for a message, so that hung decoders are noticed
LOOK_S = 1.0  # between notes of how far it is
REPORT_S = 60.0  # between lines in the log


class Coordinator:
    """Runs one extraction over any number of videos.

    Args:
        storage: where videos are and features go.
        folder: that takes the feature files, below the root.
        options: of the extraction.
        encoder: folder of the vision encoder.
        metadata: what every feature file's header says, beside what is known of its video.
        backends: the decoder of each decoding process, as `module:function`; None to have them
            chosen by the options and the GPUs there are.
        log: takes lines.
        progress: told how many more pictures were decoded.

    Attributes:
        outcomes: of videos that are done, until `run` yields them.
        usage: sums for the table of throughput.
        strip: a picture of some of the pictures.
        facts: what the processes said of themselves; known once they run.
    """

    def __init__(
        self,
        storage: Storage,
        folder: str,
        options: ExtractionOptions,
        encoder: Path,
        metadata: dict[str, str],
        backends: list[str] | None,
        log: Callable[[str], None],
        progress: Callable[[int], None],
    ) -> None:
        self.storage, self.folder, self.options, self.log = storage, folder, options, log
        self.encoder_folder, self.metadata = encoder, metadata
        self.backends: list[str] = backends or []
        self._gave_up: set[str] = set()  # reasons of video engines that were logged
        self.outcomes: deque[ExtractedVideo | FailedVideo] = deque()
        self.usage = ExtractionUsage()
        self.strip = FrameStrip()
        self.facts: dict[str, Any] = {}
        self._progress, self._reported = progress, time.monotonic()
        self._jobs: dict[int, VideoJob] = {}
        # Jobs that failed, whose encoder has not yet said that it let go of their file.
        self._dropped: dict[int, VideoJob] = {}
        self._publishing: dict[Future[None], ExtractedVideo] = {}
        self._last_number = 0
        self._unflushed = False  # pictures were sent to encoders since the last flush

    def run(self, videos: Iterable[PresentVideo]) -> Iterator[ExtractedVideo | FailedVideo]:
        """Extract; yields each video's outcome as it becomes known.

        Raises:
            RuntimeError: an encoder or the fork server died; what is published stays.
        """
        # What is entered first is closed last: processes end before their files are removed.
        with ExitStack() as stack:
            self._selector = stack.enter_context(selectors.DefaultSelector())
            # Uploads and fsync are slow; in a thread they do not stop the loop.
            self._publisher = stack.enter_context(ThreadPoolExecutor(2, "publish"))
            self._queue = VideoQueue(self.storage, videos)
            stack.callback(self._queue.close)
            stack.callback(self._discard_unfinished)
            self._start(stack)
            while self._queue or self._jobs or self._dropped or self._publishing:
                self._turn()
                while self.outcomes:
                    yield self.outcomes.popleft()
            self.usage.finished = time.monotonic()
            self.usage.encoders = self.encoders.stats()

    def _start(self, stack: ExitStack) -> None:
        """Start all processes. Encoders and fork server load side by side; the frame buffer is made
        once the pictures' size is known.
        """
        self.fork_server = ForkServer()
        stack.callback(self.fork_server.close)
        self.encoders = EncoderPool(self.encoder_folder, self.options)
        stack.callback(self.encoders.close)
        self.encoders.start()
        _, isolation = self.fork_server.receive_within()
        devices = len(self.encoders.encoders)
        if not self.backends:
            gpus = devices if self.encoders.facts["gpu"] else 0
            self.backends = choose_backends(self.options.settings, gpus, self.log)
        self.facts = {**self.encoders.facts, "devices": devices, "isolation": isolation}
        self.log(
            f"encoding on {devices} x {self.facts['device']} in {self.facts['precision']}, "
            f"decoding in {len(self.backends)} processes"
            f"{_of_them(sum(map(on_gpu, self.backends)))}; {isolation}"
        )
        side = int(self.facts["side"])
        self.buffer = FrameBuffer.create(side, self._slots(side))
        stack.callback(self.buffer.close)
        self.encoders.connect(self.buffer, self._selector)
        self._selector.register(self.fork_server.connection, selectors.EVENT_READ, self.fork_server)
        limits = self.options.settings.limits
        self.decoders = DecoderPool(self.fork_server, self.buffer, self._selector, limits)
        for backend in self.backends[: len(self._queue)]:
            self.decoders.fork(backend)
        self.usage.started = time.monotonic()

    def _slots(self, side: int) -> int:
        """Slots of the frame buffer: twice what all processes can hold at a time, as far as memory
        allows, and at least two for each decoder.
        """
        settings, decoders = self.options.settings, len(self.backends)
        encoders = len(self.encoders.encoders)
        wanted = 2 * SLOTS_OF_A_DECODER * decoders + 2 * settings.batch_size * encoders
        allowed = settings.limits.buffer_bytes // FrameBuffer.slot_bytes(side)
        return max(2 * decoders, min(wanted, allowed))

    def _discard_unfinished(self) -> None:
        """Remove unfinished files when the loop ends early."""
        for job in [*self._jobs.values(), *self._dropped.values()]:
            job.discard_file()

    # --- The loop -------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Hand out what can be handed out, then take in what has come."""
        self._assign_jobs()
        for key, _ in self._selector.select(TURN_S):
            match key.data:
                case DecoderProcess() as decoder:
                    # Not if its exit came earlier in this turn: then its messages came with it.
                    if decoder.id in self.decoders.decoders:
                        self._receive_from_decoder(decoder)
                case EncoderProcess() as encoder:
                    self._receive_from_encoder(encoder)
                case _:
                    self._receive_exit()
        self.decoders.give_slots()
        self._flush()
        self.decoders.kill_stalled(self._jobs)
        self._collect_published()
        self._report_buffer()

    def _assign_jobs(self) -> None:
        self._queue.prefetch(len(self.decoders.decoders))
        for decoder in self.decoders.without_job():
            self._queue.prefetch(len(self.decoders.decoders))
            taken = self._queue.take()
            if taken is None:
                return
            video, future = taken
            try:
                local = future.result()
            except FileNotFoundError:
                detail = "the catalogue lists it, but the file is not there"
                self.outcomes.append(FailedVideo(video, "missing", detail))
                continue
            self._last_number += 1
            job = VideoJob(self._last_number, video, local)
            self._jobs[job.number] = job
            self.decoders.assign(decoder, job, self.options)

    def _flush(self) -> None:
        """Have batches encoded that nothing will fill any more."""
        if self._unflushed and not self.decoders.busy:
            self._unflushed = False
            self.encoders.flush()

    def _collect_published(self) -> None:
        for future in [future for future in self._publishing if future.done()]:
            future.result()
            self.outcomes.append(self._publishing.pop(future))

    def _report_buffer(self) -> None:
        """Note how full the frame buffer is. Log it now and then: it tells which side is slower."""
        self.usage.buffer_used += self.encoders.pending
        self.usage.buffer_samples += 1
        now = time.monotonic()
        if not self.usage.progress or now - self.usage.progress[-1][0] > LOOK_S:
            self.usage.progress.append((now, self.usage.frames))
        if now - self._reported > REPORT_S:
            self._reported = now
            share = self.encoders.pending / self.buffer.slots
            slower = "encoding is the slower side" if share > 0.5 else "decoding is the slower side"
            self.log(
                f"{len(self._jobs)} videos in work, frame buffer {share:.0%} full of decoded "
                f"frames: {slower}"
            )

    # --- Messages from decoders -----------------------------------------------------------------

    def _receive_from_decoder(self, decoder: DecoderProcess) -> None:
        message = decoder.connection.receive()
        if message is None:  # it has ended; the fork server will tell how
            self._selector.unregister(decoder.connection)
            return
        if decoder.killed:
            return
        decoder.heard = time.monotonic()
        job = self._jobs.get(message[1])
        if job is None:
            return
        match message:
            case ["frames", _, frames]:
                self._send_to_encoder(decoder, job, frames)
            case ["start", _, facts]:
                self._begin_file(job, facts)
            case ["end", _, stats, usage]:
                decoder.job = None
                self._note_engine(usage)
                self.usage.decode_cpu_s += usage["cpu_s"]
                self.usage.decode_busy_s += usage["busy_s"]
                self.usage.decoder_bytes = max(self.usage.decoder_bytes, usage["memory_bytes"])
                self._end_decoding(job, stats)
            case ["corrupt", _, stats]:
                decoder.job = None
                self._fail(job, "too_corrupt", describe_damage(stats))
            case ["fail", _, reason, detail]:
                decoder.job = None
                self._fail(job, reason, detail)

    def _note_engine(self, usage: dict[str, Any]) -> None:
        """Count what a GPU's video engine decoded; log once why one left a video to the CPU."""
        self.usage.on_gpu += usage["on_gpu"]
        if (why := usage["gave_up"]) and why not in self._gave_up:
            self._gave_up.add(why)
            self.log(f"NVDEC left a video to the CPU: {why}")

    def _begin_file(self, job: VideoJob, facts: dict[str, Any]) -> None:
        """The decoder has opened the file: choose an encoder and have it begin the feature file."""
        job.facts = facts
        job.encoder = self.encoders.least_busy()
        job.encoder.jobs += 1
        path = job.publishing.enter_context(
            self.storage.writing(layout.feature_file(self.folder, job.video.video))
        )
        job.encoder.connection.send("begin", job.number, facts["frames"], str(path))
        self.strip.begin(job.number, job.video.video, facts["frames"], job.video.duration)

    def _send_to_encoder(
        self, decoder: DecoderProcess, job: VideoJob, frames: list[list[Any]]
    ) -> None:
        """Pass pictures on; their slots belong to the encoder until it gives them back."""
        assert job.encoder is not None
        self.usage.frames += len(frames)
        slots = {slot for _, slot, _ in frames}
        if not slots <= decoder.slots:  # a decoder is not trusted: see workers/connection.py
            self.decoders.kill(decoder, "it announced pictures in slots that are not its own")
            return
        decoder.slots -= slots
        for k, slot, _ in frames:
            self.strip.add(job.number, k, self.buffer.pictures[slot])
        job.encoder.pending += len(frames)
        job.frames += len(frames)
        self._progress(len(frames))
        self._unflushed = True
        job.encoder.connection.send("frames", [[job.number, *frame] for frame in frames])

    def _end_decoding(self, job: VideoJob, stats: dict[str, float]) -> None:
        """All pictures were sent: the encoder may finish the file, unless damage rules it out."""
        job.damaged = any(stats.values())
        if job.damaged and self.options.settings.damaged == "skip":
            self._fail(job, "damaged", describe_damage(stats))
        else:
            assert job.encoder is not None
            header = job.header(self.metadata, stats)
            job.encoder.connection.send("end", job.number, header)

    def _fail(self, job: VideoJob, reason: str, detail: str, stderr: str = "") -> None:
        self._drop(job)
        if missing := self.options.expected_frames(job.video.duration) - job.frames:
            self._progress(missing)
        self.outcomes.append(FailedVideo(job.video, reason, detail, stderr))

    def _drop(self, job: VideoJob) -> None:
        """Give up a job and its unfinished file."""
        self.strip.remove(job.number)
        self._close(job)
        if job.encoder is not None:
            # The encoder may be about to open the file, so it stays until the encoder lets go.
            job.encoder.jobs -= 1
            job.encoder.connection.send("drop", job.number)
            self._dropped[job.number] = job

    def _close(self, job: VideoJob) -> None:
        """Nothing more of this job is decoded."""
        del self._jobs[job.number]
        if not self.storage.is_local:
            job.local.unlink(missing_ok=True)  # a copy that nobody needs again

    # --- Messages from the fork server and encoders ---------------------------------------------

    def _receive_exit(self) -> None:
        """A decoder has ended; start another one if there is work for it."""
        _, decoder_id, status = self.fork_server.receive()
        decoder = self.decoders.decoders[decoder_id]
        # First what it sent before it ended.
        while decoder.connection.has_message() and not decoder.killed:
            if decoder.connection not in self._selector.get_map():
                break
            self._receive_from_decoder(decoder)
        self.decoders.remove(decoder)
        opener = decoder.opener
        if decoder.job is not None:
            reason, detail = (
                ("timeout", decoder.killed) if decoder.killed else describe_exit(status)
            )
            job, stderr = self._jobs[decoder.job], decoder.stderr_excerpt()
            if on_gpu(opener):  # what the engine makes of a video says nothing about the video
                opener = PYAV
                self.log(
                    f"{job.video.video}: the decoder on the GPU died ({reason}: {detail}) and is "
                    f"replaced by one on the CPU {stderr}"
                )
                self._drop(job)
                self._queue.put_back(job.video)
            else:
                self._fail(job, reason, detail, stderr)
        decoder.close()
        if self._queue:
            self.decoders.fork(opener)

    def _receive_from_encoder(self, encoder: EncoderProcess) -> None:
        match encoder.receive():
            case ["free", slots]:
                encoder.pending -= len(slots)
                self.decoders.free_slots += slots
            case ["dropped", number]:
                self._dropped.pop(number).discard_file()
            case ["done", number, content, size, digest]:
                job = self._jobs[number]
                encoder.jobs -= 1
                self._close(job)
                if missing := self.options.expected_frames(job.video.duration) - job.frames:
                    self._progress(missing)
                frames, duration = job.facts["frames"], job.facts["duration"]
                extracted = ExtractedVideo(
                    job.video.video, frames, duration, job.damaged, content, size, digest
                )
                self._publishing[self._publisher.submit(job.publishing.close)] = extracted


def _of_them(engines: int) -> str:
    return f", {engines} of them on GPUs" if engines else ""
