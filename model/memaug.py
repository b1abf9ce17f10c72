"""MemAug: queries that survived forgetting look the rest up in the full memory.

Post-norm blocks of self-attention over the queries, cross-attention to the memory, and an MLP. The
memory is the raw projected tokens, the same for every block. No mask: every query sees every other
and all of the memory.

Shapes: Q query tokens of all samples, N memory tokens of all samples, D width, H heads, K key-value
heads, E head dims.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import SequenceLengths, packed_attention
from model.config import LLMConfig
from model.rope import rotary_table, rotate

Rotation = tuple[Tensor, Tensor]  # cosine and sine of every token's position


class MemAug(nn.Module):
    """Heads, key-value heads and rotary base are the language model's; biases everywhere."""

    def __init__(self, llm: LLMConfig, depth: int) -> None:
        super().__init__()
        self.head_dim, self.rope_theta = llm.head_dim, llm.rope_theta
        self.blocks = nn.ModuleList(MemAugBlock(llm) for _ in range(depth))

    def forward(
        self,
        x_QD: Tensor,
        memory_ND: Tensor,
        query_positions_Q: Tensor,
        memory_positions_N: Tensor,
        queries: SequenceLengths,
        memories: SequenceLengths,
    ) -> Tensor:
        """Enriched queries [Q, D]. Samples are packed: queries number i see queries and memory
        number i only.
        """
        query_turn = rotary_table(query_positions_Q, self.head_dim, self.rope_theta, x_QD.dtype)
        memory_turn = rotary_table(memory_positions_N, self.head_dim, self.rope_theta, x_QD.dtype)
        for block in self.blocks:
            x_QD = block(x_QD, memory_ND, query_turn, memory_turn, queries, memories)
        return x_QD


class MemAugBlock(nn.Module):
    def __init__(self, llm: LLMConfig) -> None:
        super().__init__()
        width = llm.hidden_size
        self.self_attention = SelfAttention(llm)
        self.self_norm = nn.LayerNorm(width, eps=1e-5)
        self.cross_attention = CrossAttention(llm)
        self.cross_norm = nn.LayerNorm(width, eps=1e-5)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-5)

    def forward(
        self,
        x_QD: Tensor,
        memory_ND: Tensor,
        query_turn: Rotation,
        memory_turn: Rotation,
        queries: SequenceLengths,
        memories: SequenceLengths,
    ) -> Tensor:
        x_QD = self.self_norm(x_QD + self.self_attention(x_QD, query_turn, queries))
        x_QD = self.cross_norm(
            x_QD + self.cross_attention(x_QD, memory_ND, query_turn, memory_turn, queries, memories)
        )
        return self.mlp_norm(x_QD + self.down(F.gelu(self.up(x_QD))))


class SelfAttention(nn.Module):
    """One fused projection, ordered [queries | keys | values]."""

    def __init__(self, llm: LLMConfig) -> None:
        super().__init__()
        self.heads = (llm.num_heads, llm.num_kv_heads, llm.num_kv_heads)
        self.head_dim = llm.head_dim
        self.qkv = nn.Linear(llm.hidden_size, sum(self.heads) * llm.head_dim)
        self.out = nn.Linear(llm.hidden_size, llm.hidden_size)

    def forward(self, x_QD: Tensor, turn: Rotation, queries: SequenceLengths) -> Tensor:
        q_QHE, k_QKE, v_QKE = (
            self.qkv(x_QD).unflatten(-1, (-1, self.head_dim)).split(self.heads, dim=1)
        )
        attended_QHE = packed_attention(
            rotate(q_QHE, *turn), rotate(k_QKE, *turn), v_QKE, queries, queries
        )
        return self.out(attended_QHE.flatten(1))


class CrossAttention(nn.Module):
    """Keys and values of the memory come from one projection, ordered [keys | values]."""

    def __init__(self, llm: LLMConfig) -> None:
        super().__init__()
        self.head_dim = llm.head_dim
        self.q = nn.Linear(llm.hidden_size, llm.hidden_size)
        self.kv = nn.Linear(llm.hidden_size, 2 * llm.num_kv_heads * llm.head_dim)
        self.out = nn.Linear(llm.hidden_size, llm.hidden_size)

    def forward(
        self,
        x_QD: Tensor,
        memory_ND: Tensor,
        query_turn: Rotation,
        memory_turn: Rotation,
        queries: SequenceLengths,
        memories: SequenceLengths,
    ) -> Tensor:
        q_QHE = self.q(x_QD).unflatten(-1, (-1, self.head_dim))
        k_NKE, v_NKE = self.kv(memory_ND).unflatten(-1, (-1, self.head_dim)).chunk(2, dim=1)
        attended_QHE = packed_attention(
            rotate(q_QHE, *query_turn), rotate(k_NKE, *memory_turn), v_NKE, queries, memories
        )
        return self.out(attended_QHE.flatten(1))
