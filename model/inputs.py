"""One sample as the model takes it: token ids with placeholders, labels, and the visuals that fill
the placeholders.

Shapes: T frames, S image size in pixels, P pooled tokens of a frame, C vision width, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import torch
from torch import Tensor

from model.anyres import AnyresLayout, plan_anyres
from model.config import HourLlavaConfig, TemplateTokens

# A label that is not supervised; an input token with it is a prompt token, which MemAug sees.
IGNORE_INDEX = -100
IMAGE_TOKEN_INDEX = -200  # the id that stands for one visual in `input_ids`

KINDS = ("frames", "features", "anyres", "images")


@dataclass(slots=True)
class Visual:
    """What stands behind `<image>`.

    kind       fills              tensor
    frames     one placeholder    pixels [T, 3, S, S], a video
    features   one placeholder    features [T, P, C], a video through the vision encoder and pooling
    anyres     one placeholder    pixels [1 + tiles, 3, S, S], the whole image first;
                                  image_size (width, height)
    images     n placeholders     pixels [n, 3, S, S], each padded to a square: several images,
                                  or one crop when n is 1

    Pixels are uint8 (u stands for u / 127.5 - 1) or floating point, already normalised.
    """

    kind: str
    pixels: Tensor | None = None
    features: Tensor | None = None
    image_size: tuple[int, int] | None = None

    @property
    def tensor(self) -> Tensor | None:
        """The one that its kind asks for."""
        return self.features if self.kind == "features" else self.pixels

    @property
    def placeholders(self) -> int:
        return len(self.pixels) if self.kind == "images" and self.pixels is not None else 1


@dataclass(slots=True)
class SampleInputs:
    """One conversation. `visuals` are in the order of the placeholders.

    A sample holds either no visual, one of kind frames, features or anyres, or any number of
    images. `labels` are those of the ids (not shifted); placeholders carry IGNORE_INDEX. `seed`
    decides random forgetting and nothing else. `damage` says for people what is wrong with its
    video; empty where nothing shows. `shown` says which ids MemAug sees; None: those without a
    label.
    """

    id: str
    input_ids: Tensor  # [L] int64
    labels: Tensor  # [L] int64
    visuals: list[Visual] = field(default_factory=list)
    seed: int | None = None
    damage: str = ""
    shown: Tensor | None = None  # [L] bool

    @property
    def shown_L(self) -> Tensor:
        """Which ids MemAug sees: [L] bool, also true at the placeholders."""
        return self.labels == IGNORE_INDEX if self.shown is None else self.shown


def check(sample: SampleInputs, config: HourLlavaConfig) -> None:
    """Raise ValueError, naming the sample, if the model could not use it."""

    def bad(message: str) -> ValueError:
        return ValueError(f"sample {sample.id!r}: {message}")

    if sample.input_ids.ndim != 1 or sample.input_ids.shape != sample.labels.shape:
        shapes = f"input_ids {list(sample.input_ids.shape)} and labels {list(sample.labels.shape)}"
        raise bad(f"{shapes} must be vectors of one length")
    if sample.input_ids.dtype != torch.int64 or sample.labels.dtype != torch.int64:
        raise bad(
            f"input_ids and labels must be int64, not {sample.input_ids.dtype} and "
            f"{sample.labels.dtype}"
        )
    if sample.shown is not None and (
        sample.shown.shape != sample.labels.shape or sample.shown.dtype != torch.bool
    ):
        raise bad("shown must be a bool for each of its tokens")
    if not len(sample.input_ids):
        raise bad("it has no tokens")
    placeholder_L = sample.input_ids == IMAGE_TOKEN_INDEX
    wanted, given = int(placeholder_L.sum()), sum(visual.placeholders for visual in sample.visuals)
    if wanted != given:
        raise bad(f"the text has {wanted} <image> placeholders but {given} visuals were given")
    text = sample.input_ids[~placeholder_L]
    if len(text) and not 0 <= int(text.min()) <= int(text.max()) < config.llm.vocab_size:
        raise bad(
            f"token ids lie in {int(text.min())} .. {int(text.max())}; {config.variant} has "
            f"{config.llm.vocab_size}: was it tokenised for another variant?"
        )
    if bool((sample.labels[placeholder_L] != IGNORE_INDEX).any()):
        raise bad("a placeholder carries a label; visual tokens are never supervised")
    if len(sample.visuals) > 1 and any(visual.kind != "images" for visual in sample.visuals):
        raise bad(
            "several visuals must all be of kind 'images', not "
            f"{[visual.kind for visual in sample.visuals]}"
        )
    for visual in sample.visuals:
        if problem := _problem(visual, config):
            raise bad(problem)


def _problem(visual: Visual, config: HourLlavaConfig) -> str | None:
    if visual.kind not in KINDS:
        return f"unknown kind of visual {visual.kind!r}; known: {KINDS}"
    if visual.kind == "features":
        wanted = [config.memory.frame_tokens, config.vision.hidden_size]
    else:
        wanted = [3, config.vision.image_size, config.vision.image_size]
    tensor = visual.tensor
    if tensor is None:
        needed = "features" if visual.kind == "features" else "pixels"
        return f"a visual of kind {visual.kind!r} needs {needed}"
    if list(tensor.shape[1:]) != wanted or not len(tensor):
        return (
            f"{visual.kind} of shape {list(tensor.shape)}; variant {config.variant} takes "
            f"[at least 1, {', '.join(map(str, wanted))}]"
        )
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        return f"{visual.kind} of type {tensor.dtype}; uint8 or floating point is needed"
    if visual.kind == "features" and tensor.dtype == torch.uint8:
        return "features of type uint8; floating point is needed"
    if visual.kind == "anyres":
        if visual.image_size is None or min(visual.image_size) < 1:
            return f"an anyres image needs its original (width, height), not {visual.image_size}"
        layout = anyres_layout(visual.image_size, config)
        if len(tensor) != 1 + layout.tiles:
            return (
                f"an image of {visual.image_size} is cut into {layout.columns} x {layout.rows} "
                f"tiles, so its pixels must hold {1 + layout.tiles} pictures, not {len(tensor)}"
            )
    return None


TEMPLATE_TOKENS = get_args(TemplateTokens)


def with_template_tokens(sample: SampleInputs, template_tokens: str) -> SampleInputs:
    """A prompt whose chat template (headers, ends of turns, lone newlines) MemAug sees or not,
    whatever the model's configuration says.

    `hidden` is how the released weights were trained: these tokens are supervised, and MemAug sees
    no supervised token. `seen` is what the published code does where labels are missing.

    Raises:
        ValueError: it is neither.
    """
    if template_tokens not in TEMPLATE_TOKENS:
        raise ValueError(
            f"template_tokens is {template_tokens!r}; known: {', '.join(TEMPLATE_TOKENS)}"
        )
    if template_tokens == "hidden":
        return replace(sample, shown=None)
    return replace(sample, shown=torch.ones_like(sample.labels, dtype=torch.bool))


def pad_left(rows: Sequence[Tensor], value: float = 0) -> tuple[Tensor, Tensor]:
    """Rows [L, ...] of different lengths as one tensor [B, longest, ...], and where it is not
    padding, int64 [B, longest].
    """
    longest = max(len(row) for row in rows)
    padded = rows[0].new_full((len(rows), longest, *rows[0].shape[1:]), value)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64, device=rows[0].device)
    for number, row in enumerate(rows):
        padded[number, longest - len(row) :], mask[number, longest - len(row) :] = row, 1
    return padded, mask


def anyres_layout(image_size: tuple[int, int], config: HourLlavaConfig) -> AnyresLayout:
    """The tile grid of an image of (width, height) in this model."""
    side, tile = config.vision.patches_per_side, config.vision.image_size
    return plan_anyres(
        image_size, tile=tile, side=side, grid=config.image_grid, max_squares=config.anyres_max
    )
