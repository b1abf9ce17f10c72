"""What decides how one extraction runs, and the hashes that say when its results still hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

from assets.deployment.settings import Features
from model.config import PRESETS
from model.media.reading import RULES
from model.media.sampling import Sampling
from training.formats import layout
from training.formats.feature_file import FORMAT
from training.formats.hashing import hash_value

# How pictures are chosen and resized, in words. They are part of `config_hash`: whoever changes how
# it is done changes the words, and all features are made again.
SAMPLING: dict[Sampling, str] = {
    "one a second": "one frame a second, floor of linspace; by time where the rate varies",
    "as in training": "every round(fps)-th frame, or linspace; by time where the rate varies",
}
RESIZE = "uint8 antialiased bicubic, squashed to a square"

# Limits that only cost time or memory in all: no video decodes because of them that did not before.
NOT_DECISIVE = {"attempts", "recycle_after", "buffer_bytes"}

VideoLength = Literal["long", "short"]


class FeatureFiles(NamedTuple):
    """The feature files of long or of short videos.

    Attributes:
        folder: of a variant's files, below the root.
        sampling: how their frames are chosen.
    """

    folder: Callable[[str], str]
    sampling: Sampling


# A sample shows one frame a second of a long video's file, and of a short video's file all: those
# that training would decode.
FEATURE_FILES: dict[VideoLength, FeatureFiles] = {
    "long": FeatureFiles(layout.features, "one a second"),
    "short": FeatureFiles(layout.short_video_features, "as in training"),
}


@dataclass(frozen=True, slots=True)
class ExtractionOptions:
    """The deployment's settings together with the numbers of a preset.

    Attributes:
        settings: the deployment's `features` section.
        pooled_side: P = pooled_side**2 rows are kept of each picture.
        min_frames: pictures wanted of a video shorter than so many seconds, if it has them.
        devices: where encoders run, one on each ("cuda:0"). "auto" stands for every GPU there is,
            or else the CPU.
        sampling: how frames are chosen.
    """

    settings: Features
    pooled_side: int
    min_frames: int
    devices: tuple[str, ...]
    sampling: Sampling = "one a second"

    @staticmethod
    def of(settings: Features, preset: str, length: VideoLength = "long") -> ExtractionOptions:
        """The options of a preset under the deployment's settings."""
        memory = PRESETS[preset].memory
        return ExtractionOptions(
            settings,
            memory.pooled_side,
            memory.min_frames,
            (settings.device,),
            FEATURE_FILES[length].sampling,
        )

    def expected_frames(self, seconds: float) -> int:
        """About how many pictures a video of that length gives; for progress only."""
        return max(int(seconds), self.min_frames)

    def config_hash(self) -> str:
        """Hash of what shapes a feature file besides its encoder and its video. Files with another
        one are made again.

        Batch size, devices and decoder are not in it: they decide how fast, not what.
        """
        return hash_value(
            {
                "format": FORMAT,
                "sampling": SAMPLING[self.sampling],
                "min_frames": self.min_frames,
                "resize": RESIZE,
                "pooled_side": self.pooled_side,
            }
        )

    def decode_hash(self, source_sha256: str) -> str:
        """Hash of what decides whether a video can be decoded. A quarantined video with another one
        is tried again.

        Args:
            source_sha256: of the video's file.
        """
        limits: dict[str, Any] = self.settings.limits.model_dump(exclude=NOT_DECISIVE)
        return hash_value(
            {
                "limits": limits,
                "decoder": self.settings.decoder,
                "av": version("av"),
                "rules": RULES,
                "source": source_sha256,
            }
        )
