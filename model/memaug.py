"""MemAug: queries that survived forgetting look the rest up in the full memory.

Post-norm blocks of self-attention over the queries, cross-attention to the memory, and an MLP. The
memory is the raw projected tokens, the same for every block. No mask: every query sees every other
and all of the memory.

Shapes: Q query tokens of all samples, N memory tokens of all samples, D width, H heads, K key-value
heads, E dims of a head, T tokens (Q or N), R = E / 4 rotated pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import SequenceLengths, packed_attention
from model.config import LLMConfig

Rotation = tuple[Tensor, Tensor]  # cosine and sine of every token's position


class MemAug(nn.Module):
    """Heads, key-value heads and rotary base are the language model's; biases everywhere.

    Without blocks the queries stay as they are; without `positions` nothing is rotated.
    """

    def __init__(self, llm: LLMConfig, depth: int, positions: bool = True) -> None:
        super().__init__()
        self.head_dim, self.rope_theta, self.positions = llm.head_dim, llm.rope_theta, positions
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
        if not self.positions:  # all at 0: an angle of zero
            query_positions_Q = torch.zeros_like(query_positions_Q)
            memory_positions_N = torch.zeros_like(memory_positions_N)
        query_rotation = rotary_table(query_positions_Q, self.head_dim, self.rope_theta, x_QD.dtype)
        memory_rotation = rotary_table(
            memory_positions_N, self.head_dim, self.rope_theta, x_QD.dtype
        )
        for block in self.blocks:
            x_QD = block(x_QD, memory_ND, query_rotation, memory_rotation, queries, memories)
        return x_QD


class MemAugBlock(nn.Module):
    """Self-attention, cross-attention to the memory, MLP; each is added and then normalised."""

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
        query_rotation: Rotation,
        memory_rotation: Rotation,
        queries: SequenceLengths,
        memories: SequenceLengths,
    ) -> Tensor:
        x_QD = self.self_norm(x_QD + self.self_attention(x_QD, query_rotation, queries))
        x_QD = self.cross_norm(
            x_QD
            + self.cross_attention(
                x_QD, memory_ND, query_rotation, memory_rotation, queries, memories
            )
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

    def forward(self, x_QD: Tensor, rotation: Rotation, queries: SequenceLengths) -> Tensor:
        heads = self.qkv(x_QD).unflatten(-1, (-1, self.head_dim))  # [Q, H + K + K, E]
        q_QHE, k_QKE, v_QKE = heads.split(self.heads, dim=1)
        attended_QHE = packed_attention(
            rotate(q_QHE, *rotation), rotate(k_QKE, *rotation), v_QKE, queries, queries
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
        query_rotation: Rotation,
        memory_rotation: Rotation,
        queries: SequenceLengths,
        memories: SequenceLengths,
    ) -> Tensor:
        q_QHE = self.q(x_QD).unflatten(-1, (-1, self.head_dim))
        k_NKE, v_NKE = self.kv(memory_ND).unflatten(-1, (-1, self.head_dim)).chunk(2, dim=1)
        attended_QHE = packed_attention(
            rotate(q_QHE, *query_rotation),
            rotate(k_NKE, *memory_rotation),
            v_NKE,
            queries,
            memories,
        )
        return self.out(attended_QHE.flatten(1))


# -- rotary position embedding, on the first half of each head ------------------------------------


def rotary_table(
    positions_T: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T, R] of every position. Half of each head is rotated, so there are R =
    head_dim / 4 frequencies.

    Angles are formed in float32 although positions reach 240,000: float64 ones move the output by
    1e-3, and the released weights were trained with float32.
    """
    rotated = head_dim // 2
    exponent_R = (
        torch.arange(0, rotated, 2, device=positions_T.device, dtype=torch.float32) / rotated
    )
    angle_TR = torch.outer(positions_T.float(), 1.0 / theta**exponent_R)
    return angle_TR.cos().to(dtype), angle_TR.sin().to(dtype)


def rotate(x_THE: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotate the first half of each head by its position; dim i pairs with i + R, as in GPT-NeoX.
    Keeps shape and type.
    """
    pairs = cos_TR.shape[-1]
    cos_T1R, sin_T1R = cos_TR[:, None], sin_TR[:, None]
    a_THR, b_THR, rest = x_THE[..., :pairs], x_THE[..., pairs : 2 * pairs], x_THE[..., 2 * pairs :]
    return torch.cat(
        [a_THR * cos_T1R - b_THR * sin_T1R, b_THR * cos_T1R + a_THR * sin_T1R, rest], dim=-1
    )
