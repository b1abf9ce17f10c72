"""What keeps ranks in step that share one sharded model but were given different samples.

Sharded parameters are gathered, and their gradients reduced, by all ranks together. So every rank
must run every part of the model once in each pass, also where its samples (text only, stored
features, or no sample at all) have nothing for that part to do. Such a part then sees one dummy
token, whose weight in the loss is zero: its gradients are zeros, and the loss stays the same. A
frozen vision encoder is whole on each rank, so it need not run.

A single rank does the same: the optimizer passes over a parameter without gradient, and a step
without visuals would be another one than on several ranks.

Shapes: N memory tokens, C vision width, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.attention import SequenceLengths
from model.hour_llava import HourLlava, Output
from model.inputs import IGNORE_INDEX, SampleInputs, check

# For a rank without samples: one token that is not supervised.
EMPTY_SAMPLE = SampleInputs(
    "(none)", torch.zeros(1, dtype=torch.int64), torch.full((1,), IGNORE_INDEX)
)


def keep_in_step(model: HourLlava) -> None:
    """Make `model.forward` run each of its parts exactly once, whatever the samples hold, or none;
    a frozen vision encoder at most once.

    Parts run in the order of the plain forward: vision encoder, projector, MemAug, language model.
    Only long videos pass the vision encoder more than once, without gradient. Call it before
    sharding, so that the dummy pass sees gathered parameters.
    """
    plain_forward = model.forward

    def forward(samples: Sequence[SampleInputs], *, forgetting: str = "random") -> Output:
        for sample in samples:
            check(sample, model.config)
        dummy = _run_unused_parts(model, samples)
        output = plain_forward(samples or [EMPTY_SAMPLE], forgetting=forgetting)
        lengths = output.lengths if samples else ()
        return Output(output.loss_sum + 0 * dummy, output.supervised, lengths)

    model.forward = forward  # type: ignore[method-assign]


def _run_unused_parts(model: HourLlava, samples: Sequence[SampleInputs]) -> Tensor | float:
    """Run what no sample uses before the language model; a number whose graph holds all of it."""
    visuals = [visual for sample in samples for visual in sample.visuals]
    if not visuals:
        # Without blocks MemAug does not look at the newline.
        return _memaug_of_one_token(model).float().sum() + model.image_newline.float().sum()
    if _is_tuned(model.vision) and all(
        visual.kind == "features" or model.is_long(visual) for visual in visuals
    ):
        return _features_of_one_patch(model).float().sum()
    return 0.0


def _memaug_of_one_token(model: HourLlava) -> Tensor:
    """Vision encoder, projector, newline and MemAug on one token: [1, D]."""
    token_1D = model.projector(_features_of_one_patch(model))
    memory_ND = torch.cat([token_1D, model.image_newline[None]])
    positions_N = torch.arange(2, device=token_1D.device)
    query = SequenceLengths.of([1], token_1D.device)
    memory = SequenceLengths.of([2], token_1D.device)
    augmented: Tensor = model.memaug(
        token_1D, memory_ND, positions_N[:1], positions_N, query, memory
    )
    return augmented


def _features_of_one_patch(model: HourLlava) -> Tensor:
    """The vision encoder's features [1, C] of a picture of a single grey patch; zeros in place of
    those of a frozen one.
    """
    vision, device = model.config.vision, model.image_newline.device
    if not _is_tuned(model.vision):
        return torch.zeros(1, vision.hidden_size, dtype=model.dtype, device=device)
    patch = vision.patch_size
    picture = torch.zeros(1, 3, patch, patch, dtype=model.dtype, device=device)
    features: Tensor = model.vision(picture)[0]
    return features


def _is_tuned(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())
