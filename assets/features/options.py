"""What an extraction is told: the deployment's choices and the variant's numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from assets.deployment.settings import Features, Limits
from model.config import PRESETS
from training.formats.feature_file import FORMAT
from training.formats.hashing import hash_value

SAMPLING = "one frame a second, floor of linspace; by time where the rate varies"
RESIZE = "uint8 antialiased bicubic, squashed to a square"


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that shapes one extraction; see :class:`assets.deployment.settings.Features` for
    the first four and the limits.

    Attributes:
        devices: where encoders run, one on each ("cuda:0"); "auto" stands for every GPU there is,
            or else the CPU.
        pooled_side, min_frames: the variant's.
    """

    decode_workers: int = 2
    batch_size: int = 64
    decoder: str = "auto"
    damaged: str = "use"
    devices: tuple[str, ...] = ("auto",)
    pooled_side: int = 8
    min_frames: int = 128
    limits: Limits = field(default_factory=Limits)

    @staticmethod
    def of(settings: Features, variant: str) -> Options:
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
            settings.limits,
        )

    def expected_frames(self, seconds: float) -> int:
        """About how many frames a video of that length gives; for progress only."""
        return max(int(seconds), self.min_frames)

    def config_hash(self) -> str:
        """Of what shapes a feature file besides encoder and video. Files with another one are made
        again.

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
        """Of what decides whether a video can be decoded. A quarantined video with another one is
        tried again.
        """
        # What only costs time or memory in all does not count.
        facts: dict[str, Any] = self.limits.model_dump(
            exclude={"attempts", "recycle_after", "ring_bytes"}
        )
        return hash_value(
            {"limits": facts, "decoder": self.decoder, "av": version("av"), "source": source_sha256}
        )
