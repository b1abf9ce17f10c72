"""What passes through an extraction: a video becomes a job, and a job has one outcome."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from assets.annotations.catalogue import PresentVideo
from assets.features.workers.processes import EncoderProcess
from training.formats import layout
from training.formats.receipts import FileEntry


@dataclass(slots=True)
class VideoJob:
    """One video between its decoder and its feature file.

    Attributes:
        number: never used twice.
        video: whose features are made.
        local: its file on this machine.
        encoder: where its pictures go; None until the decoder has opened the file.
        facts: what the decoder said of the file when it opened it.
        publishing: ends the writing of the feature file: it is published when this is closed.
        damaged: whether something of it did not decode.
        frames: pictures that came so far.
    """

    number: int
    video: PresentVideo
    local: Path
    encoder: EncoderProcess | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    publishing: ExitStack = field(default_factory=ExitStack)
    damaged: bool = False
    frames: int = 0

    def header(self, common: dict[str, str], stats: dict[str, float]) -> dict[str, str]:
        """Metadata of its feature file.

        Args:
            common: what every feature file of this extraction says.
            stats: what went wrong while decoding, by name.
        """
        facts = {name: str(value) for name, value in self.facts.items() if name != "frames"}
        counts = {name: f"{count:g}" for name, count in stats.items()}
        own = {
            "video": self.video.video,
            "source_sha256": self.video.sha256,
            "damaged": str(int(self.damaged)),
        }
        return {**common, **facts, **counts, **own}

    def discard_file(self) -> None:
        """Remove the unfinished feature file instead of publishing it."""
        with suppress(NotPublished), self.publishing:
            raise NotPublished(self.video.video)


class NotPublished(Exception):
    """Raised inside `Storage.writing`, which then removes the file instead of publishing it."""


class ExtractedVideo(NamedTuple):
    """A video whose feature file is published.

    Attributes:
        video: `<source>/<id>`, or a short video's path.
        frames: rows of the file.
        duration: seconds, as the decoder measured them.
        damaged: whether something of it did not decode.
        content: hash of the file's content.
        bytes: of the file.
        hash: of the whole file, as receipts have it.
    """

    video: str
    frames: int
    duration: float
    damaged: bool
    content: str
    bytes: int
    hash: str

    def entry(self, folder: str) -> FileEntry:
        """The feature file, in its folder of features, as a receipt lists it."""
        return FileEntry(layout.feature_file(folder, self.video), self.bytes, self.hash)


class FailedVideo(NamedTuple):
    """A video that gave no features.

    Attributes:
        video: whose features were to be made.
        reason: a key of the `REASONS` of `model.media.refusals` or of
            `assets.features.quarantine`.
        detail: for people.
        stderr: what its decoder wrote there, where the decoder died.
    """

    video: PresentVideo
    reason: str
    detail: str
    stderr: str = ""


@dataclass(slots=True)
class ExtractionUsage:
    """Sums for the table of throughput.

    Attributes:
        started, finished: time of the first fork and of the last outcome.
        frames: pictures decoded.
        on_gpu: those of them that a GPU's video engine decoded.
        decode_cpu_s: CPU time of decoders.
        decode_busy_s: their time, less what they waited for slots.
        decoder_bytes: most memory that one of them used.
        buffer_used: pictures waiting for encoders, summed over `buffer_samples` looks.
        progress: seconds and pictures decoded until then, at each look.
        encoders: what each encoder counted.
    """

    started: float = 0.0
    finished: float = 0.0
    frames: int = 0
    on_gpu: int = 0
    decode_cpu_s: float = 0.0
    decode_busy_s: float = 0.0
    decoder_bytes: int = 0
    buffer_used: int = 0
    buffer_samples: int = 0
    progress: list[tuple[float, int]] = field(default_factory=list)
    encoders: list[dict[str, float]] = field(default_factory=list)

    def settled_fps(self) -> float:
        """Pictures a second between the first and the last tenth of them, without the start, and
        without the end, when some decoders have nothing left to do; 0 if that was too short to say.
        """
        middle = [
            (seconds, pictures)
            for seconds, pictures in self.progress
            if self.frames <= 10 * pictures <= 9 * self.frames
        ]
        if len(middle) < 2 or middle[-1][0] <= middle[0][0]:
            return 0.0
        return (middle[-1][1] - middle[0][1]) / (middle[-1][0] - middle[0][0])
