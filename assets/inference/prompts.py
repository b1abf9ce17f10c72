"""What is asked: a video that was read, a prompt, and the turns of a conversation."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from assets.inference.videos import VideoFeatures
from model.inputs import SampleInputs
from model.options import AskOptions

AS_TRAINED = AskOptions()


@dataclass(frozen=True, slots=True)
class RememberedVideo(VideoFeatures):
    """A video that can be asked about.

    Attributes:
        features_TPC: the frames that the model sees, one a second, on the host.
        duration: seconds.
        damage: what is wrong with the video, for people; empty where nothing shows.
        memory_ND: what the model keeps of them, on its device.
    """

    memory_ND: Tensor = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that ends where the answer begins.

    Attributes:
        inputs: token ids, and the visuals behind the placeholders.
        memory_ND: the memory of the visuals; None for text alone.
        options: how it is asked.
    """

    inputs: SampleInputs
    memory_ND: Tensor | None
    options: AskOptions = AS_TRAINED


@dataclass(frozen=True, slots=True)
class Said:
    """One turn of a conversation: its text, and the number of images that came with it."""

    text: str
    images: int = 0
