"""The encoder's side: pictures from the ring through SigLIP into feature files. One process for
each device.

Pictures of several videos share a batch of fixed size; a batch that cannot be filled is padded. On
a GPU three things run at once: the copy of the next pictures, the tower on this batch, and the
writing of the last batch's rows.

    coordinator -> encoder   ["ring", slots] with the ring's file
                             ["begin", job, frames, path]
                             ["frames", [[job, k, slot, seconds], ...]]
                             ["end", job, metadata]   ["drop", job]
                             ["flush"]                               nothing more is coming for now
                             ["report"]                              everything is done
    encoder -> coordinator   ["ready", facts]   ["free", [slot, ...]]   ["done", job, content hash, bytes]
                             ["dropped", job]
                             ["stats", numbers]                      the answer to "report"

Run as ``python -m assets.features.encode <descriptor> <json options>``.
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

from assets.features.channel import Channel
from assets.features.ring import Ring
from assets.features.tower import Batch, Tower, load_encoder
from training.formats.feature_file import FeatureWriter

POLL_S = 0.002


@dataclass(slots=True)
class Job:
    """One video on its way into its file."""

    writer: FeatureWriter
    seconds: list[float] = field(default_factory=list)
    metadata: dict[str, str] | None = None


@dataclass(slots=True)
class Encoder:
    """Takes messages, fills batches, hands results to the writing thread."""

    channel: Channel
    tower: Tower
    ring: Ring | None = None
    jobs: dict[int, Job] = field(default_factory=dict)
    rows: list[tuple[int, int]] = field(
        default_factory=list
    )  # (job, k) of each picture in the batch being filled
    batch: Batch | None = None
    copies: deque[tuple[Any, list[int]]] = field(
        default_factory=deque
    )  # events and the slots they will free
    finished: queue.Queue[tuple[Batch, list[tuple[int, int]]]] = field(default_factory=queue.Queue)
    lock: threading.Lock = field(
        default_factory=threading.Lock
    )  # jobs are touched by the writing thread too
    errors: list[BaseException] = field(default_factory=list)

    def run(self) -> None:
        """Serve until the coordinator closes the channel, which ends the process."""
        inbox: queue.Queue[tuple[list[Any], list[int]]] = queue.Queue()
        threading.Thread(target=self._receive, args=(inbox,), daemon=True).start()
        threading.Thread(target=self._write, daemon=True).start()
        while True:
            try:
                item = inbox.get(timeout=POLL_S if self.copies else 0.5)
            except queue.Empty:
                item = None
            if item is not None:
                self._handle(*item)
            self._free_slots()
            if self.errors:
                raise self.errors[0]

    def _receive(self, inbox: queue.Queue[Any]) -> None:
        while True:
            message, files = self.channel.receive_files()
            if (
                message is None
            ):  # the coordinator is done, or was killed: nobody is left to publish what we make
                os._exit(0)
            inbox.put((message, files))

    def _handle(self, message: list[Any], files: list[int]) -> None:
        match message:
            case ["frames", frames]:
                self._take(frames)
            case ["begin", job, frames, path]:
                with self.lock:
                    self.jobs[job] = Job(
                        FeatureWriter(Path(path), frames, self.tower.tokens, self.tower.width)
                    )
            case ["end", job, metadata]:
                with self.lock:
                    self.jobs[job].metadata = metadata
                    complete = self.jobs[job].writer.written == self.jobs[job].writer.shape[0]
                if complete:
                    self._finish(job)
            case ["drop", job]:
                with self.lock:
                    self.jobs.pop(job).writer.close()
                self.channel.send("dropped", job)
            case ["flush"]:
                self._launch()
            case ["report"]:
                self.channel.send("stats", self.tower.stats())
            case ["ring", side, slots]:
                self.ring = Ring(files[0], side, slots)
                self.tower.register(self.ring)
            case _:
                raise ValueError(f"unknown message {message[:1]}")

    def _take(self, frames: list[list[Any]]) -> None:
        """Copy pictures out of their slots into the batch; a full batch is launched."""
        assert self.ring is not None
        slots: list[int] = []
        for job, k, slot, seconds in frames:
            slots.append(slot)
            with self.lock:
                alive = self.jobs.get(job)
            if alive is None:  # dropped meanwhile
                continue
            alive.seconds.append(seconds)
            if self.batch is None:
                self.batch = self._free_batch()
            self.tower.load(self.batch, len(self.rows), self.ring.pictures[slot])
            self.rows.append((job, k))
            if len(self.rows) == self.tower.batch_size:
                self._launch()
        self.copies.append((self.tower.copied(), slots))
        self._free_slots()

    def _free_batch(self) -> Batch:
        while True:
            try:
                return self.tower.free.get(timeout=POLL_S)
            except queue.Empty:
                self._free_slots()
                if self.errors:
                    raise self.errors[0] from None

    def _launch(self) -> None:
        if self.batch is not None:
            self.tower.launch(self.batch, len(self.rows))
            self.finished.put((self.batch, self.rows))
            self.batch, self.rows = None, []

    def _free_slots(self) -> None:
        """Give slots back whose pictures are on the device."""
        freed: list[int] = []
        while self.copies and (self.copies[0][0] is None or self.copies[0][0].query()):
            freed += self.copies.popleft()[1]
        if freed:
            self.channel.send("free", freed)

    def _write(self) -> None:
        """The writing thread: rows of finished batches into the files of their videos."""
        while not self.errors:
            batch, rows = self.finished.get()
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

    def _append(self, name: int, k: int, values: np.ndarray) -> None:
        with self.lock:
            job = self.jobs.get(name)
            if job is None:
                return
            if job.writer.written != k:
                raise RuntimeError(
                    f"{job.writer.path}: row {k} came after {job.writer.written} rows"
                )
            job.writer.write(values)
            complete = job.metadata is not None and job.writer.written == job.writer.shape[0]
        if complete:
            self._finish(name)

    def _finish(self, name: int) -> None:
        with self.lock:
            job = self.jobs.pop(name, None)
        if job is not None and job.metadata is not None:
            header = job.writer.finish(np.array(job.seconds, np.float32), job.metadata)
            self.channel.send("done", name, header.content, header.bytes)


def main() -> None:
    channel = Channel.inherited(int(sys.argv[1]))
    options = json.loads(sys.argv[2])
    wish = options["device"]
    gpus = torch.cuda.device_count() if wish in ("auto", "cuda") else 0
    if wish == "cuda" and not gpus:
        raise SystemExit("settings say features.device: cuda, but PyTorch sees no CUDA device here")
    device = "cuda:0" if gpus else "cpu" if wish == "auto" else wish
    encoder = load_encoder(Path(options["encoder"]))
    tower = Tower(encoder, options["pooled_side"], device, options["batch_size"])
    channel.send("ready", {**tower.facts(), "devices": max(1, gpus)})
    Encoder(channel, tower).run()


if __name__ == "__main__":
    main()
