"""Which frames of each sample's video stay, by the configuration's rule of model/frame_rules.

Nothing here has a gradient: a choice is a list of numbers. A rule that looks at the model's tensors
makes the host wait for the device once a sample.

Shapes: T frames, P tokens of one, N memory tokens, L ids, K kept frames, C vision width, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from model.config import HourLlavaConfig
from model.forgetting import kept_count, spread
from model.frame_rules import Video, find_frame_rule
from model.inputs import IMAGE_TOKEN_INDEX, SampleInputs, Visual
from model.memory import token_counts

VIDEO_KINDS = ("features", "frames")
_UNSEEN = torch.empty(0)


@torch.no_grad()
def choose_frames(
    samples: Sequence[SampleInputs],
    config: HourLlavaConfig,
    memory_ND: Tensor | None,
    features: Mapping[int, Tensor],
    embed: Callable[[Tensor], Tensor],
) -> list[Tensor | None]:
    """The frames [K] that stay of each sample's video; None where it has none.

    Args:
        memory_ND: the memories of the samples' visuals, one after another.
        features: `frame_means` of visuals, by `id`, where they are at hand; else a visual's own
            features are taken.
        embed: ids [L] to word embeddings [L, D].

    Raises:
        ValueError: the rule looks at features, and there are none; the sample is named.
    """
    rule = find_frame_rule(config.memory.temporal_forgetting)
    chosen: list[Tensor | None] = []
    start = 0
    for sample in samples:
        first = sample.visuals[0] if sample.visuals else None
        if first is None or first.kind not in VIDEO_KINDS or first.tensor is None:
            chosen.append(None)
        else:
            frames = max(len(first.tensor), config.memory.min_frames)
            features_TC = tokens_TD = question_D = _UNSEEN
            if rule.looks_at == "features":
                features_TC = _features(sample, first, frames, features)
            elif rule.looks_at == "question":
                assert memory_ND is not None
                tokens_TD = _tokens(memory_ND, start, frames, config)
                question_D = _question(sample, embed, memory_ND.device)
            video = Video(frames, sample.seed, features_TC, tokens_TD, question_D)
            chosen.append(rule.choose(video, kept_count(frames, config.memory)))
        if rule.looks_at == "question":
            start += sum(token_counts(visual, config)[0] for visual in sample.visuals)
    return chosen


def frame_means(features_TPC: Tensor) -> Tensor:
    """Each frame's mean feature, [T, C] float32, without gradient."""
    return features_TPC.detach().float().mean(1)


def _features(
    sample: SampleInputs, visual: Visual, frames: int, known: Mapping[int, Tensor]
) -> Tensor:
    """Each frame's mean feature [T, C], repeated as the memory's frames are."""
    mean_TC = known.get(id(visual))
    if mean_TC is None and visual.features is not None:
        mean_TC = frame_means(visual.features)
    if mean_TC is None:
        raise ValueError(
            f"sample {sample.id!r}: keyframes are chosen by the vision encoder's features, which "
            "a remembered memory does not hold; give the video as features"
        )
    if len(mean_TC) < frames:
        mean_TC = mean_TC[spread(frames, len(mean_TC)).to(mean_TC.device)]
    return mean_TC


def _tokens(memory_ND: Tensor, start: int, frames: int, config: HourLlavaConfig) -> Tensor:
    """Each frame's mean token [T, D] of the memory that begins at row `start`, without newlines."""
    tokens = config.memory.frame_tokens
    rows = memory_ND[start : start + frames * (tokens + 1)]
    return rows.unflatten(0, (frames, tokens + 1))[:, :tokens].float().mean(1)


def _question(
    sample: SampleInputs, embed: Callable[[Tensor], Tensor], device: torch.device
) -> Tensor:
    """Mean word embedding [D] of the ids behind the video that MemAug sees; of all of them where
    nothing stands behind it.
    """
    ids_L, shown_L = sample.input_ids.cpu(), sample.shown_L.cpu()
    place = int((ids_L == IMAGE_TOKEN_INDEX).nonzero()[0])
    seen_L = shown_L & (ids_L != IMAGE_TOKEN_INDEX)
    behind_L = seen_L & (torch.arange(len(ids_L)) > place)
    asked = ids_L[behind_L if bool(behind_L.any()) else seen_L]
    if not len(asked):
        raise ValueError(f"sample {sample.id!r}: no prompt to choose frames for")
    return embed(asked.to(device)).float().mean(0)
