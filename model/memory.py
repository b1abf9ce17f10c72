"""The memory of a visual, and forgetting: which of its tokens become queries, and where every token
stands.

`lay_out` is pure geometry on the host and needs no tensor of the model; `build_memory` makes the
memory itself.

| visual | memory                                         | queries                                                  |
|--------|------------------------------------------------|----------------------------------------------------------|
| video  | each frame's tokens, then the newline          | of a quarter of the frames, a quarter and the newline    |
| anyres | base tokens, then map rows with a newline each | a quarter of both, newlines after rows with a token left |
| images | each image's tokens, then the newline          | of each image, a quarter and the newline                 |

Shapes: T frames or images, P tokens of one, N memory tokens, Q query tokens, C vision width, D
width, H W map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.anyres import arrange_map, memory_order, query_order
from model.attention import as_rows
from model.config import HourLlavaConfig
from model.inputs import Visual, anyres_layout

Forgetting = Literal["random", "uniform"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Memory and queries of one sample's visuals; positions before the shift by the prompt."""

    memory_positions_N: Tensor
    query_rows_Q: Tensor  # rows of the memory
    query_positions_Q: Tensor
    query_lengths: tuple[int, ...]  # queries that each placeholder becomes


def lay_out(
    visuals: Sequence[Visual],
    config: HourLlavaConfig,
    forgetting: Forgetting,
    generator: torch.Generator | None,
) -> Layout:
    """Plan a sample's memory and what `forgetting` keeps of it; `random` draws from `generator` (on
    the CPU).
    """
    if forgetting == "random" and generator is None:
        raise ValueError("random forgetting needs a seed for every sample")
    draw = generator if forgetting == "random" else None
    visual = visuals[0]
    if visual.kind == "anyres":
        return _lay_out_anyres(visual, config, draw)
    if visual.kind == "images":
        return _lay_out_images(sum(visual.placeholders for visual in visuals), config, draw)
    assert visual.tensor is not None  # `inputs.check` saw to it
    return _lay_out_video(len(visual.tensor), config, draw)


def spread(count: int, total: int) -> Tensor:
    """`count` indices spread evenly over 0 .. total - 1, rounded down as numpy's float64 linspace
    is.
    """
    return torch.from_numpy(np.linspace(0, total - 1, count).astype(np.int64))


def _keep(
    height: int,
    width: int,
    rows: int,
    config: HourLlavaConfig,
    generator: torch.Generator | None,
    chosen: Tensor | None = None,
) -> Tensor:
    """Ascending indices of the tokens kept of each of `rows` maps, or of the `chosen` ones among
    them: [rows, kept].

    All rows are drawn, chosen or not: what a seed keeps of a frame must not depend on which frames
    are kept.
    """
    if generator is None:
        stride, kept_rows = config.memory.stride, rows if chosen is None else len(chosen)
        kept = torch.arange(height * width).view(height, width)[::stride, ::stride]
        return kept.reshape(1, -1).expand(kept_rows, -1)
    count = math.ceil(height * width * config.memory.spatial_ratio)
    drawn = torch.rand(rows, height * width, generator=generator)
    drawn = drawn if chosen is None else drawn[chosen]
    return drawn.argsort(dim=1)[:, :count].sort(dim=1).values


def _lay_out_video(
    frames: int, config: HourLlavaConfig, generator: torch.Generator | None
) -> Layout:
    memory = config.memory
    frames = max(frames, memory.min_frames)
    step = memory.frame_tokens + 1
    kept_frames = spread(
        max(1, min(memory.max_query_frames, int(frames * memory.temporal_ratio))), frames
    )
    kept_TP = _keep(memory.pooled_side, memory.pooled_side, frames, config, generator, kept_frames)
    newline_T1 = torch.full((len(kept_frames), 1), memory.frame_tokens)
    rows_Q = (torch.cat([kept_TP, newline_T1], dim=1) + step * kept_frames[:, None]).flatten()
    return Layout(torch.arange(frames * step), rows_Q, rows_Q, (len(rows_Q),))


def _lay_out_images(
    images: int, config: HourLlavaConfig, generator: torch.Generator | None
) -> Layout:
    side = config.vision.patches_per_side
    tokens = side**2
    end = images * tokens  # all newlines share this position, one past the last image's tokens
    kept_TP = _keep(side, side, images, config, generator)
    image_T1 = torch.arange(images)[:, None]
    newline_T1 = torch.full((images, 1), end)
    return Layout(
        memory_positions_N=torch.cat(
            [torch.arange(end).view(images, tokens), newline_T1], dim=1
        ).flatten(),
        query_rows_Q=(
            torch.cat([kept_TP, torch.full((images, 1), tokens)], dim=1) + (tokens + 1) * image_T1
        ).flatten(),
        query_positions_Q=torch.cat([kept_TP + tokens * image_T1, newline_T1], dim=1).flatten(),
        query_lengths=(kept_TP.shape[1] + 1,) * images,
    )


def _lay_out_anyres(
    visual: Visual, config: HourLlavaConfig, generator: torch.Generator | None
) -> Layout:
    assert visual.image_size is not None
    layout = anyres_layout(visual.image_size, config)
    base_K = _keep(layout.side, layout.side, 1, config, generator)[0]
    map_K = _keep(layout.height, layout.width, 1, config, generator)[0]
    memory_source_N, memory_positions_N = memory_order(layout)
    query_source_Q, query_positions_Q = query_order(layout, base_K, map_K)
    row_of_source = torch.empty(layout.newline_row + 1, dtype=torch.int64)
    row_of_source[memory_source_N] = torch.arange(
        len(memory_source_N)
    )  # any of the newlines: they are all one vector
    return Layout(
        memory_positions_N, row_of_source[query_source_Q], query_positions_Q, (len(query_source_Q),)
    )


def build_memory(
    visual: Visual, tokens_TPD: Tensor, newline_D: Tensor, config: HourLlavaConfig
) -> Tensor:
    """Projected tokens of a visual's frames, images or pictures [T, P, D] to its memory [N, D]."""
    if visual.kind == "anyres":
        assert visual.image_size is not None
        map_HWD = arrange_map(tokens_TPD[1:], anyres_layout(visual.image_size, config))
        return torch.cat([tokens_TPD[0], _end_rows(map_HWD, newline_D)])
    if visual.kind != "images" and len(tokens_TPD) < config.memory.min_frames:
        tokens_TPD = tokens_TPD[
            spread(config.memory.min_frames, len(tokens_TPD)).to(tokens_TPD.device)
        ]
    return _end_rows(tokens_TPD, newline_D)


def _end_rows(rows_HWD: Tensor, newline_D: Tensor) -> Tensor:
    """Append the newline to every row and flatten."""
    newline_H1D = newline_D.repeat(
        len(rows_HWD), 1, 1
    )  # a real tensor: joining an expanded one is three times slower
    return as_rows(torch.cat([rows_HWD, newline_H1D], dim=1), (-1, len(newline_D)))
