"""AdamW whose moments lie in the host's memory: 8 bytes less on the device for each tuned
parameter, for a step that takes as long as the host needs to go through them.

A step takes the parameters piece by piece: a piece and its gradient are copied to the host, moved
by torch's own fused AdamW there, and copied back, while the next piece is already on its way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.sharded import own_part

PIECE = 1 << 26  # numbers that are moved at once; four buffers of so many lie in pinned memory


class AdamWOnHost(torch.optim.Optimizer):
    """AdamW over float32 parameters on any device, sharded or not.

    Args:
        groups: as `torch.optim.AdamW` takes them.
    """

    def __init__(
        self, groups: list[dict[str, Any]], betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(
            groups, {"lr": 0.0, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8}
        )
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": _zeros_on_host(parameter),
                    "exp_avg_sq": _zeros_on_host(parameter),
                }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; none of them is of another type than its
        gradient.
        """
        pieces = self._pieces()
        coming = next(pieces, None)
        if coming is None:
            return
        slots = [_Slot(coming.parameter.device), _Slot(coming.parameter.device)]
        slots[0].fetch(coming)
        number = 0
        while coming is not None:
            piece, slot = coming, slots[number % 2]
            if (coming := next(pieces, None)) is not None:
                slots[(number + 1) % 2].fetch(coming)
            slot.move(piece)
            number += 1
        for slot in slots:
            slot.wait()

    def _pieces(self) -> Iterator[_Piece]:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["step"] += 1
                own = [
                    own_part(tensor).view(-1).split(PIECE)
                    for tensor in (
                        parameter.detach(),
                        parameter.grad,
                        state["exp_avg"],
                        state["exp_avg_sq"],
                    )
                ]
                for moved, gradient, mean, square in zip(*own, strict=True):
                    if moved.numel():
                        yield _Piece(moved, gradient, mean, square, group, state["step"])


@dataclass(slots=True)
class _Piece:
    """Some consecutive numbers of one parameter."""

    parameter: Tensor  # on the device, as the gradient
    gradient: Tensor
    mean: Tensor  # on the host, as the square
    square: Tensor
    group: dict[str, Any]
    step: Tensor


class _Slot:
    """Room on the host for a piece and its gradient, and a stream of its own for their copies."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._parameter, self._gradient = (
            torch.empty(PIECE if self._cuda else 0, pin_memory=self._cuda) for _ in range(2)
        )
        self._stream = torch.cuda.Stream(device) if self._cuda else None

    def fetch(self, piece: _Piece) -> None:
        """Begin to copy a piece to the host, when what was copied back before is there."""
        if self._stream is None:
            self._parameter, self._gradient = piece.parameter, piece.gradient
            return
        self._stream.synchronize()
        self._stream.wait_stream(torch.cuda.current_stream(piece.parameter.device))
        count = piece.parameter.numel()
        with torch.cuda.stream(self._stream):
            self._parameter[:count].copy_(piece.parameter, non_blocking=True)
            self._gradient[:count].copy_(piece.gradient, non_blocking=True)

    def move(self, piece: _Piece) -> None:
        """Take AdamW's step with it, and begin to copy it back."""
        self.wait()
        count, group = piece.parameter.numel(), piece.group
        torch._fused_adamw_(
            [self._parameter[:count]],
            [self._gradient[:count]],
            [piece.mean],
            [piece.square],
            [],
            [piece.step],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                piece.parameter.copy_(self._parameter[:count], non_blocking=True)

    def wait(self) -> None:
        """Until its copies are done."""
        if self._stream is not None:
            self._stream.synchronize()


def _zeros_on_host(parameter: Tensor) -> Tensor:
    moments = torch.empty_like(parameter, device="cpu")
    own_part(moments).zero_()
    return moments.requires_grad_(False)
