"""Greedy decoding of one prompt.

On a GPU a step is one CUDA graph. The work of one step is small, even after an hour-long prompt:
launching its thousand kernels one by one takes several times as long as they run.

Shapes: S prompt tokens, N places in the cache, K key-value heads, D head dims, E width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM

from model.llm_attention import refuse_attention

# The language model's cache, as an argument and in an output: version 5.24 of transformers has
# another name for it than 4.57.
CACHE = (
    "cache"
    if "cache" in inspect.signature(Qwen2ForCausalLM.forward).parameters
    else "past_key_values"
)


class FixedCache:
    """Keys and values [1, K, N, D] of every layer, written in place, as a graph needs them.

    Takes the place of transformers' cache. A model that is given positions and mask calls only its
    `update`.
    """

    def __init__(self, llm: Qwen2ForCausalLM, places: int) -> None:
        config, weight = llm.config, llm.model.embed_tokens.weight
        head_dim = config.hidden_size // config.num_attention_heads
        shape = (2, config.num_hidden_layers, 1, config.num_key_value_heads, places, head_dim)
        self.keys, self.values = torch.zeros(
            shape, dtype=weight.dtype, device=weight.device
        ).unbind()
        # The place of the token that a step reads; on the device, so that a graph can count it on.
        self.position = torch.zeros(1, dtype=torch.int64, device=weight.device)

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the keys and values of a prompt or of one token, and return what it attends to.

        A prompt fills the first places and sees itself. A token goes to `position` and sees all
        places, of which the mask hides those that are still empty.
        """
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if key.shape[2] > 1:
            keys[:, :, : key.shape[2]], values[:, :, : key.shape[2]] = key, value
            return key, value
        keys.index_copy_(2, self.position, key)
        values.index_copy_(2, self.position, value)
        return keys, values


def greedy(
    llm: Qwen2ForCausalLM, embeds_SE: Tensor, max_new_tokens: int, eos: frozenset[int]
) -> Tensor:
    """The most likely continuation of a prompt.

    Returns:
        ids [n], n at most `max_new_tokens`; the first of `eos`, if any, is the last of them.
    """
    tokens = greedy_tokens(llm, embeds_SE, max_new_tokens, eos)
    return torch.tensor(list(tokens), device=embeds_SE.device)


@torch.no_grad()
def greedy_tokens(
    llm: Qwen2ForCausalLM,
    embeds_SE: Tensor,
    max_new_tokens: int,
    eos: frozenset[int],
    recorded: bool = True,
) -> Iterator[int]:
    """The tokens of `greedy`, each as soon as it is known. The next step runs when the next token
    is asked for.

    Args:
        recorded: whether a GPU's steps become a graph; not where ranks gather parameters in them.

    Raises:
        ValueError: transformers was told to use another attention than the model's own.
    """
    refuse_attention(llm.config._attn_implementation)
    length, device = len(embeds_SE), embeds_SE.device
    cache = FixedCache(llm, length + max_new_tokens)
    places_N = torch.arange(length + max_new_tokens, device=device)
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)

    def run(embeds: Tensor, positions: Tensor, mask: Tensor | None) -> None:
        hidden = llm.model(
            inputs_embeds=embeds,
            position_ids=positions[None],
            cache_position=positions,
            attention_mask={"full_attention": mask},
            use_cache=True,
            **{CACHE: cache},
        ).last_hidden_state
        token.copy_(llm.lm_head(hidden[:, -1]).argmax(-1, keepdim=True))

    def step() -> None:
        mask_N = places_N <= cache.position
        run(llm.model.embed_tokens(token), cache.position, mask_N[None, None, None])
        cache.position += 1

    run(embeds_SE[None], places_N[:length], None)
    cache.position.fill_(length)
    latest, count, advance = int(token), 1, step
    yield latest
    while count < max_new_tokens and latest not in eos:
        # The first step runs without a graph, as recording one needs; the others replay it.
        if count == 2 and count + 1 < max_new_tokens and recorded and device.type == "cuda":
            advance = _recorded(step)
        advance()
        latest, count = int(token), count + 1
        yield latest


def _recorded(step: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of a step that has run before. Recording does not run it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
