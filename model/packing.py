"""Where text and visual tokens go: the order of MemAug's queries and of the language model's input,
as index tables.

All on the host and from integers alone, so that nothing in the forward pass waits for the device,
and a data loader can tell a sample's length before any tensor of the model exists.

Shapes: L input ids, N memory tokens, Q visual tokens (queries that become input), M MemAug queries
(visual and prompt), S tokens of the language model's input, R supervised rows; of one sample, or of
all samples of a pack one after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import HourLlavaConfig
from model.inputs import IGNORE_INDEX, IMAGE_TOKEN_INDEX, SampleInputs, check
from model.memory import Forgetting, Layout, lay_out


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """How one sample is put together. A source s >= 0 is input id number s; s < 0 is visual token
    number -1 - s.

    MemAug's visual tokens are what forgetting kept of the memory; the language model's are MemAug's
    outputs for them.
    """

    layout: Layout | None  # None: no visual, the sample passes MemAug by
    query_sources_M: Tensor
    query_positions_M: Tensor
    sources_S: Tensor
    labels_S: Tensor

    @property
    def length(self) -> int:
        return len(self.sources_S)


@dataclass(frozen=True, slots=True)
class PackPlan:
    """How a pack of samples is put together. Sources index [all text embeddings L | all visual
    tokens Q].
    """

    ids_L: Tensor
    memory_positions_N: Tensor
    memory_lengths: tuple[int, ...]  # of the samples with visuals; empty if there are none
    memory_rows_Q: Tensor  # rows of all memories: the visual tokens as MemAug first sees them
    query_sources_M: Tensor
    query_positions_M: Tensor
    query_lengths: tuple[int, ...]
    visual_rows_Q: Tensor  # rows of MemAug's output that are visual
    sources_S: Tensor
    positions_S: Tensor
    labels_S: Tensor
    lengths: tuple[int, ...]

    @property
    def targets(self) -> tuple[Tensor, Tensor]:
        """Rows whose next token, in the same sample, is supervised, and that token: two [R]."""
        next_S = torch.full_like(self.labels_S, IGNORE_INDEX)
        next_S[:-1] = self.labels_S[1:]
        next_S[torch.tensor(self.lengths).cumsum(0) - 1] = IGNORE_INDEX
        rows_R = (next_S != IGNORE_INDEX).nonzero().flatten()
        return rows_R, next_S[rows_R]


def plan_sample(
    sample: SampleInputs, config: HourLlavaConfig, forgetting: Forgetting
) -> SamplePlan:
    """Check a sample and lay it out. Raises ValueError, naming it, if it is malformed or too long
    for the model.
    """
    check(sample, config)
    layout = None
    if sample.visuals:
        try:
            layout = lay_out(sample.visuals, config, forgetting, forgetting_generator(sample))
        except ValueError as error:
            raise ValueError(f"sample {sample.id!r}: {error}") from error
    plan = _splice(sample.input_ids.cpu(), sample.labels.cpu(), layout)
    if plan.length > config.max_length:
        visual = sum(layout.query_lengths) if layout else 0
        raise ValueError(
            f"sample {sample.id!r}: {plan.length} tokens ({visual} visual, {plan.length - visual} "
            f"text) are more than the {config.max_length} of {config.variant}; drop or split it, "
            "it is not cut so that no answer is lost"
        )
    return plan


def forgetting_generator(sample: SampleInputs) -> torch.Generator | None:
    """The source of a sample's random forgetting: its own seed, never the global generator."""
    return None if sample.seed is None else torch.Generator().manual_seed(sample.seed)


def _splice(ids_L: Tensor, labels_L: Tensor, layout: Layout | None) -> SamplePlan:
    """Walk the text segments and the visuals between them.

    MemAug's positions run on through the sample. A visual's positions count from the memory's start
    and are shifted by what came before; as those of a later image already count the earlier images,
    they drift. Weights expect it so.
    """
    query_sources, query_positions, sources, labels = [], [], [], []
    next_position = next_visual = start = 0
    lengths = iter(layout.query_lengths if layout else ())
    for end in [*(ids_L == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist(), len(ids_L)]:
        segment = torch.arange(start, end)
        prompt = segment[labels_L[start:end] == IGNORE_INDEX]
        query_sources.append(prompt)
        query_positions.append(torch.arange(next_position, next_position + len(prompt)))
        sources.append(segment)
        labels.append(labels_L[start:end])
        next_position += len(prompt)
        start = end + 1
        if end == len(ids_L):
            break
        assert layout is not None  # `check` saw as many visuals as placeholders
        visual = torch.arange(next_visual, next_visual + next(lengths))
        query_sources.append(-1 - visual)
        query_positions.append(layout.query_positions_Q[visual] + next_position)
        sources.append(-1 - visual)
        labels.append(torch.full_like(visual, IGNORE_INDEX))
        next_position = int(query_positions[-1].max()) + 1
        next_visual += len(visual)
    return SamplePlan(
        layout, *(torch.cat(parts) for parts in (query_sources, query_positions, sources, labels))
    )


def plan_pack(
    samples: Sequence[SampleInputs], config: HourLlavaConfig, forgetting: Forgetting
) -> PackPlan:
    """Lay several samples out one after another. Raises ValueError that names the sample which
    cannot be used.
    """
    plans = [plan_sample(sample, config, forgetting) for sample in samples]
    layouts = [plan.layout for plan in plans if plan.layout is not None]
    text_starts = _starts(len(sample.input_ids) for sample in samples)
    visual_starts = _starts(sum(plan.layout.query_lengths) if plan.layout else 0 for plan in plans)
    memory_starts = _starts(len(layout.memory_positions_N) for layout in layouts)
    text_total = text_starts[-1]

    def globalise(sources: Tensor, number: int) -> Tensor:
        visual = text_total + visual_starts[number] - 1 - sources
        return torch.where(sources >= 0, sources + text_starts[number], visual)

    seeing = [(number, plan) for number, plan in enumerate(plans) if plan.layout is not None]
    query_sources_M = _cat(globalise(plan.query_sources_M, number) for number, plan in seeing)
    ids_L = _cat(sample.input_ids.cpu() for sample in samples)
    return PackPlan(
        ids_L=ids_L.where(
            ids_L != IMAGE_TOKEN_INDEX, 0
        ),  # a placeholder's embedding is never picked
        memory_positions_N=_cat(layout.memory_positions_N for layout in layouts),
        memory_lengths=tuple(len(layout.memory_positions_N) for layout in layouts),
        memory_rows_Q=_cat(
            x.query_rows_Q + start for x, start in zip(layouts, memory_starts, strict=False)
        ),
        query_sources_M=query_sources_M,
        query_positions_M=_cat(plan.query_positions_M for _, plan in seeing),
        query_lengths=tuple(len(plan.query_sources_M) for _, plan in seeing),
        visual_rows_Q=(query_sources_M >= text_total).nonzero().flatten(),
        sources_S=_cat(globalise(plan.sources_S, number) for number, plan in enumerate(plans)),
        positions_S=_cat(torch.arange(plan.length) for plan in plans),
        labels_S=_cat(plan.labels_S for plan in plans),
        lengths=tuple(plan.length for plan in plans),
    )


def _starts(lengths: Iterable[int]) -> list[int]:
    """Where each of consecutive pieces starts, and, last, where they end."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return starts


def _cat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([torch.empty(0, dtype=torch.int64), *tensors])
