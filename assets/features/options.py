"""What an extraction is told: the deployment's choices, the variant's numbers, and what a video may cost at most."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from assets.lineage import hash_value
from model.config import PRESETS
from training.features import FORMAT

if TYPE_CHECKING:
    from assets.settings import Features

SAMPLING = "one frame a second, floor of linspace; by time where the rate varies"
RESIZE = "uint8 antialiased bicubic, squashed to a square"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one video may cost before it is given up.

    Attributes:
        max_pixels: width x height, checked before anything is decoded.
        max_frames: frames kept; four hours at one a second.
        memory_bytes: of a decoding process (RLIMIT_DATA).
        stall_s: seconds without a picture, while there is room for one, after the first pass.
        deadline_s: seconds for a whole video, waiting excluded, or half its duration where that is more.
        attempts: runs that try a video again after a timeout, a crash or memory running out.
        recycle_after: videos after which a decoding process is replaced.
        ring_bytes: most memory for pictures on their way from decoders to encoders.
    """

    max_pixels: int = 4096 * 2304
    max_frames: int = 4 * 3600
    memory_bytes: int = 3 << 30
    stall_s: float = 30.0
    deadline_s: float = 120.0
    attempts: int = 3
    recycle_after: int = 200
    ring_bytes: int = 2 << 30


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that shapes one extraction; see :class:`assets.settings.Features` for the first four.

    Attributes:
        devices: where encoders run, one on each ("cuda:0"); "auto" stands for every GPU there is, or else the CPU.
        pooled_side, min_frames: the variant's.
    """

    decode_workers: int = 2
    batch_size: int = 64
    decoder: str = "auto"
    damaged: str = "use"
    devices: tuple[str, ...] = ("auto",)
    pooled_side: int = 8
    min_frames: int = 128
    limits: Limits = Limits()

    @staticmethod
    def of(settings: Features, variant: str, limits: Limits) -> Options:
        """The options of a variant under the deployment's settings."""
        memory = PRESETS[variant].memory
        return Options(
            settings.decode_workers,
            settings.batch_size,
            settings.decoder,
            settings.damaged,
            (settings.device,),
            memory.pooled_side,
            memory.min_frames,
            limits,
        )

    def expected_frames(self, seconds: float) -> int:
        """About how many frames a video of that length gives; for progress only."""
        return max(int(seconds), self.min_frames)

    def config_hash(self) -> str:
        """Of what shapes a feature file besides encoder and video. Files with another one are made again.

        Batch size, devices and decoder are not in it: they decide how fast, not what.
        """
        return hash_value(
            {
                "format": FORMAT,
                "sampling": SAMPLING,
                "min_frames": self.min_frames,
                "resize": RESIZE,
                "pooled_side": self.pooled_side,
            }
        )

    def decode_hash(self, source_sha256: str) -> str:
        """Of what decides whether a video can be decoded. A quarantined video with another one is tried again."""
        facts: dict[str, Any] = asdict(self.limits)
        for costs_only in ("attempts", "recycle_after", "ring_bytes"):
            del facts[costs_only]
        return hash_value({"limits": facts, "decoder": self.decoder, "av": version("av"), "source": source_sha256})
