"""Questions about one video: its memory is made once, and stays with the model for every further
question.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from assets.inference.checkpoint import encoder_hash, load_checkpoint, tell, usable_checkpoint
from assets.inference.likelihood import Reading
from assets.inference.videos import EncodedVideo, encode_video
from training.formats.feature_file import FeatureFile

if TYPE_CHECKING:
    from model.config import HourLlavaConfig

# What a character decodes to while some of its bytes are still to come.
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(slots=True)
class Timing:
    """Seconds that each part took; of the question asked last where it is about one.

    Attributes:
        load: the checkpoint.
        video: decoding, encoding and laying out the memory, which happens once.
        first_token: from the question to the first token: MemAug looks the memory up for this
            question, and the language model reads the prompt.
        answer: from the question to the end of its answer, of so many ``tokens``.
    """

    load: float = 0.0
    video: float = 0.0
    first_token: float = 0.0
    answer: float = 0.0
    tokens: int = 0


class VideoConversation:
    """One video and a checkpoint that is asked about it.

    Each question stands for itself: what was asked before is not part of the prompt. What stays is
    the memory, on the model's device; looking it up depends on the question and is done anew.

    Args:
        checkpoint: an export folder, or a released checkpoint.
        video: a video file, or a feature file of the same variant and vision encoder.
        device: ``auto``, ``cpu`` or ``cuda``.
        any_encoder: also take features that another vision encoder made.

    Raises:
        ValueError: not a checkpoint; a video that cannot be decoded; features that the checkpoint
            cannot use.
        FileNotFoundError: no such video or checkpoint.
    """

    def __init__(
        self, checkpoint: Path, video: Path, device: str = "auto", *, any_encoder: bool = False
    ) -> None:
        if not video.exists():
            raise FileNotFoundError(f"{video}: no such file")
        import torch

        from model.inputs import Visual
        from model.media.reader import stored_frame_indices

        started = time.perf_counter()
        export = usable_checkpoint(checkpoint, tell)
        self.model, self.processor = load_checkpoint(export, device)
        loaded = time.perf_counter()
        stored = encode_video(self.model.model, video)
        if isinstance(stored, FeatureFile):
            _check_features(stored, export, self.processor.config, any_encoder)
        shown = stored.read(stored_frame_indices(stored.frames, stored.duration))
        # Kept beside the memory, on the host, for what prompts say about the video: its frames and
        # its duration.
        self.video = EncodedVideo(shown, stored.duration)
        with torch.inference_mode():
            self.memory_ND = self.model.model.remember(Visual("features", features=shown))
        self.timing = Timing(load=loaded - started, video=time.perf_counter() - loaded)

    def ask(self, question: str, longest: int = 512) -> Iterator[str]:
        """The answer in pieces, as they come; joined they are the whole text. Greedy, hence always
        the same.

        Raises:
            ValueError: an empty question, or one that is too long.
        """
        if not question.strip():
            raise ValueError("the question is empty")
        started = time.perf_counter()
        turn = {"from": "human", "value": f"<image>\n{question}"}
        sample = self.processor.video(self.video, [turn], id="question", add_generation_prompt=True)
        reading = Reading(self.model, [sample], self.memory_ND)
        written: list[int] = []
        shown = ""
        for [token] in reading.tokens(longest):
            if not written:
                self.timing.first_token = time.perf_counter() - started
            if token == reading.end:
                break
            written.append(token)
            text = self.processor.tokenizer.decode(written, skip_special_tokens=True)
            if not text.endswith(UNFINISHED):
                yield text[len(shown) :]
                shown = text
        rest = self.processor.tokenizer.decode(written, skip_special_tokens=True)[len(shown) :]
        if rest:  # the answer stopped in the middle of a character
            yield rest
        self.timing.answer, self.timing.tokens = time.perf_counter() - started, len(written)


def _check_features(
    file: FeatureFile, export: Path, config: HourLlavaConfig, any_encoder: bool
) -> None:
    """Features have no meaning to any encoder's model but their own; two variants' may have the
    same shape.
    """
    expected = (config.memory.frame_tokens, config.vision.hidden_size)
    found = (file.header.tokens, file.header.width)
    if found != expected:
        raise ValueError(
            f"{file.path}: features of another variant: {found[0]} tokens a frame of width "
            f"{found[1]}, but this {config.variant} checkpoint takes {expected[0]} of width "
            f"{expected[1]}; give the file below features/{config.variant}/, or the video itself"
        )
    made_with = file.metadata.get("encoder")
    if made_with and not any_encoder and made_with != encoder_hash(export):
        raise ValueError(
            f"{file.path}: features of another vision encoder than this checkpoint's (another "
            "variant, or another run of stage 2), which mean nothing to it; give the features of "
            "this run, or the video itself. If training used this encoder through the setting "
            "features.encoder, add --any-encoder"
        )
