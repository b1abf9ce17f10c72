"""Videos of questions as the model takes them: decoded and encoded once, whatever is asked about
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from training.formats.feature_file import SUFFIX, open_features

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from model.hour_llava import HourLlava
    from model.processor import StoredFeatures

CHUNK_FRAMES = 64
GREY = 128


@dataclass(frozen=True, slots=True)
class EncodedVideo:
    """A video's features in memory, read like a feature file: ``features_TPC`` is what stands
    before the projector.
    """

    features_TPC: Tensor
    duration: float

    @property
    def frames(self) -> int:
        return len(self.features_TPC)

    def read(self, indices: np.ndarray) -> Tensor:
        import torch

        return self.features_TPC[torch.as_tensor(indices)]


def encode_video(model: HourLlava, path: Path) -> StoredFeatures:
    """Features of a video file, made as ``assets/features`` makes them, or an opened feature file.

    Decoding and encoding go on in chunks: an hour takes the memory of its features and no more.
    Features are kept in bfloat16, as feature files hold them.

    Raises:
        ValueError: the file cannot be decoded, or is not a feature file.
    """
    import numpy as np
    import torch

    from model.media.reader import decode, feature_frame_indices, timeline

    if path.suffix == SUFFIX:
        return open_features(path)
    line = timeline(path)
    chosen = feature_frame_indices(line, min_frames=model.config.memory.min_frames)
    frames = decode(line, chosen, size=model.config.vision.image_size)
    parts = []
    while chunk := list(islice(frames, CHUNK_FRAMES)):
        pixels_T3SS = torch.from_numpy(np.stack(chunk)).permute(0, 3, 1, 2)
        parts.append(model.encode_frames(pixels_T3SS).to(torch.bfloat16).cpu())
    return EncodedVideo(torch.cat(parts), line.duration)


def grey_video(model: HourLlava, like: StoredFeatures) -> EncodedVideo:
    """A video of the same length in which there is nothing to see."""
    import torch

    size = model.config.vision.image_size
    frame_TPC = (
        model.encode_frames(torch.full((1, 3, size, size), GREY, dtype=torch.uint8))
        .to(torch.bfloat16)
        .cpu()
    )
    return EncodedVideo(frame_TPC.expand(like.frames, -1, -1), like.duration)
