"""Videos as the model takes them: decoded and put through the vision encoder once, whatever is
asked about them.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from assets.inference.checkpoint import encoder_hash
from assets.inference.decoders import StretchFailed, VideoDecoders
from model.config import HourLlavaConfig
from model.hour_llava import HourLlava
from training.formats.feature_file import SUFFIX, FeatureFile

log = logging.getLogger(__name__)

MOST_DECODERS = 16  # processes for one video
CHUNK_FRAMES = 64  # frames that are decoded and encoded together
GREY = 128  # the middle of what a byte holds: a picture in which there is nothing to see


@dataclass(frozen=True, slots=True)
class VideoFeatures:
    """A video's features in memory, read like a feature file.

    Attributes:
        features_TPC: what stands before the projector: T frames of P tokens of width C.
        duration: seconds.
        damage: what is wrong with the video, for people; empty where nothing shows.
    """

    features_TPC: Tensor
    duration: float
    damage: str = ""

    @property
    def frames(self) -> int:
        return len(self.features_TPC)

    def read(self, indices: np.ndarray) -> Tensor:
        """Frames by index: [len(indices), P, C]; not a copy, half a gigabyte for an hour, where all
        are asked for.
        """
        if np.array_equal(indices, np.arange(self.frames)):
            return self.features_TPC
        return self.features_TPC[torch.as_tensor(indices)]


def encode_video(
    model: HourLlava, path: Path, decoders: VideoDecoders
) -> VideoFeatures | FeatureFile:
    """Features of a video file, made as `assets/features` makes them, or an opened feature file.

    The video is decoded and encoded in chunks: an hour of it takes the memory of its features and
    no more. Features are bfloat16, as in feature files. Where a GPU encodes, the host's cores
    decode a long video in several stretches at once; a damaged one is decoded from its beginning.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be decoded, too much of it is missing for features to be made
            of it, or it is not a feature file.
    """
    if path.suffix == SUFFIX:
        return FeatureFile(path)
    try:
        return _encode(model, path, decoders, _stretches(model))
    except StretchFailed as failure:
        log.info("%s; decoding all of it in one stretch", failure)
        return _encode(model, path, decoders, 1)


def _stretches(model: HourLlava) -> int:
    """Processes that decode one video: the host's cores where they have nothing else to do."""
    if model.image_newline.device.type != "cuda":
        return 1
    return max(1, min(MOST_DECODERS, len(os.sched_getaffinity(0)) - 1))


def _encode(model: HourLlava, path: Path, decoders: VideoDecoders, stretches: int) -> VideoFeatures:
    config = model.config
    size, min_frames = config.vision.image_size, config.memory.min_frames
    with decoders.decoding(path, size=size, min_frames=min_frames, stretches=stretches) as video:
        shape = (video.frames, config.memory.frame_tokens, config.vision.hidden_size)
        features_TPC = torch.empty(shape, dtype=torch.bfloat16)
        for places, frames_NSS3 in video.chunks(CHUNK_FRAMES):
            pixels_N3SS = torch.from_numpy(frames_NSS3).permute(0, 3, 1, 2)
            encoded = model.encode_frames(pixels_N3SS).to(torch.bfloat16).cpu()
            features_TPC[torch.tensor(places)] = encoded
        return VideoFeatures(features_TPC, video.duration, video.damage)


def grey_video(model: HourLlava, like: VideoFeatures | FeatureFile) -> VideoFeatures:
    """A video of the same length as `like` in which there is nothing to see."""
    size = model.config.vision.image_size
    pixels_13SS = torch.full((1, 3, size, size), GREY, dtype=torch.uint8)
    frame_1PC = model.encode_frames(pixels_13SS).to(torch.bfloat16).cpu()
    return VideoFeatures(frame_1PC.expand(like.frames, -1, -1), like.duration, like.damage)


def check_variant(file: FeatureFile, config: HourLlavaConfig) -> None:
    """Raise ValueError where a feature file is not of the model's variant."""
    expected = (config.memory.frame_tokens, config.vision.hidden_size)
    found = (file.header.tokens, file.header.width)
    if found != expected:
        raise ValueError(
            f"{file.path}: features of another variant: {found[0]} tokens a frame of width "
            f"{found[1]}, but this {config.variant} checkpoint takes {expected[0]} of width "
            f"{expected[1]}; give the file below features/{config.variant}/, or the video itself"
        )


def check_encoder(file: FeatureFile, export: Path) -> None:
    """Raise ValueError where a feature file names another vision encoder than the checkpoint's.

    Features mean nothing to a model whose encoder did not make them, even where the shape fits.
    """
    made_with = file.metadata.get("encoder")
    if made_with and made_with != encoder_hash(export):
        raise ValueError(
            f"{file.path}: features of another vision encoder than this checkpoint's (another "
            "variant, or another run of stage 2), which mean nothing to it; give the features of "
            "this run, or the video itself. If training used this encoder through the setting "
            "features.encoder, add --any-encoder"
        )
