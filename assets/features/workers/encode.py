"""What an encoding process does: pictures from the frame buffer through SigLIP into feature files.
There is one such process for each device.

Pictures of several videos share a batch of fixed size; the last batch, which nothing fills, is
padded. On a GPU three things run at once: the copy of the next pictures, the tower on this batch,
and the writing of the last batch's rows.

    coordinator -> encoder   ["buffer", side, slots] with the frame buffer's file
                             ["begin", job, frames, path]
                             ["frames", [[job, k, slot, seconds], ...]]
                             ["end", job, metadata]   ["drop", job]
                             ["flush"]                nothing more is coming for now
                             ["report"]               everything is done
    encoder -> coordinator   ["ready", facts]
                             ["free", [slot, ...]]    their pictures are on the device
                             ["done", job, content hash, bytes, hash of the file]
                             ["dropped", job]
                             ["stats", numbers]       the answer to "report"

Run as `python -m assets.features.workers.encode <descriptor> <options as JSON>`, with the options
device, encoder (a folder), pooled_side and batch_size.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assets.features.workers.connection import Connection
from assets.features.workers.frame_buffer import FrameBuffer
from assets.features.workers.frame_encoder import load_encoder
from assets.features.workers.tower import FrameBatch, VisionTower
from training.formats.feature_file import FeatureWriter

POLL_S = 0.002  # how often to look for finished copies while there are any
IDLE_POLL_S = 0.5


def main() -> None:
    """Serve the coordinator at the other end of the socket in `sys.argv[1]`."""
    connection = Connection.from_descriptor(int(sys.argv[1]))
    options = json.loads(sys.argv[2])
    wish = options["device"]
    gpus = torch.cuda.device_count() if wish in ("auto", "cuda") else 0
    if wish == "cuda" and not gpus:
        raise SystemExit("settings say features.device: cuda, but PyTorch sees no CUDA device here")
    device = "cuda:0" if gpus else "cpu" if wish == "auto" else wish
    encoder = load_encoder(Path(options["encoder"]))
    tower = VisionTower(encoder, options["pooled_side"], device, options["batch_size"])
    connection.send("ready", {**tower.facts(), "devices": max(1, gpus)})
    EncoderLoop(connection, tower).run()


@dataclass(slots=True)
class UnfinishedFile:
    """The feature file of one video while its rows are coming.

    Attributes:
        writer: of its rows.
        seconds: of each picture that came so far.
        metadata: of its header; None until all pictures have come.
    """

    writer: FeatureWriter
    seconds: list[float] = field(default_factory=list)
    metadata: dict[str, str] | None = None

    @property
    def complete(self) -> bool:
        """Whether all rows are written and the header is known."""
        return self.metadata is not None and self.writer.written == self.writer.shape[0]


@dataclass(slots=True)
class EncoderLoop:
    """Takes messages, fills batches, hands results to the writing thread.

    Attributes:
        connection: to the coordinator.
        tower: computes.
        buffer: where pictures come from; the first message brings it.
        files: by the number of their job. The writing thread uses them too: take `lock`.
        batch: the one being filled, if any.
        rows: job and k of each picture in that batch.
        copies: copies to the device that are under way: an event, and the slots it will free.
        launched: batches being computed, with their `rows`.
        errors: of the writing thread; `run` raises the first.
    """

    connection: Connection
    tower: VisionTower
    buffer: FrameBuffer | None = None
    files: dict[int, UnfinishedFile] = field(default_factory=dict)
    batch: FrameBatch | None = None
    rows: list[tuple[int, int]] = field(default_factory=list)
    copies: deque[tuple[Any, list[int]]] = field(default_factory=deque)
    launched: queue.Queue[tuple[FrameBatch, list[tuple[int, int]]]] = field(
        default_factory=queue.Queue
    )
    lock: threading.Lock = field(default_factory=threading.Lock)
    errors: list[BaseException] = field(default_factory=list)

    def run(self) -> None:
        """Serve until the coordinator closes the connection, which ends the process."""
        inbox: queue.Queue[tuple[list[Any], list[int]]] = queue.Queue()
        threading.Thread(target=self._receive, args=(inbox,), daemon=True).start()
        threading.Thread(target=self._write_rows, daemon=True).start()
        while True:
            try:
                item = inbox.get(timeout=POLL_S if self.copies else IDLE_POLL_S)
            except queue.Empty:
                item = None
            if item is not None:
                self._handle(*item)
            self._free_slots()
            if self.errors:
                raise self.errors[0]

    def _receive(self, inbox: queue.Queue[Any]) -> None:
        """The receiving thread. It ends the process when the coordinator is done or was killed:
        nobody is left to publish what we make.
        """
        while True:
            message, files = self.connection.receive_with_files()
            if message is None:
                os._exit(0)
            inbox.put((message, files))

    def _handle(self, message: list[Any], files: list[int]) -> None:
        match message:
            case ["frames", frames]:
                self._load(frames)
            case ["begin", job, frames, path]:
                writer = FeatureWriter(Path(path), frames, self.tower.tokens, self.tower.width)
                with self.lock:
                    self.files[job] = UnfinishedFile(writer)
            case ["end", job, metadata]:
                with self.lock:
                    self.files[job].metadata = metadata
                    complete = self.files[job].complete
                if complete:
                    self._finish(job)
            case ["drop", job]:
                with self.lock:
                    self.files.pop(job).writer.close()
                self.connection.send("dropped", job)
            case ["flush"]:
                self._launch()
            case ["report"]:
                self.connection.send("stats", self.tower.stats())
            case ["buffer", side, slots]:
                self.buffer = FrameBuffer(files[0], side, slots)
                self.tower.register(self.buffer)
            case _:
                raise ValueError(f"unknown message {message[:1]}")

    def _load(self, frames: list[list[Any]]) -> None:
        """Copy pictures out of their slots into the batch; a full batch is launched."""
        assert self.buffer is not None
        slots: list[int] = []
        for job, k, slot, seconds in frames:
            slots.append(slot)
            with self.lock:
                file = self.files.get(job)
            if file is None:  # the job was dropped meanwhile
                continue
            file.seconds.append(seconds)
            if self.batch is None:
                self.batch = self._free_batch()
            self.tower.load(self.batch, len(self.rows), self.buffer.pictures[slot])
            self.rows.append((job, k))
            if len(self.rows) == self.tower.batch_size:
                self._launch()
        self.copies.append((self.tower.copied(), slots))
        self._free_slots()

    def _free_batch(self) -> FrameBatch:
        """A batch that nobody uses, waiting for one; slots are given back meanwhile."""
        while True:
            try:
                return self.tower.free.get(timeout=POLL_S)
            except queue.Empty:
                self._free_slots()
                if self.errors:
                    raise self.errors[0] from None

    def _launch(self) -> None:
        """Compute the batch as it is."""
        if self.batch is not None:
            self.tower.launch(self.batch, len(self.rows))
            self.launched.put((self.batch, self.rows))
            self.batch, self.rows = None, []

    def _free_slots(self) -> None:
        """Give slots back whose pictures are on the device."""
        freed: list[int] = []
        while self.copies and (self.copies[0][0] is None or self.copies[0][0].query()):
            freed += self.copies.popleft()[1]
        if freed:
            self.connection.send("free", freed)

    def _write_rows(self) -> None:
        """The writing thread: rows of computed batches into the files of their videos."""
        while not self.errors:
            batch, rows = self.launched.get()
            try:
                values = self.tower.result(batch)
                start = 0
                for stop in range(1, len(rows) + 1):
                    if stop == len(rows) or rows[stop][0] != rows[start][0]:
                        self._append(rows[start][0], rows[start][1], values[start:stop])
                        start = stop
                self.tower.free.put(batch)
            except BaseException as error:
                self.errors.append(error)  # run() raises it

    def _append(self, job: int, k: int, values: np.ndarray) -> None:
        """Write rows k, k+1, ... of a video: uint16 [rows, P, C]."""
        with self.lock:
            file = self.files.get(job)
            if file is None:  # the job was dropped meanwhile
                return
            if file.writer.written != k:
                raise RuntimeError(
                    f"{file.writer.path}: row {k} came after {file.writer.written} rows"
                )
            file.writer.write(values)
            complete = file.complete
        if complete:
            self._finish(job)

    def _finish(self, job: int) -> None:
        """Write a file's header. Either thread may be the one that sees it complete."""
        with self.lock:
            file = self.files.pop(job, None)
        if file is not None and file.metadata is not None:
            header = file.writer.finish(np.array(file.seconds, np.float32), file.metadata)
            self.connection.send("done", job, header.content, header.bytes, file.writer.file_hash)


if __name__ == "__main__":
    main()
