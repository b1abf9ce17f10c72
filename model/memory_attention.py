"""Where in a video MemAug looked: its cross-attention over the memory, added up for each frame.

Nothing of the forward pass is changed. The blocks' inputs are noted while a sample passes, and the
softmax is worked out again from the blocks' weights, in chunks of queries and of frames: an hour's
whole matrix would take terabytes.

Shapes: M MemAug queries, Q chosen ones, N memory tokens, T frames, P tokens of one with its
newline, D width, K key-value heads, G query heads of each, E dims of a head.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.hour_llava import HourLlava
from model.inputs import SampleInputs, with_template_tokens
from model.memaug import Rotation, rotate
from model.options import AskOptions

QUERY_CHUNK, FRAME_CHUNK = 64, 64  # scores of one step: about 30 MB at 7B
MOST_QUERIES = 512


@torch.inference_mode()
def memory_attention(
    model: HourLlava,
    sample: SampleInputs,
    memory_ND: Tensor | None = None,
    *,
    queries: Literal["visual", "prompt"] = "visual",
    most: int | None = MOST_QUERIES,
    blocks: tuple[int, ...] | None = None,
    options: AskOptions | None = None,
) -> Tensor:
    """Share of MemAug's attention that each frame of a sample's video got, for its question.

    Args:
        sample: about one video.
        memory_ND: its memory, where `HourLlava.remember` has made it before.
        queries: `visual`: the visual tokens, which are what the language model then reads;
            `prompt`: the tokens of the question, which steer them.
        most: take so many of these, evenly spread; None takes all.
        blocks: numbers of MemAug's blocks; all of them where left out.
        options: with which the question is asked; as in training where left out.

    Returns:
        [T] float32 on the CPU, adding up to 1: the mean over queries, heads and blocks. A video
        with fewer frames than the memory must have is spread over `min_frames`; where a share of
        the frames is looked up, T counts those.

    Raises:
        ValueError: the sample is not about a video, has no such queries, or there is no such block.
    """
    if [visual.kind in ("features", "frames") for visual in sample.visuals] != [True]:
        raise ValueError(f"sample {sample.id!r}: attention over frames needs one video")
    options = options or AskOptions()
    if not options.looks_at_frames(model.config):
        raise ValueError(f"sample {sample.id!r}: MemAug of this model looks no whole frames up")
    if options.template_tokens is not None:
        sample = with_template_tokens(sample, options.template_tokens)
    chosen_blocks = _blocks(model, blocks)
    noted: dict[int, tuple[Any, ...]] = {}
    hooks = [
        block.cross_attention.register_forward_pre_hook(_note(noted, number))
        for number, block in chosen_blocks.items()
    ]
    try:
        plan = model.prepare(
            [sample],
            forgetting=options.forgetting,
            memory_ND=memory_ND,
            memory_scale=options.memory_scale,
            kept_frames=options.kept_frames,
        ).plan
    finally:
        for hook in hooks:
            hook.remove()
    is_visual_M = torch.zeros(len(plan.query_sources_M), dtype=torch.bool)
    is_visual_M[plan.visual_rows_Q] = True
    rows_Q = (is_visual_M if queries == "visual" else ~is_visual_M).nonzero().flatten()
    if not len(rows_Q):
        raise ValueError(f"sample {sample.id!r}: no {queries} tokens among MemAug's queries")
    if most is not None and len(rows_Q) > most:
        rows_Q = rows_Q[torch.linspace(0, len(rows_Q) - 1, most).round().long()]
    frame_tokens = model.config.memory.frame_tokens + 1  # with the newline
    shares = [
        frame_shares(block.cross_attention, rows_Q, frame_tokens, *noted[number][:4])
        for number, block in chosen_blocks.items()
    ]
    return torch.stack(shares).mean(0)


def frame_shares(
    attention: nn.Module,
    rows_Q: Tensor,
    frame_tokens: int,
    x_MD: Tensor,
    memory_ND: Tensor,
    query_rotation: Rotation,
    memory_rotation: Rotation,
) -> Tensor:
    """One block's share of attention for each frame, [T] float32 on the CPU.

    Args:
        attention: a `model.memaug.CrossAttention`.
        rows_Q: which queries.
        frame_tokens: P; they divide N.
        x_MD, memory_ND, query_rotation, memory_rotation: what the block was given.
    """
    frames = len(memory_ND) // frame_tokens
    total_T = torch.zeros(frames, dtype=torch.float64)
    for rows in rows_Q.to(x_MD.device).split(QUERY_CHUNK):
        q_QHE = _heads(attention, "q", x_MD[rows])
        q_QHE = rotate(q_QHE, *(table[rows] for table in query_rotation)).float()
        # [Q, K, G, T]: softmax over all of the memory needs no more than each frame's log-sum.
        sums = torch.cat(
            [
                _frame_log_sums(attention, q_QHE, frame_tokens, part, rotation)
                for part, rotation in _frame_chunks(memory_ND, memory_rotation, frame_tokens)
            ],
            dim=-1,
        )
        total_T += sums.softmax(-1).mean((1, 2)).sum(0).double().cpu()
    return (total_T / len(rows_Q)).float()


def _frame_log_sums(
    attention: nn.Module, q_QHE: Tensor, frame_tokens: int, memory_ND: Tensor, rotation: Rotation
) -> Tensor:
    """log of the sum of exp(score) over each frame's tokens: [Q, K, G, frames]."""
    k_NKE = rotate(_heads(attention, "kv", memory_ND), *rotation).float()
    q_QKGE = q_QHE.unflatten(1, (k_NKE.shape[1], -1))
    scores = torch.einsum("qkge,nke->qkgn", q_QKGE, k_NKE) * k_NKE.shape[-1] ** -0.5
    return scores.unflatten(-1, (-1, frame_tokens)).logsumexp(-1)


def _frame_chunks(
    memory_ND: Tensor, rotation: Rotation, frame_tokens: int
) -> list[tuple[Tensor, Rotation]]:
    step = FRAME_CHUNK * frame_tokens
    cos, sin = (table.split(step) for table in rotation)
    return [(part, (c, s)) for part, c, s in zip(memory_ND.split(step), cos, sin, strict=True)]


def _heads(attention: nn.Module, name: str, x_TD: Tensor) -> Tensor:
    """Queries, or the keys alone of the projection to keys and values: [tokens, heads, E]."""
    layer = getattr(attention, name)
    end = len(layer.weight) // 2 if name == "kv" else len(layer.weight)
    projected = F.linear(x_TD, layer.weight[:end], layer.bias[:end])
    return projected.unflatten(-1, (-1, attention.head_dim))


def _blocks(model: HourLlava, numbers: tuple[int, ...] | None) -> dict[int, Any]:
    known = dict(enumerate(model.memaug.blocks))
    if unknown := sorted(set(numbers or ()) - set(known)):
        raise ValueError(f"MemAug has the blocks 0 to {len(known) - 1}, not {unknown}")
    return known if numbers is None else {number: known[number] for number in numbers}


def _note(noted: dict[int, tuple[Any, ...]], number: int) -> Any:
    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        noted[number] = arguments

    return hook
