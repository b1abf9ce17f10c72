"""Train one arm of the needle task through lessons that end when they are learned, and examine it.

    python -m benchmarks.needle_run --arm memory --frames 16 --seed 1

Which values a video holds is learned within some hundred steps; to which key each belongs comes
later, and with sixteen keys from the first step on, after a plateau whose length differs from seed
to seed: each key's look has to be tied to its word before any look-up succeeds. So the first videos
know two keys, later ones more, a lesson ends when nearly every answer is right (or its steps are
used up, as they are in arms that cannot learn it), and the rate falls after the last lesson, not by
the clock. What was learned on short videos carries over to longer ones.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.needle_task import (
    ARMS,
    Arm,
    NeedleBatch,
    NeedleTask,
    Split,
    World,
    build_model,
    prepare,
)
from model.hour_llava import HourLlava
from training.formats.hashing import seed_of

# Share of right answers over the last `WINDOW` steps that ends a lesson. The full rate holds it
# near 97 %; the rest comes when the rate falls.
LEARNED = 0.95
WINDOW = 40
LOOK_EVERY = 10  # steps; each look waits for the device


@dataclass(frozen=True, slots=True)
class Lesson:
    """Videos of one difficulty; `most` steps at most. With `quarters` it is learned only when these
    are right, too.
    """

    frames: int
    keys: int
    needles: int
    batch: int = 32
    most: int = 1000
    quarters: bool = False


class LessonLimits(TypedDict, total=False):
    """What all lessons of a course share."""

    batch: int
    most: int


@dataclass(frozen=True, slots=True)
class NeedleRun:
    """One arm, trained and examined.

    Attributes:
        task: what all lessons have in common; their frames, keys and needles take the place of its
            own. The last lesson's are examined.
        rate, warmup: it rises over `warmup` steps, stays, and falls over `settle` steps behind the
            last lesson to a twentieth.
        lengths: frames of the videos that the finished model is examined on.
        examined: videos of each split and length; a tenth of them, at least a batch, beyond 1,000
            frames.
    """

    lessons: tuple[Lesson, ...]
    task: NeedleTask = field(default_factory=NeedleTask)
    arm: Arm = "memory"
    hidden_size: int = 64
    depth: int = 2
    rate: float = 2e-3
    warmup: int = 50
    settle: int = 300
    lengths: tuple[int, ...] = (16,)
    examined: int = 512
    seed: str = "needle"
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of right answers at one length; `when` ones are None where that was not asked."""

    frames: int
    hidden: float
    any: float
    hidden_when: float | None
    any_when: float | None


@dataclass(frozen=True, slots=True)
class NeedleResult:
    """How a run went.

    Attributes:
        device: its sort; another sort draws other videos.
        lessons: (frames, keys, needles, steps taken, whether it was learned).
        curve: (step, share of right values in training, that of right quarters if asked).
    """

    arm: str
    seed: str
    device: str
    needles: int
    chance: float
    lessons: list[tuple[int, int, int, int, bool]]
    steps: int
    seconds: float
    step_ms: float
    accuracy: list[Accuracy]
    curve: list[tuple[float, ...]] = field(default_factory=list)


def run_needle(run: NeedleRun, log: Callable[[str], None] = lambda _: None) -> NeedleResult:
    """Train one arm and examine it on videos it has never seen."""
    started = time.monotonic()
    trainer = _Trainer(run)
    lessons = []
    for number, lesson in enumerate(run.lessons):
        steps, learned = trainer.learn(number, lesson)
        lessons.append((lesson.frames, lesson.keys, lesson.needles, steps, learned))
        log(
            f"{run.arm}, seed {run.seed}: {lesson.frames} frames, {lesson.needles} needles of "
            f"{lesson.keys} keys: {'learned' if learned else 'not learned'} in {steps} steps, "
            f"{time.monotonic() - started:.0f} s"
        )
    trainer.settle(run.lessons[-1])
    seconds = time.monotonic() - started
    return NeedleResult(
        arm=run.arm,
        seed=run.seed,
        device=torch.device(run.device).type,
        needles=run.lessons[-1].needles,
        chance=run.task.chance,
        lessons=lessons,
        steps=trainer.step,
        seconds=round(seconds, 1),
        step_ms=round(1000 * seconds / max(1, trainer.step), 1),
        accuracy=[examine(trainer.model, run, frames) for frames in run.lengths],
        curve=trainer.curve,
    )


class _Trainer:
    """The model, its optimizer, and how far it is."""

    def __init__(self, run: NeedleRun) -> None:
        # Nothing below draws from it; libraries that do get one seed.
        torch.manual_seed(seed_of(run.seed, "unused"))
        self.run, self.step = run, 0
        model = build_model(run.task, run.arm, run.seed, run.hidden_size, run.depth)
        self.model = model.to(run.device)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), run.rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.curve: list[tuple[float, ...]] = []

    def learn(self, number: int, lesson: Lesson) -> tuple[int, bool]:
        """Steps taken, and whether nearly every answer was right in the end."""
        latest: list[Tensor] = []
        world = _world(self.run, lesson, lesson.frames)
        for taken, batch in enumerate(
            world.batches("any", lesson.batch, lesson.most, f"lesson {number}"), start=1
        ):
            rate = self.run.rate * min(1.0, (self.step + 1) / self.run.warmup)
            latest = [*latest, self._take(batch, rate)][-WINDOW:]
            if taken % LOOK_EVERY == 0 and len(latest) == WINDOW:
                right = torch.stack(latest).mean(0).tolist()
                self.curve.append((self.step, *(round(share, 4) for share in right)))
                if min(right if lesson.quarters else right[:1]) >= LEARNED:
                    return taken, True
        return lesson.most, False

    def settle(self, lesson: Lesson) -> None:
        """The last steps, with a falling rate."""
        world = _world(self.run, lesson, lesson.frames)
        settle = self.run.settle
        for taken, batch in enumerate(world.batches("any", lesson.batch, settle, "settle")):
            self._take(batch, self.run.rate * (1 - 0.95 * taken / settle))

    def _take(self, batch: NeedleBatch, rate: float) -> Tensor:
        """One optimizer step; the shares of right answers in it, of values and of quarters where
        they are asked [1 or 2], on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with precision(self.run.device):
            logits_RV, targets_R = answers(self.model, batch)
            loss = F.cross_entropy(logits_RV, targets_R)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        right_R = logits_RV.detach().argmax(-1) == targets_R
        kinds = [
            (targets_R >= first) & (targets_R < last)
            for first, last in _ranges(self.run.task)[: 1 + self.run.task.when]
        ]
        return torch.stack([(right_R & of_kind).sum() / of_kind.sum() for of_kind in kinds])


def answers(model: HourLlava, batch: NeedleBatch) -> tuple[Tensor, Tensor]:
    """Logits [R, V] of the supervised tokens of a batch, and these tokens [R]."""
    prepared = prepare(model, batch)
    rows_R, targets_R = batch.plan.targets
    return model.llm.lm_head(model.run_llm(prepared)[rows_R]).float(), targets_R


@torch.inference_mode()
def examine(model: HourLlava, run: NeedleRun, frames: int) -> Accuracy:
    """Right answers to "which value" and, where it is asked, "which quarter", on new videos."""
    videos = run.examined if frames <= 1000 else max(16, run.examined // 10)
    batch = max(1, min(64, 64 * 512 // frames))
    found: dict[Split, tuple[float, float | None]] = {}
    splits: tuple[Split, ...] = ("hidden", "any")
    for split in splits:
        right, asked = [0, 0], [0, 0]
        world = _world(run, run.lessons[-1], frames)
        for videos_B in world.batches(split, batch, math.ceil(videos / batch), f"examine {split}"):
            with precision(run.device):
                logits_RV, targets_R = answers(model, videos_B)
            for kind, (first, last) in enumerate(_ranges(run.task)):
                about = (targets_R >= first) & (targets_R < last)
                guesses = logits_RV[about, first:last].argmax(-1) + first
                right[kind] += int((guesses == targets_R[about]).sum())
                asked[kind] += int(about.sum())
        found[split] = right[0] / asked[0], right[1] / asked[1] if asked[1] else None
    (hidden, hidden_when), (anywhere, any_when) = found["hidden"], found["any"]
    return Accuracy(frames, hidden, anywhere, hidden_when, any_when)


def _ranges(task: NeedleTask) -> tuple[tuple[int, int], tuple[int, int]]:
    """Ids that name values, and ids that name quarters."""
    values = task.keys + task.values
    return (task.keys, values), (values, task.vocabulary - 1)


def _world(run: NeedleRun, lesson: Lesson, frames: int) -> World:
    task = replace(run.task, frames=frames, needles=lesson.needles, drawn_keys=lesson.keys)
    return World(task, run.arm, run.seed, run.device)


def precision(device: str) -> Any:
    """Half precision where there are kernels for it."""
    return torch.autocast("cuda", torch.bfloat16) if device.startswith("cuda") else nullcontext()


def course(
    frames: Sequence[int], needles: int = 4, **limits: Unpack[LessonLimits]
) -> tuple[Lesson, ...]:
    """Lessons of two keys, four, ... up to all of them at the first length, then longer videos."""
    keys = NeedleTask().keys
    first = [Lesson(frames[0], count, min(count, needles), **limits) for count in _doubled(keys)]
    return (*first, *(Lesson(longer, keys, needles, **limits) for longer in frames[1:]))


def course_with_quarters(
    frames: Sequence[int], needles: int = 4, **limits: Unpack[LessonLimits]
) -> tuple[Lesson, ...]:
    """The same for values and quarters: one needle until all keys are known, then two, four, ...

    Where a needle stands is learned on videos that have only one: with two of them, 3,000 steps
    were not enough.
    """
    keys = NeedleTask().keys
    asked = partial(Lesson, quarters=True, **limits)
    alone = [asked(frames[0], count, 1) for count in _doubled(keys)]
    more = [asked(frames[0], keys, count) for count in _doubled(needles)]
    return (*alone, *more, *(asked(longer, keys, needles) for longer in frames[1:]))


def _doubled(most: int) -> list[int]:
    """2, 4, ... up to `most`."""
    return [1 << power for power in range(1, most.bit_length())]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and examine one arm of the needle task.")
    parser.add_argument("--arm", choices=ARMS, default="memory")
    parser.add_argument("--frames", type=int, nargs="+", default=[16], help="of the lessons")
    parser.add_argument("--lengths", type=int, nargs="+", help="examined; default: the lessons'")
    parser.add_argument("--needles", type=int, default=4)
    parser.add_argument(
        "--when", action="store_true", help="ask also in which quarter of the video a needle stands"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--most", type=int, default=1000)
    parser.add_argument("--settle", type=int, default=300)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2, help="blocks of MemAug")
    parser.add_argument("--seed", default="needle")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    lessons = course_with_quarters if given.when else course
    run = NeedleRun(
        lessons=lessons(given.frames, given.needles, batch=given.batch, most=given.most),
        task=NeedleTask(when=given.when),
        arm=given.arm,
        hidden_size=given.hidden_size,
        depth=given.depth,
        rate=given.rate,
        settle=given.settle,
        lengths=tuple(given.lengths or dict.fromkeys(given.frames)),
        seed=given.seed,
        device=given.device,
    )
    print(json.dumps(asdict(run_needle(run, print))))


if __name__ == "__main__":
    main()
