"""Hour-LLaVA as a model of lmms-eval, which then drives it through its own benchmarks.

    pip install lmms-eval
    lmms-eval --model hour_llava --model_args pretrained=path/to/export --tasks videomme \
        --batch_size 1

lmms-eval finds it by this project's entry point in the group `lmms_eval.models`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from assets.inference.checkpoint import log_to_terminal
from assets.inference.prompts import Prompt
from assets.inference.session import Session
from model.conversation import IMAGE
from model.options import AskOptions

LONGEST = 128  # tokens of an answer, where a task does not say
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

manifest = ModelManifest(
    "hour_llava", simple_class_path="assets.inference.lmms_adapter.HourLlavaLmms"
)


class HourLlavaLmms(lmms):
    """What lmms-eval calls: greedy generation and the likelihood of given answers, for videos,
    images and text.

    Args:
        pretrained: an export folder, or a released checkpoint.
        device: `auto`, `cpu` or `cuda`.
        batch_size: requests that pass the model together.
        max_batch_size: handed over by lmms-eval for batches that it sizes itself; these are not.
        memory_scale, kept_frames, template_tokens, forgetting_seed: see `model/options.py`; the
            first two act on videos alone.

    Raises:
        ValueError: model arguments that are not known, or a way to run that this adapter lacks.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        device: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        memory_scale: float | str | None = None,
        kept_frames: int | str | None = None,
        template_tokens: str | None = None,
        forgetting_seed: int | str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise ValueError(
                f"unknown model_args {', '.join(sorted(unknown))} (known: pretrained, device, "
                "batch_size, memory_scale, kept_frames, template_tokens, forgetting_seed)"
            )
        if not str(batch_size).isdecimal() or int(batch_size) < 1 or max_batch_size is not None:
            raise ValueError(
                f"batch_size is {batch_size!r}; give a number, and no max_batch_size: none is "
                "found here"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                "several processes: this adapter runs as one; leave out torchrun or accelerate "
                "launch"
            )
        # Strings where they come from a command line.
        self.options = AskOptions(
            memory_scale=None if memory_scale is None else float(Fraction(memory_scale)),
            kept_frames=None if kept_frames is None else int(kept_frames),
            template_tokens=template_tokens,
            forgetting_seed=None if forgetting_seed is None else int(forgetting_seed),
        )
        self.session = Session(Path(pretrained), device)
        self.device = self.session.model.device
        self.requests_together = int(batch_size)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The text that each request's context is continued with.

        Settings of a request that count: `max_new_tokens`, and `until`, texts that end an answer.

        Raises:
            ValueError: a request asks for sampling, or a visual cannot be used.
        """
        answers: list[str] = []
        for group in self._batches(requests):
            asked = [request.args for request in group]
            settings = [dict(args[1]) for args in asked]
            _check_greedy(settings)
            prompts = [
                self._prompt(context, to_visual(self._document(*place)))
                for context, _, to_visual, *place in asked
            ]
            limits = [int(given.get("max_new_tokens") or LONGEST) for given in settings]
            written = self.session.generate(prompts, max(limits))
            for ids, limit, given in zip(written, limits, settings, strict=True):
                answers.append(cut(self.session.text(ids[:limit]), given.get("until") or ()))
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """The log-probability of each request's answer, and whether the model would write just
        that.
        """
        results: list[tuple[float, bool]] = []
        for group in self._batches(requests):
            prompts, answers = [], []
            for context, to_target, to_visual, *place in (request.args for request in group):
                document = self._document(*place)
                target = to_target if isinstance(to_target, str) else to_target(document)
                prompts.append(self._prompt(context, to_visual(document)))
                answers.append(self.session.ids(target))
            cached = self.session.read(prompts)
            written = cached.generate(max(map(len, answers)))
            scores = cached.scores([[ids] for ids in answers])
            for wanted, found, [score] in zip(answers, written, scores, strict=True):
                results.append((score, found[: len(wanted)] == wanted))
        return results

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused: a prompt holds one question."""
        raise ValueError(
            "Hour-LLaVA answers one question at a time; tasks of several rounds cannot be run "
            "with it"
        )

    def _batches(self, requests: Sequence[Any]) -> Iterator[Sequence[Any]]:
        for start in range(0, len(requests), self.requests_together):
            yield requests[start : start + self.requests_together]

    def _document(self, number: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][number]

    def _prompt(self, context: str, visuals: Sequence[Any] | None) -> Prompt:
        """A request's prompt about its visuals: nothing, one path of a video, or images (paths,
        bytes or PIL).

        `<image>` is put before the context where it does not hold one for each visual.
        """
        visuals = [visual for visual in visuals or () if visual is not None]
        is_video = len(visuals) == 1 and _is_video(visuals[0])
        wanted = 1 if is_video else len(visuals)
        if context.count(IMAGE) != wanted:
            context = f"{IMAGE}\n" * wanted + context.replace(IMAGE, "").strip()
        if is_video:
            video = self.session.video(Path(visuals[0]))
            if video.damage:
                log_to_terminal(f"{visuals[0]} is damaged ({video.damage})")
            return self.session.prompt(context, video=video, options=self.options)
        return self.session.prompt(context, images=visuals, options=self.options)


def _check_greedy(settings: Sequence[dict[str, Any]]) -> None:
    for given in settings:
        if given.get("do_sample") or (given.get("num_beams") or 1) > 1:
            raise ValueError(f"answers are greedy; these settings ask for something else: {given}")


def cut(text: str, until: str | Sequence[str]) -> str:
    """The text before the first of the given endings."""
    for ending in [until] if isinstance(until, str) else until:
        if ending:
            text = text.split(ending)[0]
    return text.strip()


def _is_video(visual: Any) -> bool:
    return isinstance(visual, str | Path) and Path(visual).suffix.lower() not in PICTURES
