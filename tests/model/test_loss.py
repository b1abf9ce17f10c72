"""Chunks of logits give the loss and the gradients of all logits at once."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.loss import chunked_cross_entropy


def setup(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(16, 40, bias=False)
    head.weight.data = torch.randn(40, 16, generator=generator)
    hidden = torch.randn(rows, 16, generator=generator, requires_grad=True)
    return head, hidden, torch.randint(0, 40, (rows,), generator=generator)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 50])
def test_chunks_sum_to_the_whole(rows):
    head, hidden, targets = setup(rows)
    expected = F.cross_entropy(head(hidden), targets, reduction="sum")
    expected_grads = torch.autograd.grad(expected, [hidden, head.weight])
    loss = chunked_cross_entropy(hidden, targets, head, chunk=8)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(
        torch.autograd.grad(loss, [hidden, head.weight]), expected_grads, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_loss_is_summed_in_float32_whatever_the_activations_are():
    head, hidden, targets = setup(2000)
    low = chunked_cross_entropy(hidden.bfloat16(), targets, head.bfloat16(), chunk=100)
    assert low.dtype == torch.float32
    exact = F.cross_entropy(head(hidden.bfloat16()).double(), targets, reduction="sum")
    assert low.item() == pytest.approx(exact.item(), rel=1e-5)


def test_no_supervised_row_is_a_zero_that_still_reaches_the_head():
    head, hidden, targets = setup(3)
    loss = chunked_cross_entropy(hidden[:0], targets[:0], head)
    loss.backward()
    assert loss.item() == 0
    assert head.weight.grad is not None
    assert not head.weight.grad.any()
