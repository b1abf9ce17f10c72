"""The part of a sharded tensor that lies on this rank."""

from __future__ import annotations

from torch import Tensor


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
