"""Where every token of a pack comes from: index tables that join text and visual tokens.

A sample's text has one placeholder (-200) where a visual stands. MemAug's queries are the prompt
and the visual tokens; the language model's input is all of the text and the visual tokens. Both are
gathered by index from one table, [text embeddings | visual tokens]: index i below L is input id
number i, and index L + q is visual token number q. The same holds of a pack, where the table has
the text of all samples and then the visual tokens of all samples.

An example: a prompt id 7, a visual of which forgetting has kept three tokens, a prompt id 8, and an
answer 9. In the language model these are six tokens.

    >>> ids, labels = tensor([7, -200, 8, 9]), tensor([-100, -100, -100, 9])
    >>> kept = tensor([0, 2, 4])                  # of five memory tokens
    >>> plan = join(ids, labels, Layout(torch.arange(5), kept, kept, query_lengths=(3,)))
    >>> plan.sources_S.tolist()                   # 7, three visual tokens (4 + 0, 1, 2), 8, 9
    [0, 4, 5, 6, 2, 3]
    >>> plan.labels_S.tolist()                    # only the answer is supervised
    [-100, -100, -100, -100, -100, 9]
    >>> plan.query_sources_M.tolist()             # MemAug: the same without the answer
    [0, 4, 5, 6, 2]
    >>> plan.query_positions_M.tolist()           # those of the memory, behind the first id
    [0, 1, 3, 5, 6]

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
from model.memory import Layout, lay_out, looked_up


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """How one sample is put together. Sources are indices into [text | visual tokens].

    MemAug's visual tokens are what forgetting kept of the memory; the language model's are MemAug's
    outputs for them.

    Attributes:
        layout: of its visuals; None where it has none: the sample then skips MemAug.
        query_sources_M, query_positions_M: MemAug's queries.
        sources_S, labels_S: the language model's input, and what is supervised of it (not shifted).
    """

    layout: Layout | None
    query_sources_M: Tensor
    query_positions_M: Tensor
    sources_S: Tensor
    labels_S: Tensor

    @property
    def length(self) -> int:
        return len(self.sources_S)


@dataclass(frozen=True, slots=True)
class PackPlan:
    """How a pack of samples is put together. Sources are indices into [text of all samples | visual
    tokens of all samples].

    Attributes:
        ids_L: text of all samples; 0 where a placeholder was.
        looked_up_N: rows of all memories that MemAug looks up; None: all of them.
        memory_positions_N: of these; memory_lengths: of each sample that has visuals.
        memory_rows_Q: rows of all memories that are kept: the visual tokens as MemAug's queries.
        query_sources_M, query_positions_M, query_lengths: MemAug's queries, of the same samples.
        visual_rows_Q: rows of MemAug's output that are visual tokens.
        sources_S, positions_S, labels_S, lengths: the language model's input.
    """

    ids_L: Tensor
    looked_up_N: Tensor | None
    memory_positions_N: Tensor
    memory_lengths: tuple[int, ...]
    memory_rows_Q: Tensor
    query_sources_M: Tensor
    query_positions_M: Tensor
    query_lengths: tuple[int, ...]
    visual_rows_Q: Tensor
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
    sample: SampleInputs,
    config: HourLlavaConfig,
    forgetting: str,
    frames_K: Tensor | None = None,
) -> SamplePlan:
    """Check a sample and lay it out.

    Args:
        forgetting: which tokens of a frame or picture stay.
        frames_K: which frames of its video stay; may be left out where only lengths matter.

    Raises:
        ValueError: it is malformed or too long for the model; it is named.
    """
    check(sample, config)
    layout = None
    if sample.visuals:
        try:
            generator = forgetting_generator(sample)
            layout = lay_out(sample.visuals, config, forgetting, generator, frames_K)
        except ValueError as error:
            raise ValueError(f"sample {sample.id!r}: {error}") from error
    plan = join(sample.input_ids.cpu(), sample.labels.cpu(), layout, sample.shown_L.cpu())
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


def join(
    ids_L: Tensor, labels_L: Tensor, layout: Layout | None, shown_L: Tensor | None = None
) -> SamplePlan:
    """Walk the text between the placeholders, and the visuals that stand for the placeholders.

    MemAug sees the ids of `shown_L`, by default those without a label.

    MemAug's positions run on through the sample. A visual's positions count from the memory's start
    and are shifted by what came before; as those of a later image already count the earlier images,
    they drift. Weights expect it so.
    """
    query_sources, query_positions, sources, labels = [], [], [], []
    next_position = next_visual = start = 0
    lengths = iter(layout.query_lengths if layout else ())
    shown_L = labels_L == IGNORE_INDEX if shown_L is None else shown_L
    for end in [*(ids_L == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist(), len(ids_L)]:
        text = torch.arange(start, end)
        prompt = text[shown_L[start:end]]
        query_sources.append(prompt)
        query_positions.append(torch.arange(next_position, next_position + len(prompt)))
        sources.append(text)
        labels.append(labels_L[start:end])
        next_position += len(prompt)
        start = end + 1
        if end == len(ids_L):
            break
        assert layout is not None  # `check` saw as many visuals as placeholders
        visual = torch.arange(next_visual, next_visual + next(lengths))
        query_sources.append(len(ids_L) + visual)
        query_positions.append(layout.query_positions_Q[visual] + next_position)
        sources.append(len(ids_L) + visual)
        labels.append(torch.full_like(visual, IGNORE_INDEX))
        next_position = int(query_positions[-1].max()) + 1
        next_visual += len(visual)
    return SamplePlan(
        layout, *(torch.cat(parts) for parts in (query_sources, query_positions, sources, labels))
    )


def plan_pack(
    samples: Sequence[SampleInputs],
    config: HourLlavaConfig,
    forgetting: str,
    memory_scale: float | None = None,
    frames: Sequence[Tensor | None] | None = None,
) -> PackPlan:
    """Lay several samples out one after another.

    Args:
        memory_scale: share of a video's memory that MemAug looks up, instead of the
            configuration's; see `looked_up`.
        frames: of each sample, which frames of its video stay; see `model.choice.choose_frames`.

    Raises:
        ValueError: a sample cannot be used; it is named.
    """
    scale = config.memory.scale if memory_scale is None else memory_scale
    plans = [
        plan_sample(sample, config, forgetting, frames_K)
        for sample, frames_K in zip(samples, frames or [None] * len(samples), strict=True)
    ]
    seeing = [(number, plan) for number, plan in enumerate(plans) if plan.layout is not None]
    layouts = [plan.layout for plan in plans if plan.layout is not None]
    text_starts = _starts(len(sample.input_ids) for sample in samples)
    visual_starts = _starts(sum(plan.layout.query_lengths) if plan.layout else 0 for plan in plans)
    memory_starts = _starts(len(layout.memory_positions_N) for layout in layouts)

    chosen = [
        looked_up(samples[number].visuals, layout, config, scale)
        for (number, _), layout in zip(seeing, layouts, strict=True)
    ]
    rows = [
        torch.arange(len(layout.memory_positions_N)) if some is None else some
        for layout, some in zip(layouts, chosen, strict=True)
    ]

    def in_pack(sources: Tensor, number: int) -> Tensor:
        """A sample's sources as those of the pack."""
        own_text = len(samples[number].input_ids)
        as_text = sources + text_starts[number]
        as_visual = sources - own_text + text_starts[-1] + visual_starts[number]
        return torch.where(sources < own_text, as_text, as_visual)

    ids_L = _cat(sample.input_ids.cpu() for sample in samples)
    query_sources_M = _cat(in_pack(plan.query_sources_M, number) for number, plan in seeing)
    return PackPlan(
        ids_L=ids_L.where(ids_L != IMAGE_TOKEN_INDEX, 0),  # its embedding is never picked
        looked_up_N=None
        if all(some is None for some in chosen)
        else _cat(some + start for some, start in zip(rows, memory_starts, strict=False)),
        memory_positions_N=_cat(
            layout.memory_positions_N[some] for layout, some in zip(layouts, rows, strict=True)
        ),
        memory_lengths=tuple(len(some) for some in rows),
        memory_rows_Q=_cat(
            layout.query_rows_Q + start
            for layout, start in zip(layouts, memory_starts, strict=False)
        ),
        query_sources_M=query_sources_M,
        query_positions_M=_cat(plan.query_positions_M for _, plan in seeing),
        query_lengths=tuple(len(plan.query_sources_M) for _, plan in seeing),
        visual_rows_Q=(query_sources_M >= len(ids_L)).nonzero().flatten(),
        sources_S=_cat(in_pack(plan.sources_S, number) for number, plan in enumerate(plans)),
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
