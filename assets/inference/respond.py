"""Free prompts about anything: a video, images, or text alone. What benchmark harnesses drive the
model through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.inference.checkpoint import load_checkpoint
from assets.inference.likelihood import Reading
from assets.inference.videos import encode_video

if TYPE_CHECKING:
    from model.inputs import SampleInputs
    from model.processor import StoredFeatures

IMAGE = "<image>"
LONGEST = 128

Visuals = Sequence[Any]  # nothing, one path of a video, or images (paths, bytes or PIL)


class Responder:
    """Answers prompts in batches, greedily; a video that several prompts ask about in a row is
    encoded once.

    Args:
        export: an export folder, or a released checkpoint.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch: prompts that pass the model together.
    """

    def __init__(self, export: str | Path, device: str = "auto", batch: int = 1) -> None:
        self.model, self.processor = load_checkpoint(Path(export), device)
        self.batch = batch
        self._video: tuple[Path, StoredFeatures] | None = None

    def generate(self, asked: Sequence[tuple[str, Visuals, Mapping[str, Any]]]) -> list[str]:
        """(prompt, visuals, settings) -> text. Settings: ``max_new_tokens``, and ``until``, texts
        that end an answer.

        Raises:
            ValueError: sampling is asked for, or a visual cannot be used.
        """
        answers: list[str] = []
        for start in range(0, len(asked), self.batch):
            group = asked[start : start + self.batch]
            for _, _, settings in group:
                if settings.get("do_sample") or (settings.get("num_beams") or 1) > 1:
                    raise ValueError(
                        "answers are greedy; these settings ask for something else: "
                        f"{dict(settings)}"
                    )
            reading = Reading(
                self.model, [self.sample(prompt, visuals) for prompt, visuals, _ in group]
            )
            limits = [int(settings.get("max_new_tokens") or LONGEST) for _, _, settings in group]
            for ids, limit, (_, _, settings) in zip(
                reading.generate(max(limits)), limits, group, strict=True
            ):
                text = self.processor.tokenizer.decode(ids[:limit], skip_special_tokens=True)
                answers.append(cut(text, settings.get("until") or ()))
        return answers

    def likelihood(self, asked: Sequence[tuple[str, Visuals, str]]) -> list[tuple[float, bool]]:
        """(prompt, visuals, answer) -> the answer's log-probability, and whether the model would
        write just that.
        """
        results: list[tuple[float, bool]] = []
        for start in range(0, len(asked), self.batch):
            group = asked[start : start + self.batch]
            ids = [
                self.processor.tokenizer(answer, add_special_tokens=False).input_ids
                for _, _, answer in group
            ]
            reading = Reading(
                self.model, [self.sample(prompt, visuals) for prompt, visuals, _ in group]
            )
            written = reading.generate(max(map(len, ids)))
            for wanted, found, [score] in zip(
                ids, written, reading.scores([[answer] for answer in ids]), strict=True
            ):
                results.append((score, found[: len(wanted)] == wanted))
        return results

    def sample(self, prompt: str, visuals: Visuals) -> SampleInputs:
        """A prompt about its visuals; ``<image>`` is put before it where it does not hold any."""
        visuals = [visual for visual in visuals or () if visual is not None]
        is_video = (
            len(visuals) == 1
            and isinstance(visuals[0], str | Path)
            and not _is_picture(Path(visuals[0]))
        )
        wanted = 1 if is_video else len(visuals)
        if prompt.count(IMAGE) != wanted:
            prompt = f"{IMAGE}\n" * wanted + prompt.replace(IMAGE, "").strip()
        turns = [{"from": "human", "value": prompt}]
        if is_video:
            return self.processor.video(
                self._encoded(Path(visuals[0])), turns, add_generation_prompt=True
            )
        return self.processor.sample(turns, images=visuals, add_generation_prompt=True)

    def _encoded(self, path: Path) -> StoredFeatures:
        if self._video is None or self._video[0] != path:
            self._video = path, encode_video(self.model.model, path)
        return self._video[1]


def cut(text: str, until: str | Sequence[str]) -> str:
    """The text before the first of the given endings."""
    for ending in [until] if isinstance(until, str) else until:
        if ending:
            text = text.split(ending)[0]
    return text.strip()


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in (
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
    )
