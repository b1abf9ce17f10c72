"""A checkpoint that is asked questions: loads it, turns questions into prompts, reads and answers
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from assets.evaluation.questions import LETTERS, Question
from assets.inference.checkpoint import load_checkpoint
from assets.inference.likelihood import Reading, end_token

if TYPE_CHECKING:
    from model.inputs import SampleInputs
    from model.processor import StoredFeatures

LONGEST_ANSWER = {
    "options": 32,
    "candidates": 16,
    "open": 64,
}  # tokens that are generated, by the form of the question


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model made of one question; ``scores`` are log-probabilities of its choices, in
    their order.

    ``duration`` is that of the video as it was found, in seconds.
    """

    prompt: str
    generated: str
    scores: list[float]
    problem: str = ""
    duration: float | None = None


class Examiner:
    """Asks one checkpoint questions about media below a folder.

    Args:
        export: an export folder, or a released checkpoint.
        visuals: False shows grey pictures of the same number and size instead of the real ones.
    """

    def __init__(
        self, export: Path, media: Path, *, visuals: bool = True, device: str = "auto"
    ) -> None:
        self.model, self.processor = load_checkpoint(export, device)
        self.media, self.visuals = media, visuals
        self._video: tuple[str, StoredFeatures] | None = (
            None  # the last one: questions come ordered by medium
        )

    def ask(self, questions: Sequence[Question], write: bool = True) -> list[Reply]:
        """Answers in the order of the questions. A medium that cannot be read is a problem of its
        questions only.

        Args:
            write: let the model also write an answer of its own; open questions have no other.
        """
        samples: dict[int, SampleInputs] = {}
        durations: dict[int, float] = {}
        problems: dict[int, str] = {}
        for number, question in enumerate(questions):
            try:
                samples[number] = self.sample(question)
                if question.media == "video":
                    durations[number] = self._encoded(question.path).duration
            except (ValueError, OSError) as error:
                problems[number] = f"{question.path}: {error}"
        replies = {number: Reply("", "", [], problem) for number, problem in problems.items()}
        if samples:
            asked = [questions[number] for number in samples]
            reading = Reading(self.model, list(samples.values()))
            writing = [question for question in asked if write or question.form == "open"]
            longest = max((LONGEST_ANSWER[question.form] for question in writing), default=0)
            texts = self._texts(reading.generate(longest)) if writing else [""] * len(asked)
            # An open question has no choices: its one stand-in keeps the batch in shape and is
            # dropped again.
            ids = [
                [self._ids(choice) for choice in answers_of(question)] or [[reading.end]]
                for question in asked
            ]
            for number, text, scores in zip(samples, texts, reading.scores(ids), strict=True):
                question = questions[number]
                written = text if question in writing else ""
                prompt, rated = self._prompt(samples[number]), scores if question.choices else []
                replies[number] = Reply(prompt, written, rated, duration=durations.get(number))
        return [replies[number] for number in range(len(questions))]

    def sample(self, question: Question) -> SampleInputs:
        """The question as model input, ending where the answer begins. Raises ValueError for media
        without use.
        """
        import torch

        from model.inputs import Visual

        turn = {"from": "human", "value": question.prompt}
        if question.media == "text":
            return self.processor.text([turn], id=question.id, add_generation_prompt=True)
        turn["value"] = f"<image>\n{question.prompt}"
        if question.media == "image":
            sample = self.processor.image(
                self.media / question.path, [turn], id=question.id, add_generation_prompt=True
            )
            if not self.visuals:
                [shown] = sample.visuals
                assert shown.pixels is not None
                grey = torch.full_like(shown.pixels, 128)
                sample.visuals = [Visual(shown.kind, pixels=grey, image_size=shown.image_size)]
            return sample
        return self.processor.video(
            self._encoded(question.path), [turn], id=question.id, add_generation_prompt=True
        )

    def _encoded(self, path: str) -> StoredFeatures:
        from assets.inference.videos import encode_video, grey_video

        if self._video is None or self._video[0] != path:
            video = encode_video(self.model.model, self.media / path)
            self._video = path, video if self.visuals else grey_video(self.model.model, video)
        return self._video[1]

    def _ids(self, answer: str) -> list[int]:
        ids = self.processor.tokenizer(answer, add_special_tokens=False).input_ids
        return [*ids, end_token(self.model)]

    def _texts(self, answers: Sequence[list[int]]) -> list[str]:
        return [
            self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
            for ids in answers
        ]

    def _prompt(self, sample: SampleInputs) -> str:
        """The prompt as text, with ``<image>`` where the visual stands."""
        from model.inputs import IMAGE_TOKEN_INDEX

        parts: list[list[int]] = [[]]
        for token in sample.input_ids.tolist():
            if token == IMAGE_TOKEN_INDEX:
                parts.append([])
            else:
                parts[-1].append(token)
        return "<image>".join(self.processor.tokenizer.decode(part) for part in parts)


def answers_of(question: Question) -> list[str]:
    """The answers that stand for election: letters where options are shown, else the candidates
    themselves.
    """
    if question.options:
        return list(LETTERS[: len(question.options)])
    return list(question.candidates)
