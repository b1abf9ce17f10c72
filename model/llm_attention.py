"""The language model's attention: `model.attention` as transformers calls it, by a name of its own.

Apart from the kernels, because importing transformers takes twice as long as importing torch, and
what encodes frames, counts or estimates needs none of it.

Shapes: B batch, T query tokens, N key tokens, H query heads, K key-value heads, D dims of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from model.attention import SequenceLengths, as_rows, attention, packed_attention

LLM_ATTENTION = "hour_llava"  # the name under which transformers knows `llm_attention`


@torch.compiler.disable
def llm_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sequence_lengths: SequenceLengths | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention as transformers calls it: query [B, H, T, D], key and value [B, K, N, D] ->
    [B, T, H, D].

    With `sequence_lengths` (training) the batch is one row of packed sequences. Without it
    (generation) it is a batch that may carry a cache, N >= T, and a mask if it is padded.
    """
    q_BTHD, k_BNKD, v_BNKD = (x.transpose(1, 2) for x in (query, key, value))
    if sequence_lengths is not None:
        out_THD = packed_attention(
            q_BTHD[0], k_BNKD[0], v_BNKD[0], sequence_lengths, sequence_lengths, causal=True
        )
        return as_rows(out_THD, q_BTHD.shape), None
    if attention_mask is None and 1 < query.shape[2] != key.shape[2]:
        raise ValueError("several new tokens on top of a cache need an attention mask")
    causal = attention_mask is None and query.shape[2] > 1
    return attention(q_BTHD, k_BNKD, v_BNKD, causal=causal, mask=attention_mask), None


def refuse_attention(wanted: object) -> None:
    """Raise ValueError if transformers is told to use another attention than `llm_attention`."""
    if wanted not in (None, LLM_ATTENTION):
        raise ValueError(
            f"attn_implementation is {wanted!r}: Hour-LLaVA chooses its kernels itself (cuDNN, "
            "flash or PyTorch's), because samples of a pack must not see each other; leave it out"
        )


def _llm_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """A dense mask only where one is needed: for padded batches, several new tokens on a cache, and
    caches with empty places; kernels know plain causality themselves.
    """
    places = kwargs["kv_length"]
    # Version 4 tells the places of the new tokens, version 5 their number.
    new = kwargs["q_length"] if "q_length" in kwargs else len(kwargs["cache_position"])
    padded = attention_mask is not None and not bool(attention_mask.all())
    filled = attention_mask is not None and attention_mask.shape[-1] == places
    if not padded and (new == places or (new == 1 and filled)):
        return None
    kwargs["allow_is_causal_skip"] = False
    return ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(LLM_ATTENTION, llm_attention)
AttentionMaskInterface.register(LLM_ATTENTION, _llm_mask)
