"""A tiny Hour-LLaVA with random weights and a tokenizer of its own: for the demo and the tests, on
any CPU.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from model.config import PRESETS, HourLlavaConfig
from model.hf import HourLlavaForCausalLM
from model.hf_config import HourLlavaHFConfig
from model.hf_processor import processor_files
from model.initialise import initialise

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MAX_VOCABULARY = 512
# At these widths 0.02 leaves almost nothing of a picture after a few layers, and training from
# scratch does not start.
STD = 0.06

# What the vocabulary is learned from: the words of prompts, of questions about videos, and of the
# demo.
TEXT = """
system You are a helpful assistant. user assistant The video lasts for seconds, and frames are
uniformly sampled from it. Please answer the following questions related to this video. Answer with
the option's letter from the given choices directly. Which of the following options is correct? What
is the man doing at the beginning of the video? What does the woman do after she opens the door? How
many events happen in the video? In which order do the events happen? When does the person first
appear? Where is the red square? Which color is shown in the middle of the video? What happens
before the last scene? Why does he go to the kitchen? Describe the scene in detail. Describe the
picture. What is the main topic of the video? Is there a car in the street? The first scene shows a
red background. Then a green square moves to the right. After that the scene is blue, and at the end
a yellow circle appears. The color is red, green, blue, yellow, white, black, orange or purple. He
is cooking in the kitchen and then he walks in the street. She is talking to people at night. There
are three people in the room. A dog and a cat are playing outside. The answer is one two three four
five six seven eight nine ten. Yes. No. Nothing changes.
"""


def build_tiny(
    out_dir: Path, seed: str = "tiny", config: HourLlavaConfig = PRESETS["tiny"]
) -> None:
    """Write a checkpoint that `HourLlavaForCausalLM.from_pretrained` and
    `AutoProcessor.from_pretrained` load.

    The same seed gives the same bytes.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(out_dir, config.max_length)
    ids = {"eos_token_id": vocabulary["<|im_end|>"], "pad_token_id": vocabulary["<|endoftext|>"]}
    model = HourLlavaForCausalLM(HourLlavaHFConfig.of(config, **ids))
    initialise(model.model.named_parameters(), seed, STD)
    model.save_pretrained(out_dir)
    for name, content in processor_files(config).items():
        (out_dir / name).write_bytes(content)


def write_tokenizer(out_dir: Path, max_length: int) -> dict[str, int]:
    """Write a Qwen2 tokenizer of at most 512 tokens, learned from `TEXT`; gives its vocabulary."""
    alphabet = _byte_alphabet()
    merges = _learn_merges(TEXT, MAX_VOCABULARY - len(alphabet) - len(SPECIAL))
    tokens = [*alphabet, *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate([*tokens, *SPECIAL])}
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    added = {vocabulary[token]: {"content": token, **flags} for token in SPECIAL}
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    split = {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False}
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
    }
    model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    files = {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": number, **token} for number, token in added.items()],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": byte_level,
            "decoder": byte_level,
            "model": model
            | {
                "vocab": {token: vocabulary[token] for token in tokens},
                "merges": [" ".join(pair) for pair in merges],
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "added_tokens_decoder": {str(number): token for number, token in added.items()},
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "bos_token": None,
            "unk_token": None,
            "model_max_length": max_length,
            "clean_up_tokenization_spaces": False,
        },
        "vocab.json": {token: vocabulary[token] for token in tokens},
    }
    for name, content in files.items():
        (out_dir / name).write_text(
            json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (out_dir / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return vocabulary


# How Qwen2 cuts text into pieces that merges never cross.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


_NEWLINE = chr(256 + 10)  # how the alphabet shows it


def _byte_alphabet() -> list[str]:
    """GPT-2's characters for the 256 bytes in its order: visible ones as themselves, then the
    others (newline: 198).
    """
    visible = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [chr(byte) for byte in visible] + [
        chr(256 + number) for number in range(256 - len(visible))
    ]


def _learn_merges(text: str, count: int) -> list[tuple[str, str]]:
    """Byte-pair encoding: join the most frequent pair of neighbours, again and again; of equals the
    first by name.

    Not by the trainer of `tokenizers`: it takes no merges to start from, numbers the alphabet in
    another order and breaks ties otherwise, so that the files would have other bytes.
    """
    space = chr(256 + 32)  # how the alphabet shows a space
    pieces = Counter(
        piece.replace(" ", space) for piece in re.findall(r" ?[A-Za-z]+", " ".join(text.split()))
    )
    words = [(list(piece), number) for piece, number in sorted(pieces.items())]
    # Qwen2 joins newlines to each other and to what they end; such tokens are not "the newline",
    # which is supervised.
    merges = [(first, _NEWLINE) for first in (_NEWLINE, ".", "?")]
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, number in words:
            for pair in itertools.pairwise(symbols):
                pairs[pair] += number
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for symbols, _ in words:
            position = 0
            while position + 1 < len(symbols):
                if (symbols[position], symbols[position + 1]) == best:
                    symbols[position : position + 2] = ["".join(best)]
                position += 1
    return merges
