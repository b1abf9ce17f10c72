"""Hashes of files, of JSON values and of names: the same on every machine and in every version.

Three sorts, because they answer different questions: SHA-256 identifies content from outside,
xxh64 is what an MDS index holds for its shards, and a short hash of names replaces chance: parts,
spreads and seeds come from it and never from global state.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import xxhash

_BLOCK_BYTES = 1 << 22


def hash_file(path: Path) -> str:
    """SHA-256 of a local file, as hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_value(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, as hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def data_version(value: Any) -> str:
    """A short data version of content: equal content gives an equal version, in every run."""
    return hash_value(value)[:32]


def hash_file_xxh64(path: Path) -> str:
    """xxh64 of a local file, as hexadecimal: the hash in an MDS index."""
    digest = xxhash.xxh64()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def stable_hash(*names: str) -> int:
    """A 64-bit hash of names."""
    return int.from_bytes(hashlib.blake2b("\0".join(names).encode(), digest_size=8).digest(), "big")


def seed_of(*names: object) -> int:
    """A seed in [0, 2**31) derived from names."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % 2**31
