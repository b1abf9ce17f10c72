"""Cross-entropy that never holds all logits.

A sample has thousands of rows and a vocabulary of 150,000; only some hundred rows are supervised.
Only those reach the output head, a chunk at a time, and backward computes a chunk's logits anew.

Shapes: R supervised rows, D width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK = 512


def chunked_cross_entropy(
    hidden_RD: Tensor, targets_R: Tensor, head: nn.Module, chunk: int = CHUNK
) -> Tensor:
    """Sum of the cross-entropies of `head(hidden)` against the targets, in float32. No rows: zero,
    with a graph.
    """
    if not len(targets_R):
        return head(hidden_RD.new_zeros(1, hidden_RD.shape[-1])).float().sum() * 0
    parts = zip(hidden_RD.split(chunk), targets_R.split(chunk), strict=True)
    sums = [
        checkpoint(_chunk_loss, hidden, targets, head, use_reentrant=False)
        for hidden, targets in parts
    ]
    return torch.stack(sums).sum()


def _chunk_loss(hidden_RD: Tensor, targets_R: Tensor, head: nn.Module) -> Tensor:
    return F.cross_entropy(head(hidden_RD).float(), targets_R, reduction="sum")
