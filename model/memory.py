"""The memory of a visual, how many of its tokens become queries, and where every token stands.

`lay_out` and `token_counts` are pure geometry on the host and need no tensor of the model;
`build_memory` makes the memory itself. Which frames stay is decided in model/frame_rules, which of
their tokens in model/forgetting.py.

    visual   memory                                   queries
    video    each frame's tokens, then the newline    of a quarter of the frames a quarter of the
                                                      tokens, and the newline
    anyres   base tokens, then the map's rows with    a quarter of both, and the newlines of rows
             a newline each                           with a token left
    images   each image's tokens, then the newline    of each image a quarter, and the newline

Shapes: T frames or images, P tokens of one, N memory tokens, Q query tokens, C vision width, D
width, H W map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.anyres import arrange_map, memory_order, query_order
from model.attention import as_rows
from model.config import HourLlavaConfig, frame_step
from model.forgetting import find_rule, kept_count, kept_frames, kept_tokens, spread
from model.inputs import Visual, anyres_layout


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
    forgetting: str,
    generator: torch.Generator | None,
    frames_K: Tensor | None = None,
) -> Layout:
    """Plan a sample's memory and what forgetting keeps of it.

    Args:
        visuals: of one sample, at least one.
        forgetting: name of a rule of model/forgetting.py.
        generator: on the CPU, of the sample's seed.
        frames_K: the frames of its video that stay; evenly spread ones where only lengths matter,
            which do not depend on it.

    Raises:
        ValueError: there is no such rule, or it needs a seed.
    """
    keep = _Keep(config, forgetting, generator)
    visual = visuals[0]
    if visual.kind == "anyres":
        return _lay_out_anyres(visual, config, keep)
    if visual.kind == "images":
        return _lay_out_images(sum(visual.placeholders for visual in visuals), config, keep)
    assert visual.tensor is not None  # `inputs.check` saw to it
    return _lay_out_video(len(visual.tensor), config, keep, frames_K)


@dataclass(frozen=True, slots=True)
class _Keep:
    """A forgetting rule, applied to maps of one sample."""

    config: HourLlavaConfig
    forgetting: str
    generator: torch.Generator | None

    def __call__(self, height: int, width: int, total: int, chosen: Tensor | None = None) -> Tensor:
        """Indices of the tokens that stay of each of the chosen maps (else all): [maps, kept]."""
        chosen = torch.arange(total) if chosen is None else chosen
        rule = find_rule(self.forgetting)
        return rule(height, width, total, chosen, self.config.memory, self.generator)


def _lay_out_video(
    frames: int, config: HourLlavaConfig, keep: _Keep, frames_K: Tensor | None
) -> Layout:
    memory = config.memory
    frames = max(frames, memory.min_frames)
    frame_step = memory.frame_tokens + 1  # with the newline
    chosen_T = kept_frames(frames, memory) if frames_K is None else frames_K
    kept_TP = keep(memory.pooled_side, memory.pooled_side, frames, chosen_T)
    newline_T1 = torch.full((len(chosen_T), 1), memory.frame_tokens)
    rows_Q = (torch.cat([kept_TP, newline_T1], dim=1) + frame_step * chosen_T[:, None]).flatten()
    return Layout(torch.arange(frames * frame_step), rows_Q, rows_Q, (len(rows_Q),))


def _lay_out_images(images: int, config: HourLlavaConfig, keep: _Keep) -> Layout:
    side, tokens = config.vision.patches_per_side, config.vision.patches
    end = images * tokens  # all newlines share this position, one past the last image's tokens
    kept_TP = keep(side, side, images)
    image_T1 = torch.arange(images)[:, None]
    newline_T1 = torch.full((images, 1), end)
    memory_TP = torch.arange(end).view(images, tokens)
    kept_rows_TP = torch.cat([kept_TP, torch.full((images, 1), tokens)], dim=1)
    return Layout(
        memory_positions_N=torch.cat([memory_TP, newline_T1], dim=1).flatten(),
        query_rows_Q=(kept_rows_TP + (tokens + 1) * image_T1).flatten(),
        query_positions_Q=torch.cat([kept_TP + tokens * image_T1, newline_T1], dim=1).flatten(),
        query_lengths=(kept_TP.shape[1] + 1,) * images,
    )


def _lay_out_anyres(visual: Visual, config: HourLlavaConfig, keep: _Keep) -> Layout:
    assert visual.image_size is not None
    layout = anyres_layout(visual.image_size, config)
    base_K = keep(layout.side, layout.side, 1)[0]
    map_K = keep(layout.height, layout.width, 1)[0]
    memory_source_N, memory_positions_N = memory_order(layout)
    query_source_Q, query_positions_Q = query_order(layout, base_K, map_K)
    row_of_source = torch.empty(layout.newline_row + 1, dtype=torch.int64)
    # Of the newlines any row will do: they are all one vector.
    row_of_source[memory_source_N] = torch.arange(len(memory_source_N))
    return Layout(
        memory_positions_N, row_of_source[query_source_Q], query_positions_Q, (len(query_source_Q),)
    )


def looked_up(
    visuals: Sequence[Visual], layout: Layout, config: HourLlavaConfig, scale: float
) -> Tensor | None:
    """Rows of a video's memory that MemAug looks up, of which the published ablation takes a share:
    every n-th frame, or, with a scale of 0, the tokens that stay as queries. None: all rows, as of
    anything but a video.

    Raises:
        ValueError: the scale is neither 0 nor 1, 1/2, 1/3, ...
    """
    step = frame_step(scale)
    if step == 1 or visuals[0].kind not in ("features", "frames"):
        return None
    if step == 0:
        return layout.query_rows_Q
    rows_TP = torch.arange(len(layout.memory_positions_N)).view(-1, config.memory.frame_tokens + 1)
    return rows_TP[::step].flatten()


def looked_up_count(memory: int, queries: int, config: HourLlavaConfig) -> int:
    """How many tokens of a video's memory MemAug looks up, of `memory` that it has and `queries`
    that stay.
    """
    step = frame_step(config.memory.scale)
    if step == 0:
        return queries
    tokens = config.memory.frame_tokens + 1
    return -(-memory // tokens // step) * tokens


def token_counts(visual: Visual, config: HourLlavaConfig) -> tuple[int, int]:
    """(memory tokens, query tokens) of one visual by random forgetting, without laying it out."""
    assert visual.tensor is not None  # `inputs.check` saw to it
    if visual.kind in ("features", "frames"):
        return video_token_counts(len(visual.tensor), config)
    memory = config.memory
    if visual.kind == "images":
        images, patches = len(visual.tensor), config.vision.patches
        return images * (patches + 1), images * (kept_tokens(patches, memory) + 1)
    assert visual.image_size is not None
    layout = anyres_layout(visual.image_size, config)
    # The most there can be: a newline after every row of the map.
    kept = kept_tokens(layout.base_tokens, memory) + kept_tokens(layout.map_tokens, memory)
    return layout.memory_tokens, kept + layout.height


def video_token_counts(frames: int, config: HourLlavaConfig) -> tuple[int, int]:
    """(memory tokens, query tokens) of a video of so many frames."""
    memory = config.memory
    frames = max(frames, memory.min_frames)
    kept = kept_tokens(memory.frame_tokens, memory) + 1  # with the newline
    return frames * (memory.frame_tokens + 1), kept_count(frames, memory) * kept


def build_memory(
    visual: Visual, tokens_TPD: Tensor, newline_D: Tensor, config: HourLlavaConfig
) -> Tensor:
    """Projected tokens of a visual's frames, images or pictures [T, P, D] to its memory [N, D]."""
    if visual.kind == "anyres":
        assert visual.image_size is not None
        map_HWD = arrange_map(tokens_TPD[1:], anyres_layout(visual.image_size, config))
        return torch.cat([tokens_TPD[0], end_rows(map_HWD, newline_D)])
    if visual.kind != "images" and len(tokens_TPD) < config.memory.min_frames:
        repeated_T = spread(config.memory.min_frames, len(tokens_TPD))
        tokens_TPD = tokens_TPD[repeated_T.to(tokens_TPD.device)]
    return end_rows(tokens_TPD, newline_D)


def end_rows(rows_HWD: Tensor, newline_D: Tensor) -> Tensor:
    """Append the newline to every row and flatten."""
    # Repeated, not expanded: joining an expanded tensor is three times slower.
    newline_H1D = newline_D.repeat(len(rows_HWD), 1, 1)
    return as_rows(torch.cat([rows_HWD, newline_H1D], dim=1), (-1, len(newline_D)))
