"""Questions about one video: it is decoded and encoded once, and stays with the model for every further question."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from assets.evaluation.examiner import load_checkpoint
from assets.evaluation.likelihood import Reading
from assets.evaluation.videos import EncodedVideo, encode_video

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a character decodes to while some of its bytes are still to come


@dataclass(slots=True)
class Timing:
    """Seconds that each part took; of the question asked last where it is about one.

    ``first_token`` counts from the question to the first token: the memory is laid out, MemAug looks it up for this
    question, and the language model reads the prompt.
    """

    load: float = 0.0
    video: float = 0.0
    first_token: float = 0.0
    answer: float = 0.0
    tokens: int = 0


class VideoConversation:
    """One video and a checkpoint that is asked about it.

    Each question stands for itself: what was asked before is not part of the prompt. What stays is the video as the
    vision encoder saw it, on the model's device; looking it up depends on the question and is done anew.

    Args:
        export: checkpoint folder that ``from_pretrained`` loads.
        video: a video file, or a feature file of the same variant.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: not a checkpoint; a video that cannot be decoded.
        FileNotFoundError: no such video.
    """

    def __init__(self, export: Path, video: Path, device: str = "auto") -> None:
        if not video.exists():
            raise FileNotFoundError(f"{video}: no such file")
        self.timing = Timing()
        from model.frames import stored_frame_indices

        started = time.perf_counter()
        self.model, self.processor = load_checkpoint(export, device)
        loaded = time.perf_counter()
        stored = encode_video(self.model.model, video)
        shown = stored_frame_indices(stored.frames, stored.duration)
        self.video = EncodedVideo(stored.read(shown).to(self.model.device), stored.duration)
        self.timing.load, self.timing.video = loaded - started, time.perf_counter() - loaded

    def ask(self, question: str, longest: int = 512) -> Iterator[str]:
        """The answer in pieces, as they come; joined they are the whole text. Greedy, hence always the same.

        Raises:
            ValueError: an empty question, or features that do not fit the model.
        """
        if not question.strip():
            raise ValueError("the question is empty")
        started = time.perf_counter()
        turn = {"from": "human", "value": f"<image>\n{question}"}
        sample = self.processor.video(self.video, [turn], id="question", add_generation_prompt=True)
        reading = Reading(self.model, [sample])
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
