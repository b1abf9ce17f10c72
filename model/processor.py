r"""Messages and what they are about -> model inputs. Training and generation go through this one
class.

    processor = Processor(config, tokenizer)
    question = [{"from": "human", "value": "<image>\nWho speaks first?"}]
    processor.video("talk.mp4", question, add_generation_prompt=True)

Videos become frames (or stored features) and a prompt that says how long they are; one image
becomes a square and tiles; several become padded squares; text stays text. Pixels are uint8: the
model normalises them on its device.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from model import images as pictures
from model.config import HourLlavaConfig
from model.conversation import Conversations, tokenize_seen, video_prompt
from model.images import ImageSource, load_image, refuse_address
from model.inputs import SampleInputs, Visual, anyres_layout, check
from model.media.damage import damage_counts, describe_damage, refuse_too_corrupt
from model.media.reader import read
from model.media.resize import resize_frame
from model.media.sampling import stored_frame_indices, training_frame_indices
from model.media.timeline import read_timeline


class StoredFeatures(Protocol):
    """A feature file, opened: `frames` of it, for a video of `duration` seconds, read in part."""

    @property
    def frames(self) -> int: ...

    @property
    def duration(self) -> float: ...

    def read(self, indices: np.ndarray) -> Tensor: ...  # [len(indices), pooled tokens, channels]


class Naming(TypedDict, total=False):
    id: str
    seed: int | None
    add_generation_prompt: bool


# A file, frames [T, H, W, 3] uint8 (or a list of pictures), or stored features.
VideoSource = str | os.PathLike[str] | np.ndarray | Tensor | list[ImageSource] | StoredFeatures


@dataclass(frozen=True, slots=True)
class ReadVideo:
    """A video's frames or features, its seconds, and what is wrong with it, for people."""

    visual: Visual
    duration: float
    damage: str = ""


class Processor:
    """Everything that a sample goes through on the CPU, for one model configuration and its
    tokenizer.

    All methods take `conversations`, turns of `{"from": "human" | "gpt", "value": text}` with one
    `<image>` for each visual, perhaps after one from "system", and return `SampleInputs`. `id`
    names the sample in errors; `seed` decides random forgetting; `add_generation_prompt` ends the
    prompt where an answer begins. They raise ValueError for input that cannot be used.
    """

    def __init__(self, config: HourLlavaConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config = config
        self.tokenizer = tokenizer

    def sample(
        self,
        conversations: Conversations,
        *,
        images: Sequence[ImageSource] = (),
        video: VideoSource | None = None,
        duration: float | None = None,
        id: str = "",
        seed: int | None = None,
        add_generation_prompt: bool = False,
    ) -> SampleInputs:
        """Whatever the sample is about: a video, one image, several images, or nothing but text."""
        named: Naming = {"id": id, "seed": seed, "add_generation_prompt": add_generation_prompt}
        if video is not None and len(images):
            raise ValueError(
                f"sample {id!r}: a video and {len(images)} images; a sample is about one or the "
                "other"
            )
        if video is not None:
            return self.video(video, conversations, duration=duration, **named)
        if len(images) == 1:
            return self.image(images[0], conversations, **named)
        if images:
            return self.images(images, conversations, **named)
        return self.text(conversations, **named)

    def text(self, conversations: Conversations, **named: Unpack[Naming]) -> SampleInputs:
        return self._finish(conversations, [], **named)

    def image(
        self, image: ImageSource, conversations: Conversations, **named: Unpack[Naming]
    ) -> SampleInputs:
        """One image: the whole of it squashed into a square, and the tiles of the grid that suits
        its shape.
        """
        picture = load_image(image)
        layout = anyres_layout(picture.size, self.config)
        visual = Visual("anyres", pixels=pictures.anyres(picture, layout), image_size=picture.size)
        return self._finish(conversations, [visual], **named)

    def images(
        self, images: Sequence[ImageSource], conversations: Conversations, **named: Unpack[Naming]
    ) -> SampleInputs:
        """Several images, each padded to a square; the n-th `<image>` stands for the n-th image."""
        if not len(images):
            raise ValueError(f"sample {named.get('id', '')!r}: no images; text() takes text alone")
        size = self.config.vision.image_size
        squares = [pictures.padded_square(load_image(image), size) for image in images]
        return self._finish(conversations, [Visual("images", pixels=torch.stack(squares))], **named)

    def video(
        self,
        video: VideoSource,
        conversations: Conversations,
        *,
        duration: float | None = None,
        **named: Unpack[Naming],
    ) -> SampleInputs:
        """A video file (its frames are chosen here), frames uint8 [T, H, W, 3] or a list of
        pictures, of a video of `duration` seconds (all are used), or stored features (one frame a
        second is used).
        """
        return self.about(self.read_video(video, duration), conversations, **named)

    def read_video(self, video: VideoSource, duration: float | None = None) -> ReadVideo:
        """The frames of a video, for any number of conversations: see `about`."""
        if isinstance(video, str | os.PathLike):
            return self._decoded(video)
        if isinstance(video, np.ndarray | Tensor | list):
            return self._given(video, duration)
        indices = stored_frame_indices(video.frames, video.duration)
        return ReadVideo(Visual("features", features=video.read(indices)), video.duration)

    def about(
        self, video: ReadVideo, conversations: Conversations, **named: Unpack[Naming]
    ) -> SampleInputs:
        """A sample about a video that was read before. Samples about one share its memory."""
        shown = video.visual.tensor
        assert shown is not None
        seconds = video.duration
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(
                f"sample {named.get('id', '')!r}: a video cannot last {seconds} seconds"
            )
        prompted = video_prompt(conversations, duration=seconds, frames=len(shown))
        sample = self._finish(prompted, [video.visual], **named)
        sample.damage = video.damage
        return sample

    def _decoded(self, path: str | os.PathLike[str]) -> ReadVideo:
        refuse_address(path)
        line = read_timeline(path)
        chosen = training_frame_indices(line, min_frames=self.config.memory.min_frames)
        decoded = read(line, chosen, size=self.config.vision.image_size)
        refuse_too_corrupt(line, decoded.report, len(chosen))
        damage = describe_damage(damage_counts(line, decoded.report))
        visual = Visual("frames", pixels=_channels_first(decoded.frames_THWC))
        return ReadVideo(visual, line.duration, damage)

    def _given(
        self, frames: np.ndarray | Tensor | list[ImageSource], duration: float | None
    ) -> ReadVideo:
        frames_THWC: np.ndarray | list[np.ndarray]
        if isinstance(frames, np.ndarray | Tensor):
            frames_THWC = np.asarray(frames)
            if (
                frames_THWC.dtype != np.uint8
                or frames_THWC.ndim != 4
                or frames_THWC.shape[-1] != 3
                or not len(frames_THWC)
            ):
                raise ValueError(
                    f"frames must be uint8 [T, H, W, 3], not {frames_THWC.dtype} "
                    f"{list(frames_THWC.shape)}"
                )
        else:
            frames_THWC = [np.asarray(load_image(frame)) for frame in frames]  # of any sizes
            if not frames_THWC:
                raise ValueError("a video without frames")
        if duration is None:
            raise ValueError(
                "frames alone do not say how long the video lasts; give its duration in seconds"
            )
        size = self.config.vision.image_size
        squares_THWC = np.stack([resize_frame(frame, size) for frame in frames_THWC])
        return ReadVideo(Visual("frames", pixels=_channels_first(squares_THWC)), duration)

    def _finish(
        self,
        conversations: Conversations,
        visuals: list[Visual],
        *,
        id: str = "",
        seed: int | None = None,
        add_generation_prompt: bool = False,
    ) -> SampleInputs:
        try:
            input_ids, labels, seen = tokenize_seen(
                conversations,
                self.tokenizer,
                add_generation_prompt=add_generation_prompt,
                visuals=bool(visuals),
            )
        except ValueError as error:
            raise ValueError(f"sample {id!r}: {error}") from error
        shown = seen if self.config.template_tokens == "seen" else None
        sample = SampleInputs(id, input_ids, labels, visuals, seed, shown=shown)
        check(sample, self.config)
        return sample


def _channels_first(frames_THWC: np.ndarray) -> Tensor:
    return torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)
