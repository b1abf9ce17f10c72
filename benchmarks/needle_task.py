"""Needles in the memory: does a model find what forgetting dropped?

A video of noise hides a few needles, each a key and a value in one token of one frame. Asked for a
key, the model must name its value. Forgetting keeps a quarter of the frames and a quarter of their
tokens, so most needles never become queries: what it says about those, it has looked up. Four arms
run through the same classes that train on real videos:

| arm    | what MemAug can look up | what the language model sees                           |
|--------|-------------------------|--------------------------------------------------------|
| memory | the whole memory        | kept tokens, looked up (Hour-LLaVA)                    |
| kept   | the kept tokens only    | kept tokens                                            |
| frames | the frames it is given  | all tokens of as many evenly spread frames as fit      |
|        |                         | into the number of tokens that the others see          |
| none   | there is no MemAug      | kept tokens                                            |

`hidden` accuracy asks only for needles in frames that temporal forgetting drops, `any` for
needles anywhere.

    python -m benchmarks.needle_task --arm memory --frames 16 --batch 32 --steps 1600

Finding is learned in two leaps: which values the video holds comes within some hundred steps, which
key each belongs to only after a plateau of a thousand (four needles, T = 16). A rate that sinks on
the way there stops it; so the rate stays up and falls at the end. What was learned on short videos
carries over to longer ones, so a benchmark over lengths trains one model on and on.

Shapes: B samples, T frames, P tokens of a frame, C their width, Q kept tokens, N memory tokens, D
width, L ids.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import SequenceLengths
from model.config import HourLlavaConfig, LLMConfig, MemoryConfig, VisionConfig
from model.forgetting import kept_frames, kept_tokens, spread
from model.hour_llava import HourLlava
from model.initialise import drawn
from model.inputs import IGNORE_INDEX, IMAGE_TOKEN_INDEX, SampleInputs, Visual
from model.packing import PackPlan
from training.formats.hashing import seed_of

Arm = Literal["memory", "kept", "frames", "none"]
Split = Literal["any", "hidden"]
ARMS: tuple[Arm, ...] = ("memory", "kept", "frames", "none")
# Half of a head is turned by position; the other half has to tell needles apart by their look.
# After about 500 steps at T = 16 (batch 32, one seed) 45 % of the hidden needles were found with 16
# dims, 62 % with 32.
HEAD_DIM = 32


@dataclass(frozen=True, slots=True)
class NeedleTask:
    """The videos and the questions.

    Attributes:
        frames, side, width: T frames of side^2 tokens of this width; a token has norm sqrt(width)
            where a needle is.
        keys, values, needles: how many there are, and how many needles a video has, of different
            keys.
        noise: of every token, and again of the whole scene; `blur` is that of the needles
            themselves.
        when: ask also in which quarter of the video each needle stands, which needs positions.
    """

    frames: int = 16
    side: int = 4
    width: int = 32
    keys: int = 16
    values: int = 8
    needles: int = 4
    noise: float = 0.2
    blur: float = 0.1
    when: bool = False

    @property
    def vocabulary(self) -> int:
        """Keys, then values, then quarters, then the token that asks when."""
        return self.keys + self.values + 5

    @property
    def chance(self) -> float:
        return 1 / self.values


@dataclass(frozen=True, slots=True)
class NeedleRun:
    """One arm, trained and examined. Steps, not seconds, decide when it ends: the result is the
    same on any machine.

    Attributes:
        rate, warmup, decay: it rises over `warmup` steps and falls to a twentieth over the last
            `decay` share.
        examined: videos of each split; a sixteenth of them, at least a batch, at each of the points
            of the curve.
        points: how often accuracy is looked at on the way.
    """

    task: NeedleTask = NeedleTask()
    arm: Arm = "memory"
    hidden_size: int = 64
    depth: int = 2
    batch: int = 64
    steps: int = 800
    rate: float = 2e-3
    warmup: int = 100
    decay: float = 0.3
    examined: int = 512
    points: int = 0
    seed: str = "needle"
    device: str = "cpu"

    def rate_at(self, step: int) -> float:
        """The learning rate of the optimizer step of this number, from 1."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.rate * min(1.0, step / self.warmup, 0.05 + 0.95 * left)


@dataclass(frozen=True, slots=True)
class NeedleResult:
    """Accuracies of one run; `when` ones are None where the question was not asked, `loss`
    where none was trained.

    Attributes:
        before: accuracy on hidden needles before this run's training, of a model that was trained
            on other lengths.
        curve: (step, accuracy on hidden needles) on the way.
    """

    arm: str
    frames: int
    needles: int
    hidden: float
    any: float
    hidden_when: float | None
    any_when: float | None
    before: float | None
    chance: float
    batch: int
    steps: int
    loss: float | None
    seconds: float
    curve: tuple[tuple[int, float], ...] = ()


class KeptOnly(HourLlava):
    """MemAug attends to the tokens that forgetting kept, not to the whole memory."""

    def _augment(self, plan: PackPlan, text_LD: Tensor, memory_ND: Tensor) -> Tensor:
        kept_QD = memory_ND[self._to_device(plan.memory_rows_Q)]
        query_MD = torch.cat([text_LD, kept_QD])[self._to_device(plan.query_sources_M)]
        augmented_MD = self.memaug(
            query_MD,
            kept_QD,
            self._to_device(plan.query_positions_M),
            self._to_device(plan.memory_positions_N[plan.memory_rows_Q]),
            SequenceLengths.of(plan.query_lengths, text_LD.device),
            SequenceLengths.of(_kept_lengths(plan), text_LD.device),
        )
        return augmented_MD[self._to_device(plan.visual_rows_Q)]


class NoMemAug(HourLlava):
    """The kept tokens go to the language model as they are."""

    def _augment(self, plan: PackPlan, text_LD: Tensor, memory_ND: Tensor) -> Tensor:
        return memory_ND[self._to_device(plan.memory_rows_Q)]


def _kept_lengths(plan: PackPlan) -> list[int]:
    """How many tokens forgetting kept of each sample's memory."""
    ends = torch.tensor(plan.memory_lengths).cumsum(0)
    owner_Q = torch.searchsorted(ends, plan.memory_rows_Q, right=True)
    return torch.bincount(owner_Q, minlength=len(ends)).tolist()


def run_needle(
    run: NeedleRun, log: Callable[[str], None] | None = None, model: HourLlava | None = None
) -> NeedleResult:
    """Train one arm and examine it on videos it has never seen.

    Args:
        model: is trained on, in place, instead of a new one; of the same arm and sizes, from videos
            of any length.
    """
    started = time.monotonic()
    torch.manual_seed(
        seed_of(run.seed, "unused")
    )  # nothing below draws from it; libraries that do get one seed
    world = World(run)
    before = None if model is None else examine(model, world, "hidden")[0]
    model = (build_model(run) if model is None else model).to(run.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), run.rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    loss: float | None = None
    curve: list[tuple[int, float]] = []
    glance = World(replace(run, examined=max(run.batch, run.examined // 16)))
    for step, samples in enumerate(
        world.batches("any", run.steps, f"train {run.task.frames}"), start=1
    ):
        for group in optimizer.param_groups:
            group["lr"] = run.rate_at(step)
        with precision(run.device):
            output = model(samples, forgetting="random")
        mean = output.loss_sum / output.supervised
        optimizer.zero_grad(set_to_none=True)
        mean.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if run.points and step % max(1, run.steps // run.points) == 0:
            curve.append((step, examine(model, glance, "hidden")[0]))
        if step % max(1, run.steps // 8) == 0 or step == run.steps:
            loss = float(mean.detach())
            if log is not None:
                log(
                    f"{run.arm} T={run.task.frames} step {step}: loss {loss:.3f}, "
                    f"{time.monotonic() - started:.0f} s"
                )
    hidden, hidden_when = examine(model, world, "hidden")
    anywhere, any_when = examine(model, world, "any")
    return NeedleResult(
        arm=run.arm,
        frames=run.task.frames,
        needles=run.task.needles,
        hidden=hidden,
        any=anywhere,
        hidden_when=hidden_when,
        any_when=any_when,
        before=before,
        chance=run.task.chance,
        batch=run.batch,
        steps=run.steps,
        loss=loss,
        seconds=round(time.monotonic() - started, 1),
        curve=tuple(curve),
    )


@torch.inference_mode()
def examine(model: HourLlava, world: World, split: Split) -> tuple[float, float | None]:
    """Shares of right answers to "which value" and, where it is asked, "which quarter"."""
    task, right, asked = world.run.task, [0, 0], [0, 0]
    rounds = math.ceil(world.run.examined / world.run.batch)
    for samples in world.batches(split, rounds, f"examine {split}"):
        with precision(world.run.device):
            prepared = model.prepare(samples, forgetting="random")
            hidden_SD = model.run_llm(prepared)
            rows_R, targets_R = (index.to(hidden_SD.device) for index in prepared.plan.targets)
            logits_RV = model.llm.lm_head(hidden_SD[rows_R]).float()
        about_when = targets_R >= task.keys + task.values
        for kind, (chosen, first, last) in enumerate(
            (
                (~about_when, task.keys, task.keys + task.values),
                (about_when, task.keys + task.values, task.vocabulary),
            )
        ):
            guesses = logits_RV[chosen, first:last].argmax(-1) + first
            right[kind] += int((guesses == targets_R[chosen]).sum())
            asked[kind] += int(chosen.sum())
    return right[0] / asked[0], right[1] / asked[1] if asked[1] else None


class World:
    """Where videos come from: the looks of keys and values are fixed by the seed, videos are drawn
    by name.
    """

    def __init__(self, run: NeedleRun) -> None:
        self.run, task = run, run.task
        generator = torch.Generator().manual_seed(seed_of(run.seed, "looks"))
        looks = F.normalize(
            torch.randn(task.keys + task.values, task.width, generator=generator), dim=-1
        )
        looks = looks * math.sqrt(task.width)
        self.key_looks, self.value_looks = (
            looks[: task.keys].to(run.device),
            looks[task.keys :].to(run.device),
        )
        self.kept = kept_frames(task.frames, MemoryConfig())
        dropped = torch.ones(task.frames, dtype=torch.bool)
        dropped[self.kept] = False
        self.dropped = dropped.nonzero().flatten()
        self.shown = spread(shown_frames(task), task.frames) if run.arm == "frames" else None

    def batches(self, split: Split, count: int, name: str) -> Iterator[list[SampleInputs]]:
        """`count` batches of fresh videos; the same name gives the same videos to every arm."""
        for number in range(count):
            seed = seed_of(self.run.seed, name, split, number)
            yield self._batch(split, seed)

    def _batch(self, split: Split, seed: int) -> list[SampleInputs]:
        run, task = self.run, self.run.task
        host = torch.Generator().manual_seed(seed)
        device = torch.Generator(run.device).manual_seed(seed)
        places = self.dropped if split == "hidden" else torch.arange(task.frames)
        key_BK = torch.rand(run.batch, task.keys, generator=host).argsort(1)[:, : task.needles]
        value_BK = torch.randint(task.values, key_BK.shape, generator=host)
        frame_BK = places[
            torch.rand(run.batch, len(places), generator=host).argsort(1)[:, : task.needles]
        ]
        patch_BK = torch.randint(task.side**2, key_BK.shape, generator=host)

        shape = (run.batch, task.frames, task.side**2, task.width)
        video_BTPC = torch.randn(shape, generator=device, device=run.device) * task.noise
        scene = (
            torch.randn((run.batch, 1, 1, task.width), generator=device, device=run.device)
            * task.noise
        )
        blur = (
            torch.randn((*key_BK.shape, task.width), generator=device, device=run.device)
            * task.blur
        )
        looks = self.key_looks[key_BK] + self.value_looks[value_BK] + blur
        row_BK = torch.arange(run.batch)[:, None].expand_as(key_BK)
        video_BTPC += scene
        video_BTPC[row_BK, frame_BK, patch_BK] = looks
        if self.shown is not None:
            video_BTPC = video_BTPC[:, self.shown]
        quarter_BK = frame_BK * 4 // task.frames
        return [
            self._sample(
                f"{split}/{seed}/{b}", video_BTPC[b], key_BK[b], value_BK[b], quarter_BK[b]
            )
            for b in range(run.batch)
        ]

    def _sample(
        self, name: str, video_TPC: Tensor, key_K: Tensor, value_K: Tensor, quarter_K: Tensor
    ) -> SampleInputs:
        """`<video> key value key value ...`: a key is prompt, its value the supervised answer."""
        task = self.run.task
        ids, labels = [IMAGE_TOKEN_INDEX], [IGNORE_INDEX]
        for key, value in zip(key_K.tolist(), value_K.tolist(), strict=True):
            ids += [key, task.keys + value]
            labels += [IGNORE_INDEX, task.keys + value]
        if task.when:
            ids.append(task.vocabulary - 1)
            labels.append(IGNORE_INDEX)
            for key, quarter in zip(key_K.tolist(), quarter_K.tolist(), strict=True):
                ids += [key, task.keys + task.values + quarter]
                labels += [IGNORE_INDEX, task.keys + task.values + quarter]
        visual = Visual("features", features=video_TPC)
        return SampleInputs(name, torch.tensor(ids), torch.tensor(labels), [visual], seed_of(name))


def model_config(run: NeedleRun) -> HourLlavaConfig:
    """A small Hour-LLaVA whose memory takes the task's tokens; the vision encoder is there and
    never used.
    """
    task = run.task
    memory = MemoryConfig(pooled_side=task.side, min_frames=1)
    if run.arm == "frames":  # it is given few frames and forgets nothing of them
        memory = replace(memory, temporal_ratio=1.0, spatial_ratio=1.0)
    width, heads = run.hidden_size, run.hidden_size // HEAD_DIM
    return HourLlavaConfig(
        variant="needle",
        vision=VisionConfig(
            4 * task.side, 4, task.width, 4 * task.width, num_layers=1, num_heads=2
        ),
        llm=LLMConfig(width, 2, heads, max(1, heads // 2), 4 * width, task.vocabulary),
        memory=memory,
        memaug_depth=run.depth,
    )


def build_model(run: NeedleRun) -> HourLlava:
    """The arm's model. Weights are drawn by name with the spread of `nn.Linear`: from scratch,
    0.02 is too little.
    """
    kind = {"memory": HourLlava, "frames": HourLlava, "kept": KeptOnly, "none": NoMemAug}[run.arm]
    model = kind(model_config(run))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            std = (
                1.0
                if "embed_tokens" in name
                else 1 / math.sqrt(3 * tensor[0].numel())
                if tensor.ndim > 1
                else 1 / 8
            )
            tensor.copy_(drawn(name, tuple(tensor.shape), run.seed, std))
    return model


def shown_frames(task: NeedleTask) -> int:
    """How many whole frames have as many tokens as what forgetting keeps."""
    memory = MemoryConfig()
    kept = len(kept_frames(task.frames, memory)) * (kept_tokens(task.side**2, memory) + 1)
    return max(1, round(kept / (task.side**2 + 1)))


def precision(device: str) -> Any:
    """Half precision where there are kernels for it."""
    return torch.autocast("cuda", torch.bfloat16) if device.startswith("cuda") else nullcontext()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train and examine one arm of the needle benchmark."
    )
    parser.add_argument("--arm", choices=ARMS, default="memory")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--needles", type=int, default=4)
    parser.add_argument(
        "--when", action="store_true", help="ask also in which quarter of the video a needle stands"
    )
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", default="needle")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = vars(parser.parse_args())
    task = NeedleTask(
        frames=given.pop("frames"), needles=given.pop("needles"), when=given.pop("when")
    )
    print(json.dumps(asdict(run_needle(NeedleRun(task=task, **given), print))))


if __name__ == "__main__":
    main()
