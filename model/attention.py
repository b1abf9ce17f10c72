"""The one place that chooses an attention kernel.

| where                                      | kernel                                           |
|--------------------------------------------|--------------------------------------------------|
| GPU, half precision, long or equal ones    | PyTorch SDPA: cuDNN, else flash                  |
| GPU, half precision, a pack of short ones  | one call: flash-attn if installed, else varlen   |
| a single query (a step of generation)      | two plain products                               |
| CPU, float32                               | PyTorch SDPA, whatever it has there              |

cuDNN is 1.6 times as fast as FlashAttention-2 on an H200, but makes a plan for each new shape, in
about 20 ms of the host; varlen is PyTorch's `varlen_attn`.

Sequences of several samples lie one after another in one tensor; `SequenceLengths` says where each
ends.
Grouped-query attention never repeats keys: without a causal mask the query heads of a group are
simply more queries.

Shapes: B batch, T query tokens, N key tokens, H query heads, K key-value heads, G = H / K, D dims
of a head.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

logger = logging.getLogger(__name__)

PRIORITY = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

# From about 4096 x 4096 scores a sequence, cuDNN's higher rate is worth a call of its own and the
# plan for its shape: lengths of packs hardly ever repeat.
LONG_SEQUENCE_SCORES = 4096**2


# Not frozen, although nobody changes one: of a frozen dataclass TorchDynamo 2.11 takes every field
# as an input of the compiled block, and compiles it anew for each other number of sequences.
@dataclass(slots=True, eq=False)
class SequenceLengths:
    """How long the sequences are that lie one after another: lengths on the host, and on the device
    where each starts, as kernels for packed sequences want it. Compiled blocks hand it on and never
    look inside.
    """

    lengths: tuple[int, ...]
    offsets: Tensor  # [sequences + 1] int32

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str) -> SequenceLengths:
        offsets = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(tuple(lengths), offsets.to(device, non_blocking=True))


@torch.compiler.disable
def packed_attention(
    q_THD: Tensor,
    k_NKD: Tensor,
    v_NKD: Tensor,
    queries: SequenceLengths,
    keys: SequenceLengths,
    *,
    causal: bool = False,
) -> Tensor:
    """Each sequence of queries attends to the sequence of keys of the same number. Returns [T, H,
    D].

    Outside compiled graphs: a change of the lengths then costs nothing, and no gain is lost.
    Whatever kernel it came from, the result looks the same to the graph that goes on with it (see
    `as_rows`).
    """
    if len(queries.lengths) != len(keys.lengths):
        raise ValueError(
            f"{len(queries.lengths)} sequences of queries but {len(keys.lengths)} of keys"
        )
    if _short(queries, keys) and (varlen := _varlen(q_THD)):
        return as_rows(varlen(q_THD, k_NKD, v_NKD, queries, keys, causal), q_THD.shape)
    if len(set(queries.lengths)) == len(set(keys.lengths)) == 1:  # a batch like any other
        q, k, v = (x.unflatten(0, (len(keys.lengths), -1)) for x in (q_THD, k_NKD, v_NKD))
        return as_rows(attention(q, k, v, causal=causal), q_THD.shape)
    parts = zip(
        q_THD.split(queries.lengths),
        k_NKD.split(keys.lengths),
        v_NKD.split(keys.lengths),
        strict=True,
    )
    outputs = [attention(q[None], k[None], v[None], causal=causal)[0] for q, k, v in parts]
    return as_rows(torch.cat(outputs), q_THD.shape)


def as_rows(x: Tensor, shape: Sequence[int]) -> Tensor:
    """`x` in another shape, contiguous, and not known as a view; copies only what is not
    contiguous.

    A compiled graph is made for inputs of one layout, and views are layouts of their own: were the
    tensors of one sample views where those of several are not, blocks would be compiled once more
    for each combination. Neither `x` nor the result may be changed in place.
    """
    return torch.ops.aten._unsafe_view(x.contiguous(), list(shape))  # type: ignore[no-any-return]


def attention(
    q_BTHD: Tensor,
    k_BNKD: Tensor,
    v_BNKD: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Plain attention of a batch of equally long sequences, [B, T, H, D] -> [B, T, H, D]. `mask` is
    True where seen.
    """
    tokens, groups = q_BTHD.shape[1], q_BTHD.shape[2] // k_BNKD.shape[2]
    q_BHTD, k_BKND, v_BKND = q_BTHD.transpose(1, 2), k_BNKD.transpose(1, 2), v_BNKD.transpose(1, 2)
    if tokens == 1 or (groups > 1 and not causal and mask is None and _fold(q_BTHD, k_BNKD)):
        # The heads of a group share keys: as G * T queries of one head they need no repeated keys,
        # on any kernel.
        q_BKTD = q_BHTD.unflatten(1, (-1, groups)).flatten(2, 3)
        out_BKTD = (
            _few(q_BKTD, k_BKND, v_BKND, mask) if tokens == 1 else _sdpa(q_BKTD, k_BKND, v_BKND)
        )
        return out_BKTD.unflatten(2, (groups, tokens)).flatten(1, 2).transpose(1, 2)
    return _sdpa(q_BHTD, k_BKND, v_BKND, causal=causal, mask=mask, gqa=groups > 1).transpose(1, 2)


def _fold(q_BTHD: Tensor, k_BNKD: Tensor) -> bool:
    """Whether to see a group's heads as more queries. cuDNN and flash can do without: there it
    saves the gradients of repeated keys, 3 GiB over an hour of memory at 7B and no slower, but
    costs time when keys are few.
    """
    fused = q_BTHD.is_cuda and q_BTHD.dtype in (torch.float16, torch.bfloat16)
    return not fused or k_BNKD.shape[1] > 8 * q_BTHD.shape[1]


def _few(q_BKTD: Tensor, k_BKND: Tensor, v_BKND: Tensor, mask: Tensor | None) -> Tensor:
    """A handful of queries: two small products use more of the device than fused kernels do."""
    scores_BKTN = (q_BKTD @ k_BKND.transpose(-1, -2)).float() * q_BKTD.shape[-1] ** -0.5
    if mask is not None:
        scores_BKTN = scores_BKTN.masked_fill(~mask, -torch.inf)
    return scores_BKTN.softmax(-1).to(v_BKND.dtype) @ v_BKND


def _sdpa(
    q_BHTD: Tensor,
    k_BKND: Tensor,
    v_BKND: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    gqa: bool = False,
) -> Tensor:
    with sdpa_kernel(PRIORITY, set_priority=True):
        return F.scaled_dot_product_attention(
            q_BHTD, k_BKND, v_BKND, attn_mask=mask, is_causal=causal, enable_gqa=gqa
        )


def _short(queries: SequenceLengths, keys: SequenceLengths) -> bool:
    scores = sum(q * k for q, k in zip(queries.lengths, keys.lengths, strict=True))
    return scores < LONG_SEQUENCE_SCORES * len(queries.lengths)


def _varlen(q_THD: Tensor) -> Any:
    if not q_THD.is_cuda or q_THD.dtype not in (torch.float16, torch.bfloat16):
        return None
    return _varlen_kernel(q_THD.device)


@functools.cache
def _varlen_kernel(device: torch.device) -> Any:
    """One call for all sequences of a pack, or None where there is none; what was chosen is logged
    once.
    """
    # FlashAttention-2 asks for Ampere; PyTorch's SDPA has something for older cards.
    if torch.cuda.get_device_capability(device) < (8, 0):
        logger.info("packed short sequences: one call each (a card before Ampere)")
        return None
    if importlib.util.find_spec("flash_attn"):
        from flash_attn import flash_attn_varlen_func

        logger.info("packed short sequences: flash-attn")
        return lambda q, k, v, queries, keys, causal: flash_attn_varlen_func(
            q,
            k,
            v,
            queries.offsets,
            keys.offsets,
            max(queries.lengths),
            max(keys.lengths),
            causal=causal,
        )
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        logger.info("packed short sequences: one call each (%s)", error)
        return None
    known = inspect.signature(varlen_attn).parameters
    # 2.11 groups heads unasked, later versions want to be told; causality is a flag in the oldest,
    # then a window (-1 is unbounded, 0 nothing ahead).
    always: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in known else {}
    logger.info("packed short sequences: varlen_attn")

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        queries: SequenceLengths,
        keys: SequenceLengths,
        causal: bool,
    ) -> Any:
        how = (
            {"is_causal": causal}
            if "is_causal" in known
            else {"window_size": (-1, 0 if causal else -1)}
        )
        longest = max(queries.lengths), max(keys.lengths)
        return varlen_attn(q, k, v, queries.offsets, keys.offsets, *longest, **{**always, **how})

    return run
