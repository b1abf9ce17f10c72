"""Greedy decoding of one prompt. On a GPU a step is one CUDA graph: an hour-long prompt leaves so
little work in a step that launching its thousand kernels one by one takes several times as long as
they run.

Shapes: S prompt tokens, N places in the cache, K key-value heads, D head dims, E width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM


class FixedCache:
    """Keys and values [1, K, N, D] of every layer, in place, as a graph needs them.

    Stands in for transformers' cache, of which a model that is told positions and mask only calls
    `update`.
    """

    def __init__(self, llm: Qwen2ForCausalLM, places: int) -> None:
        config, weight = llm.config, llm.model.embed_tokens.weight
        head_dim = config.hidden_size // config.num_attention_heads
        shape = (2, config.num_hidden_layers, 1, config.num_key_value_heads, places, head_dim)
        self.keys, self.values = torch.zeros(
            shape, dtype=weight.dtype, device=weight.device
        ).unbind()
        self.position = torch.zeros(
            1, dtype=torch.int64, device=weight.device
        )  # of the token in a step

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """A prompt fills the first places and sees itself; a token goes to `position` and sees all
        places.
        """
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if key.shape[2] > 1:
            keys[:, :, : key.shape[2]], values[:, :, : key.shape[2]] = key, value
            return key, value
        keys.index_copy_(2, self.position, key)
        values.index_copy_(2, self.position, value)
        return keys, values


@torch.no_grad()
def greedy(
    llm: Qwen2ForCausalLM, embeds_SE: Tensor, max_new_tokens: int, eos: frozenset[int]
) -> Tensor:
    """The most likely continuation of a prompt: ids [n], at most `max_new_tokens`, ending with the
    first of `eos`.
    """
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
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        token.copy_(llm.lm_head(hidden[:, -1]).argmax(-1, keepdim=True))

    def step() -> None:
        run(
            llm.model.embed_tokens(token),
            cache.position,
            (places_N <= cache.position)[None, None, None],
        )
        cache.position += 1

    run(embeds_SE[None], places_N[:length], None)
    cache.position.fill_(length)
    ids = [int(token)]
    advance = step
    while len(ids) < max_new_tokens and ids[-1] not in eos:
        advance()
        ids.append(int(token))
        if advance is step and device.type == "cuda" and len(ids) + 1 < max_new_tokens:
            advance = _graph(step)
    return torch.tensor(ids, device=device)


def _graph(step: Callable[[], None]) -> Callable[[], None]:
    """Record a step, which has run before, without running it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
