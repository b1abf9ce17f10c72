"""What the settings of transformers' `generate` mean for a prompt: how long an answer may be, and
whether it is greedy.
"""

from __future__ import annotations

import copy
import functools
import logging
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

logger = logging.getLogger(__name__)

MAX_NEW = "max_new_tokens"
_UNASKED = (None, 20)  # max_length that transformers has by itself, prompt included


def longest_answer(settings: GenerationConfig, by_length: bool, prompt: int, context: int) -> int:
    """How many new tokens there may be.

    Args:
        settings: those in force.
        by_length: that `max_length` was given for this call.
        prompt, context: tokens of the prompt, and of it and an answer at most.

    Raises:
        ValueError: the prompt is too long already.
    """
    room = context - prompt
    if room < 0:
        raise ValueError(f"the prompt has {prompt} tokens, the context {context}")
    wanted = settings.max_new_tokens
    if wanted is None and (by_length or settings.max_length not in _UNASKED):
        wanted = settings.max_length - prompt
        if wanted < 0:
            raise ValueError(
                f"max_length is {settings.max_length}, but the prompt has {prompt} tokens "
                "already; set max_new_tokens, which counts only the answer's"
            )
    if wanted is not None and wanted > room:
        logger.warning(
            "an answer of %d tokens does not fit: the prompt has %d, and the context of %d ends "
            "after %d more",
            *(wanted, prompt, context, room),
        )
    return room if wanted is None else min(wanted, room)


def refuse_drafts(settings: GenerationConfig, kwargs: dict[str, Any]) -> None:
    """Raise ValueError where drafts are to be made from the prompt's ids: a prompt of samples has
    visual tokens, which are none.
    """
    names = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
    for name in names:
        if kwargs.get(name) is not None or getattr(settings, name, None) is not None:
            raise ValueError(
                f"{name}: drafts are made from a prompt's ids; samples have visual tokens, which "
                "have none. Leave it out, or give input_ids of text alone"
            )


def behind(prompt: Tensor, new: Any) -> Any:
    """What was generated, behind the prompt that it continues; beams and the like repeat it."""
    ids = new if isinstance(new, Tensor) else new.sequences
    prompt = prompt.to(ids.device).repeat_interleave(len(ids) // len(prompt), dim=0)
    whole = torch.cat([prompt, ids], dim=1)
    if isinstance(new, Tensor):
        return whole
    new.sequences = whole
    return new


def limited(
    longest: int, config: GenerationConfig | None, kwargs: dict[str, Any]
) -> tuple[GenerationConfig | None, dict[str, Any]]:
    """The same settings with a limit of so many new tokens, where these were given: version 5
    wants them in one place.
    """
    kwargs = {name: value for name, value in kwargs.items() if name != "max_length"}
    if config is None or "max_new_tokens" in kwargs:
        return config, {**kwargs, "max_new_tokens": longest}
    config = copy.deepcopy(config)
    config.max_new_tokens = longest
    return config, kwargs


# Settings that do not change which token is the most likely.
_HARMLESS = {
    "bos_token_id",
    "do_sample",
    "eos_token_id",
    "max_length",
    "max_new_tokens",
    "pad_token_id",
    "temperature",
    "top_k",
    "top_p",
    "transformers_version",
}


def is_greedy(settings: GenerationConfig, kwargs: dict[str, Any]) -> bool:
    """Whether generating means taking the most likely token and nothing else."""
    values, neutral = settings.to_dict(), _neutral_settings()
    return (
        set(kwargs) - {"streamer"} <= set(neutral)
        and not settings.do_sample
        and all(
            value is None or value == neutral.get(name)
            for name, value in values.items()
            if name not in _HARMLESS and not name.startswith("_")
        )
    )


@functools.cache
def _neutral_settings() -> dict[str, Any]:
    config = GenerationConfig()
    # Version 5 keeps its defaults beside the object.
    return {**config.to_dict(), **getattr(config, "_get_default_generation_params", dict)()}
