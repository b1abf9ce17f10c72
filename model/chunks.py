"""A function of many rows computed some rows at a time, forward and backward.

Only its inputs are kept for the backward pass, which computes each chunk once more: what lies
between a long video's features and its memory never exists for all frames at once.

Shapes: T rows of the input, whatever their own shape; D width of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def in_chunks(
    function: Callable[[Tensor], Tensor], x_T: Tensor, chunk: int, weights: Sequence[Tensor]
) -> Tensor:
    """`function(x_T)`, at most `chunk` rows at a time. Nothing random may be inside.

    Args:
        function: makes of any t rows the same number of result rows for each: [t, ...] to
            [t * n, D].
        weights: all other tensors whose gradients depend on it.
    """
    result: Tensor = _Chunks.apply(function, chunk, x_T, *weights)
    return result


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[[Tensor], Tensor], chunk: int, x_T: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.function, ctx.chunk = function, chunk
        ctx.save_for_backward(x_T, *weights)
        result = None
        for first in range(0, len(x_T), chunk):
            part = x_T[first : first + chunk]
            with torch.enable_grad():  # the same compiled graph as in the backward pass
                rows = function(part).detach()
            if result is None:
                each = len(rows) // len(part)
                result = rows.new_empty(each * len(x_T), *rows.shape[1:])
            result[each * first : each * first + len(rows)] = rows
        assert result is not None, "no rows"
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x_T, *weights = ctx.saved_tensors
        needed = [
            weight
            for weight, wanted in zip(weights, ctx.needs_input_grad[3:], strict=True)
            if wanted
        ]
        # Sums over chunks in float32: in bfloat16 each addition would round.
        sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in needed]
        x_gradient = torch.empty_like(x_T) if ctx.needs_input_grad[2] else None
        each = len(gradient) // len(x_T)
        for first in range(0, len(x_T), ctx.chunk):
            part = x_T[first : first + ctx.chunk].detach()
            part.requires_grad_(x_gradient is not None)
            with torch.enable_grad():
                rows = ctx.function(part)
            inputs = [*needed, part] if x_gradient is not None else needed
            last = first + len(part)
            found = torch.autograd.grad(rows, inputs, gradient[each * first : each * last])
            for total, own in zip(sums, found, strict=False):
                total += own
            if x_gradient is not None:
                x_gradient[first:last] = found[-1]
        filled = iter(sums)
        gradients = [
            next(filled).to(weight.dtype) if wanted else None
            for weight, wanted in zip(weights, ctx.needs_input_grad[3:], strict=True)
        ]
        return None, None, x_gradient, *gradients
