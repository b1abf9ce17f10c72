"""The one place that opens the safetensors files of a checkpoint.

What a file holds is read from its header alone; numbers are read when they are asked for, a tensor
or some rows of one at a time. So a checkpoint of any size is checked and copied in little memory.
Torch is imported only with numbers: Dagster's processes describe checkpoints without it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

if TYPE_CHECKING:
    from torch import Tensor

INDEX_NAME = "model.safetensors.index.json"
SHARD_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file, as the file's header describes it.

    Attributes:
        file: the safetensors file.
        name: its name there.
        shape: its shape.
        dtype: its type, as safetensors spells it (`F32`, `BF16`, ...).
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def read(self) -> Tensor:
        """The whole tensor, in its stored type. The file is mapped, not copied."""
        with safe_open(self.file, "pt") as opened:
            return opened.get_tensor(self.name)

    def rows(self, first: int, last: int) -> Tensor:
        """Its rows `first` to `last` (without that one), in the stored type."""
        with safe_open(self.file, "pt") as opened:
            return opened.get_slice(self.name)[first:last]


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint's folder, by name: those of its index where it has one.

    Returns:
        The files; an empty list where there are none.

    Raises:
        ValueError: the index names a file outside the folder, or one that is not there.
    """
    index = folder / INDEX_NAME
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    listed = set(json.loads(index.read_text())["weight_map"].values())
    if outside := [name for name in listed if Path(name).name != name]:
        raise ValueError(f"{index}: {outside[0]!r} is not a plain file name")
    files = [folder / name for name in sorted(listed)]
    if absent := [file.name for file in files if not file.exists()]:
        raise ValueError(
            f"{folder}: {', '.join(absent)} of its index is not there; download it again"
        )
    return files


def stored_tensors(*files: Path) -> Iterator[StoredTensor]:
    """What the files hold, file by file, from their headers alone."""
    for file in files:
        with safe_open(file, "np") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no dictionary
                header = opened.get_slice(name)
                yield StoredTensor(file, name, tuple(header.get_shape()), header.get_dtype())


def length_fault(file: Path) -> str | None:
    """What is wrong with the length of a file, by its header alone; None where nothing is.

    A file starts with the length of its header in 8 bytes, little end first, then the header: JSON
    that gives each tensor's place in the bytes behind it.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > size:
            return f"{file.name} is cut short"
        header: dict[str, Any] = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    ends = (tensor["data_offsets"][1] for tensor in header.values())
    promised = 8 + length + max(ends, default=0)
    if size != promised:
        return f"{file.name} has {size:,} bytes, its header promises {promised:,}"
    return None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file, by name."""
    from safetensors.torch import load_file

    return load_file(file)


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one file that transformers reads, too. Tensors must be contiguous."""
    from safetensors.torch import save_file

    save_file(dict(tensors), file, metadata={"format": "pt"})


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tensors in order into several files, and the index of them.

    Args:
        folder: where to.
        tensors: name and tensor; they are taken one at a time.
        shard_bytes: at most so much is in memory and in one file (or a single larger tensor).
    """
    shards: list[list[str]] = []
    total = size = 0
    shard: dict[str, Tensor] = {}

    def flush() -> None:
        if shard:
            write_tensors(folder / f"part-{len(shards):05d}.safetensors", shard)
            shards.append(list(shard))
            shard.clear()

    for name, tensor in tensors:
        more = tensor.numel() * tensor.element_size()
        if size + more > shard_bytes:
            flush()
            size = 0
        shard[name] = tensor.contiguous()
        size, total = size + more, total + more
    flush()
    # A shard's name says how many there are, which is known only now.
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"part-{number:05d}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")
