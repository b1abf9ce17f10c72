"""Weights of parts that no checkpoint provides. Each tensor is drawn from its own name: order does
not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

STD = 0.02


@torch.no_grad()
def initialise(named: Iterable[tuple[str, Tensor]], seed: str, std: float = STD) -> None:
    """Fill tensors in place: N(0, std), biases 0, norms 1 and 0.

    Drawn in float32 on the CPU whatever the tensor's type and place, so that the same seed gives
    the same weights.
    """
    for name, tensor in named:
        tensor.copy_(drawn(name, tuple(tensor.shape), seed, std))


def drawn(name: str, shape: tuple[int, ...], seed: str, std: float = STD) -> Tensor:
    """The initial value, in float32, of the tensor called `name`."""
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1 and "norm" in name:
        return torch.ones(shape)
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.randn(shape, generator=generator) * std
