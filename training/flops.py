"""What a sample costs: its sizes in tokens, and the model's floating point operations for it.

Sizes are read off shapes alone, before any forward pass: they decide what is packed together,
balance ranks, and are the work that model-FLOP utilisation counts. Operations are those of the
forward pass and of the gradients that are really formed (a frozen module forms none for its
weights); recomputation is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import torch

from model.config import HourLlavaConfig
from model.inputs import IGNORE_INDEX, IMAGE_TOKEN_INDEX, SampleInputs, Visual
from model.memory import looked_up_count, token_counts, video_token_counts
from model.vision_encoders import linear_sides, parameter_count, picture_cost
from training.formats.kinds import (
    IMAGE_KIND,
    LONG_VIDEO_KIND,
    MULTI_IMAGE_KIND,
    SHORT_VIDEO_KIND,
    SINGLE_IMAGE_KIND,
)
from training.recipes import Lora

# Of a sample of which only its kind is known. Assumed, the same in every estimate.
TEXT, SUPERVISED = 400, 256  # tokens
IMAGE_SIZE = (640, 480)  # pixels
IMAGES = 3  # of a sample about several


@dataclass(frozen=True, slots=True)
class Sizes:
    """One sample, or several together.

    Attributes:
        pictures: images and frames that pass the vision encoder.
        memory: memory tokens; queries: what forgetting keeps of them.
        text: text tokens; supervised: those of them that are predicted; prompt: those that MemAug
            sees.
        scores, query_pairs, token_pairs: pairs within samples of MemAug's queries and the memory
            that they look up, of its queries, and of the language model's tokens.
        looked_up: memory tokens that MemAug looks up; fewer where a model takes a share of them.
    """

    pictures: int = 0
    memory: int = 0
    queries: int = 0
    text: int = 0
    supervised: int = 0
    prompt: int = 0
    scores: int = 0
    query_pairs: int = 0
    token_pairs: int = 0
    looked_up: int = 0

    @property
    def tokens(self) -> int:
        """Length in the language model."""
        return self.text + self.queries

    def __add__(self, other: Sizes) -> Sizes:
        return Sizes(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


def total(sizes: Iterable[Sizes]) -> Sizes:
    return sum(sizes, Sizes())


def sizes_of(sample: SampleInputs, config: HourLlavaConfig) -> Sizes:
    """Sizes of one sample."""
    pictures = memory = queries = seen = 0
    for visual in sample.visuals:
        more_memory, more_queries = token_counts(visual, config)
        memory, queries = memory + more_memory, queries + more_queries
        video = visual.kind in ("features", "frames")
        seen += looked_up_count(more_memory, more_queries, config) if video else more_memory
        pictures += 0 if visual.pixels is None else len(visual.pixels)
    text = int((sample.input_ids != IMAGE_TOKEN_INDEX).sum())
    supervised = int((sample.labels[1:] != IGNORE_INDEX).sum())
    shown = text - supervised if sample.shown is None else int(sample.shown.sum())
    prompt = shown if sample.visuals else 0
    sizes = Sizes(pictures, memory, queries, text, supervised, prompt, looked_up=seen)
    return _with_pairs(sizes)


def typical_sizes(kind: str, config: HourLlavaConfig, seconds: float, *, kept: bool) -> Sizes:
    """Sizes of a sample of which only its kind is known and, of a video, its length.

    Args:
        kept: whether short videos are read as features.
    """
    frames = max(int(seconds), 1 if kind == LONG_VIDEO_KIND else config.memory.min_frames)
    if kind == LONG_VIDEO_KIND or (kind == SHORT_VIDEO_KIND and kept):
        return video_sizes(frames, TEXT, SUPERVISED, config)
    visuals: list[Visual] = []
    if kind == SHORT_VIDEO_KIND:
        visuals = [Visual("frames", torch.empty(frames, 0))]
    elif kind == MULTI_IMAGE_KIND:
        visuals = [Visual("images", torch.empty(IMAGES, 0))]
    elif kind in (IMAGE_KIND, SINGLE_IMAGE_KIND):
        tiles = math.prod(math.ceil(side / config.vision.image_size) for side in IMAGE_SIZE)
        visuals = [Visual("anyres", torch.empty(1 + tiles, 0), image_size=IMAGE_SIZE)]
    ids = torch.zeros(TEXT, dtype=torch.int64)
    labels = ids.clone()
    labels[: TEXT - SUPERVISED + 1] = IGNORE_INDEX  # the first label is never predicted
    placeholders = torch.full((sum(visual.placeholders for visual in visuals),), IMAGE_TOKEN_INDEX)
    unsupervised = torch.full_like(placeholders, IGNORE_INDEX)
    sample = SampleInputs(
        "typical", torch.cat([placeholders, ids]), torch.cat([unsupervised, labels]), visuals
    )
    return sizes_of(sample, config)


def video_sizes(frames: int, text: int, supervised: int, config: HourLlavaConfig) -> Sizes:
    """Sizes of a video sample given as features."""
    memory, queries = video_token_counts(frames, config)
    seen = looked_up_count(memory, queries, config)
    sizes = Sizes(0, memory, queries, text, supervised, text - supervised, looked_up=seen)
    return _with_pairs(sizes)


def _with_pairs(size: Sizes) -> Sizes:
    asked = size.queries + size.prompt
    return replace(
        size, scores=asked * size.looked_up, query_pairs=asked**2, token_pairs=size.tokens**2
    )


def flops(sizes: Sizes, config: HourLlavaConfig, tuned: Collection[str]) -> float:
    """Operations of one forward and backward pass over samples of these (total) sizes, with
    `tuned` modules.
    """
    work = 0.0
    below = False  # whether a gradient has to pass through to something tuned before
    for module, stacked, linear, attention in _forward(sizes, config):
        own = module in tuned and linear > 0
        if module == "memaug":
            below |= "llm" in tuned  # the prompt's embeddings enter MemAug
        # The first layer hands a gradient down only if something below wants it, those above it
        # also to that layer.
        through = below or (own and stacked)
        # Forward once; a linear layer then forms a gradient for its input and one for its weight,
        # attention two.
        work += linear * (1 + through + own) + attention * (1 + 2 * (below or own))
        below |= own
    return work


def forward_flops(sizes: Sizes, config: HourLlavaConfig) -> dict[str, float]:
    """Operations of a forward pass, by module."""
    work: dict[str, float] = {}
    for module, _, linear, attention in _forward(sizes, config):
        work[module] = work.get(module, 0.0) + linear + attention
    return work


def _forward(sizes: Sizes, config: HourLlavaConfig) -> list[tuple[str, bool, float, float]]:
    """Operations of a forward pass, in its order.

    Returns:
        Of each part: its module, whether layers of the same module lie below it, operations of its
        linear layers, and of its attention.
    """
    vision, llm = config.vision, config.llm
    c, d = vision.hidden_size, llm.hidden_size
    kv = llm.kv_width

    picture = picture_cost(vision)

    asked = sizes.queries + sizes.prompt
    depth = config.memaug_depth
    memaug_linear = depth * 2 * asked * (d * (d + kv) + d * d + 2 * d * d + 8 * d * d)
    memaug_attention = depth * 4 * d * (sizes.scores + sizes.query_pairs)

    llm_layer = 2 * d * d + d * kv + 3 * d * llm.intermediate_size
    llm_linear = (
        2 * sizes.tokens * llm.num_layers * llm_layer + 2 * sizes.supervised * d * llm.vocab_size
    )
    llm_attention = 4 * d * sizes.token_pairs / 2 * llm.num_layers  # causal: half of the pairs
    return [
        ("vision", False, sizes.pictures * picture.first, 0.0),
        ("vision", True, sizes.pictures * picture.linear, sizes.pictures * picture.attention),
        ("projector", False, 2 * sizes.memory * c * d, 0.0),
        ("projector", True, 2 * sizes.memory * d * d, 0.0),
        ("memaug", False, depth * 2 * sizes.looked_up * d * kv, 0.0),
        ("memaug", True, memaug_linear, memaug_attention),
        ("llm", True, llm_linear, llm_attention),
    ]


def parameters(config: HourLlavaConfig) -> dict[str, int]:
    """Number of parameters of each module; `embeddings`: those of the language model, with a head
    of its own.
    """
    vision, llm = config.vision, config.llm
    c, d = vision.hidden_size, llm.hidden_size
    kv = llm.kv_width
    block = (d * (d + kv) + d + kv) + (d * d + d) * 3 + (d * kv + kv) + (8 * d * d + 5 * d) + 6 * d
    layer = 2 * d * d + d + d * kv + kv + 3 * d * llm.intermediate_size + 2 * d
    embeddings = llm.vocab_size * d * (1 if llm.tie_word_embeddings else 2)
    return {
        "vision": parameter_count(vision),
        "projector": c * d + d + d * d + d,
        "memaug": config.memaug_depth * block,
        "llm": llm.num_layers * layer + d + embeddings + d,  # final norm, and image_newline
        "embeddings": embeddings,
    }


def adapter_parameters(config: HourLlavaConfig, lora: Lora | None) -> dict[str, int]:
    """Number of parameters of the adapters of each module that has some."""
    if lora is None:
        return {}
    vision, llm = config.vision, config.llm
    c, d, kv = vision.hidden_size, llm.hidden_size, llm.kv_width
    inner = llm.intermediate_size
    # Of each linear layer, its inputs and outputs together.
    sides = {
        "vision": linear_sides(vision),
        "projector": (c + d) + 2 * d,
        "memaug": config.memaug_depth * (2 * d + kv + 3 * 2 * d + d + kv + 2 * 5 * d),
        "llm": llm.num_layers * (2 * 2 * d + 2 * (d + kv // 2) + 3 * (d + inner)),
    }
    return {module: lora.rank * sides[module] for module in lora.modules}
