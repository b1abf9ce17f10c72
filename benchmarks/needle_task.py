"""The needle task: videos that hide needles, questions about them, and the models that answer.

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

`hidden` needles stand in frames that temporal forgetting drops, `any` ones anywhere.

All samples of a batch have the same shape, so a batch is drawn and laid out on the device in a few
calls; going through `plan_pack` sample by sample, as real data does, takes 15 ms for each of them.

Shapes: B samples, T frames, P tokens of a frame, C their width, F kept frames, Q kept tokens, N
memory tokens, D width, L ids, K needles, R supervised tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import SequenceLengths
from model.config import HourLlavaConfig, LLMConfig, MemoryConfig, VisionConfig
from model.forgetting import kept_frames, kept_tokens, spread
from model.hour_llava import HourLlava, LLMInput
from model.initialise import drawn
from model.inputs import IGNORE_INDEX, IMAGE_TOKEN_INDEX, Visual
from model.memory import Layout, build_memory
from model.packing import PackPlan, SamplePlan, join
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
        drawn_keys: needles have keys among the first so many; all, if None.
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
    drawn_keys: int | None = None
    when: bool = False

    @property
    def vocabulary(self) -> int:
        """Keys, then values, then quarters, then the token that asks when."""
        return self.keys + self.values + 5

    @property
    def chance(self) -> float:
        return 1 / self.values


@dataclass(frozen=True, slots=True)
class NeedleBatch:
    """Videos [B, T, P, C], what is asked of them, and where their needles stand.

    Attributes:
        ids_BL, labels_BL: `<video> key value key value ...`: a key is prompt, its value the
            supervised answer.
        key_BK, value_BK, frame_BK: the needles, in the order in which they are asked for.
        plan: on the device, as `plan_pack` would make it of these samples.
    """

    video_BTPC: Tensor
    ids_BL: Tensor
    labels_BL: Tensor
    key_BK: Tensor
    value_BK: Tensor
    frame_BK: Tensor
    plan: PackPlan


class World:
    """Where batches come from: the looks of keys and values are fixed by the seed, videos are drawn
    by name.
    """

    def __init__(self, task: NeedleTask, arm: Arm, seed: str, device: str) -> None:
        self.task, self.arm, self.seed, self.device = task, arm, seed, device
        self.config = model_config(task, arm)
        generator = torch.Generator().manual_seed(seed_of(seed, "looks"))
        looks = F.normalize(
            torch.randn(task.keys + task.values, task.width, generator=generator), dim=-1
        )
        looks = (looks * math.sqrt(task.width)).to(device)
        self.key_looks, self.value_looks = looks.split([task.keys, task.values])
        kept = kept_frames(task.frames, MemoryConfig())
        dropped = torch.ones(task.frames, dtype=torch.bool)
        dropped[kept] = False
        self.places: dict[Split, Tensor] = {
            "any": torch.arange(task.frames, device=device),
            "hidden": dropped.nonzero().flatten().to(device),
        }
        self.shown = spread(shown_frames(task), task.frames).to(device) if arm == "frames" else None
        seen = task.frames if self.shown is None else len(self.shown)
        self.kept_F = kept_frames(seen, self.config.memory).to(device)
        self.memory_length = seen * (task.side**2 + 1)

    def batches(self, split: Split, batch: int, count: int, name: str) -> Iterator[NeedleBatch]:
        """`count` batches of fresh videos. The same name gives the same videos to every arm, on one
        sort of device.
        """
        for number in range(count):
            yield self.batch(split, batch, seed_of(self.seed, name, split, number))

    def batch(self, split: Split, batch: int, seed: int) -> NeedleBatch:
        """A batch by its seed."""
        task, generator = self.task, torch.Generator(self.device).manual_seed(seed)
        rows_B1 = torch.arange(batch, device=self.device)[:, None]

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=self.device)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=self.device)

        places = self.places[split]
        key_BK = uniform(batch, task.drawn_keys or task.keys).argsort(1)[:, : task.needles]
        value_BK = (uniform(batch, task.needles) * task.values).long()
        frame_BK = places[uniform(batch, len(places)).argsort(1)[:, : task.needles]]
        patch_BK = (uniform(batch, task.needles) * task.side**2).long()
        video_BTPC = normal(batch, task.frames, task.side**2, task.width) * task.noise
        video_BTPC += normal(batch, 1, 1, task.width) * task.noise
        blur = normal(batch, task.needles, task.width) * task.blur
        video_BTPC[rows_B1, frame_BK, patch_BK] = (
            self.key_looks[key_BK] + self.value_looks[value_BK] + blur
        )
        if self.shown is not None:
            video_BTPC = video_BTPC[:, self.shown]
        order_BFP = uniform(batch, len(self.kept_F), task.side**2).argsort(-1)
        kept = kept_tokens(task.side**2, self.config.memory)
        kept_BFP = order_BFP[..., :kept].sort(-1).values
        ids_BL, labels_BL = self._text(key_BK, value_BK, frame_BK)
        plan = self._plan(ids_BL, labels_BL, kept_BFP)
        return NeedleBatch(video_BTPC, ids_BL, labels_BL, key_BK, value_BK, frame_BK, plan)

    def _text(self, key_BK: Tensor, value_BK: Tensor, frame_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and labels [B, L]; with `when`, the quarters follow behind the token that asks."""
        task = self.task
        hidden_BK = torch.full_like(key_BK, IGNORE_INDEX)
        answer_BK = task.keys + value_BK
        ids = [torch.full_like(key_BK[:, :1], IMAGE_TOKEN_INDEX)]
        labels = [hidden_BK[:, :1]]
        ids.append(torch.stack([key_BK, answer_BK], -1).flatten(1))
        labels.append(torch.stack([hidden_BK, answer_BK], -1).flatten(1))
        if task.when:
            quarter_BK = task.keys + task.values + frame_BK * 4 // task.frames
            ids.append(torch.full_like(key_BK[:, :1], task.vocabulary - 1))
            labels.append(hidden_BK[:, :1])
            ids.append(torch.stack([key_BK, quarter_BK], -1).flatten(1))
            labels.append(torch.stack([hidden_BK, quarter_BK], -1).flatten(1))
        return torch.cat(ids, 1), torch.cat(labels, 1)

    def _plan(self, ids_BL: Tensor, labels_BL: Tensor, kept_BFP: Tensor) -> PackPlan:
        """All samples have one structure; `join` tells it of the first, and the rest is shifted."""
        (batch, length), tokens = ids_BL.shape, self.task.side**2
        newline_BF1 = torch.full_like(kept_BFP[..., :1], tokens)
        rows_BFP = torch.cat([kept_BFP, newline_BF1], -1) + self.kept_F[:, None] * (tokens + 1)
        rows_BQ = rows_BFP.flatten(1)
        one = self._structure(ids_BL[0], labels_BL[0], rows_BQ[0])
        sample_B1 = torch.arange(batch, device=self.device)[:, None]

        def in_pack(sources: Tensor) -> Tensor:
            visual_start = batch * length - length + sample_B1 * rows_BQ.shape[1]
            return torch.where(
                sources < length, sources + sample_B1 * length, sources + visual_start
            )

        query_sources_BM = in_pack(one.query_sources_M)
        is_visual_M = one.query_sources_M >= length
        query_positions_BM = one.query_positions_M.repeat(batch, 1)
        query_positions_BM[:, is_visual_M] = rows_BQ
        labels_BS = labels_BL.new_full((batch, one.length), IGNORE_INDEX)
        labels_BS[:, one.sources_S < length] = labels_BL[:, 1:]
        memory_N = torch.arange(self.memory_length, device=self.device)
        return PackPlan(
            ids_L=ids_BL.clamp(min=0).flatten(),
            looked_up_N=None,
            memory_positions_N=memory_N.repeat(batch),
            memory_lengths=(self.memory_length,) * batch,
            memory_rows_Q=(rows_BQ + sample_B1 * self.memory_length).flatten(),
            query_sources_M=query_sources_BM.flatten(),
            query_positions_M=query_positions_BM.flatten(),
            query_lengths=(len(one.query_sources_M),) * batch,
            visual_rows_Q=(query_sources_BM.flatten() >= batch * length).nonzero().flatten(),
            sources_S=in_pack(one.sources_S).flatten(),
            positions_S=torch.arange(one.length, device=self.device).repeat(batch),
            labels_S=labels_BS.flatten(),
            lengths=(one.length,) * batch,
        )

    def _structure(self, ids_L: Tensor, labels_L: Tensor, rows_Q: Tensor) -> SamplePlan:
        """One sample as real data is put together: on the host, then moved."""
        rows_Q = rows_Q.cpu()
        layout = Layout(torch.arange(self.memory_length), rows_Q, rows_Q, (len(rows_Q),))
        plan = join(ids_L.cpu(), labels_L.cpu(), layout)
        return replace(
            plan,
            query_sources_M=plan.query_sources_M.to(self.device),
            query_positions_M=plan.query_positions_M.to(self.device),
            sources_S=plan.sources_S.to(self.device),
        )


def prepare(model: HourLlava, batch: NeedleBatch) -> LLMInput:
    """What `HourLlava.prepare` does of samples, of a batch that is laid out already."""
    plan, video = batch.plan, batch.video_BTPC
    tokens = model.projector(video.flatten(0, 2)).unflatten(0, (-1, video.shape[2]))
    # Frames of all videos one after another: each ends in a newline in any case.
    frames = Visual("features", features=video.flatten(0, 1))
    memory_ND = build_memory(frames, tokens, model.image_newline, model.config)
    text_LD = model.llm.model.embed_tokens(plan.ids_L)
    embeds = torch.cat([text_LD, model._augment(plan, text_LD, memory_ND)])
    lengths = SequenceLengths.of(plan.lengths, text_LD.device)
    return LLMInput(plan, embeds[plan.sources_S], plan.positions_S, lengths)


class KeptOnly(HourLlava):
    """MemAug attends to the tokens that forgetting kept, not to the whole memory."""

    def _augment(self, plan: PackPlan, text_LD: Tensor, memory_ND: Tensor) -> Tensor:
        kept = len(plan.memory_rows_Q) // len(plan.memory_lengths)
        own = replace(
            plan,
            looked_up_N=plan.memory_rows_Q,
            memory_positions_N=plan.memory_positions_N[plan.memory_rows_Q],
            memory_lengths=(kept,) * len(plan.memory_lengths),
        )
        return super()._augment(own, text_LD, memory_ND)


class NoMemAug(HourLlava):
    """The kept tokens go to the language model as they are."""

    def _augment(self, plan: PackPlan, text_LD: Tensor, memory_ND: Tensor) -> Tensor:
        return memory_ND[plan.memory_rows_Q]


def model_config(
    task: NeedleTask, arm: Arm, hidden_size: int = 64, depth: int = 2
) -> HourLlavaConfig:
    """A small Hour-LLaVA whose memory takes the task's tokens; the vision encoder is there and
    never used.
    """
    memory = MemoryConfig(pooled_side=task.side, min_frames=1)
    if arm == "frames":  # it is given few frames and forgets nothing of them
        memory = replace(memory, temporal_ratio=1.0, spatial_ratio=1.0)
    heads = hidden_size // HEAD_DIM
    return HourLlavaConfig(
        variant="needle",
        vision=VisionConfig(
            4 * task.side, 4, task.width, 4 * task.width, num_layers=1, num_heads=2
        ),
        llm=LLMConfig(hidden_size, 2, heads, max(1, heads // 2), 4 * hidden_size, task.vocabulary),
        memory=memory,
        memaug_depth=depth,
    )


def build_model(
    task: NeedleTask, arm: Arm, seed: str, hidden_size: int = 64, depth: int = 2
) -> HourLlava:
    """The arm's model. Weights are drawn by name with the spread of `nn.Linear`: from scratch,
    0.02 is too little.
    """
    kind = {"memory": HourLlava, "frames": HourLlava, "kept": KeptOnly, "none": NoMemAug}[arm]
    model = kind(model_config(task, arm, hidden_size, depth))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            std = (
                1.0
                if "embed_tokens" in name
                else 1 / math.sqrt(3 * tensor[0].numel())
                if tensor.ndim > 1
                else 1 / 8
            )
            tensor.copy_(drawn(name, tuple(tensor.shape), seed, std))
    return model


def shown_frames(task: NeedleTask) -> int:
    """How many whole frames have as many tokens as what forgetting keeps."""
    memory = MemoryConfig()
    kept = len(kept_frames(task.frames, memory)) * (kept_tokens(task.side**2, memory) + 1)
    return max(1, round(kept / (task.side**2 + 1)))
