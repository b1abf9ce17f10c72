"""The feature file: what the vision encoder saw of one video, and how training reads it back.

One safetensors file per video, `VideoMarathon/features/<variant>/<source>/<id>.safetensors`,
holding

    features  bfloat16 [T, P, C]   T frames in presentation order, P = pooled_side**2 tokens,
                                   before the projector
    pts       float32  [T]         seconds of each frame after the first one

and, in its header, the facts that decide whether it is still right: hashes of the encoder, of the
source video and of the extraction's settings, and a hash of the tensors themselves. Any safetensors
reader opens it. The header has a fixed room, so that rows are written while the video is still
being decoded and memory does not grow with its length.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import xxhash

from model.media.damage import WORDS, describe_damage

if TYPE_CHECKING:
    import torch

FORMAT = "hour-llava-features-1"
SUFFIX = ".safetensors"
# Bytes before the first row: the JSON header, padded with spaces as the format allows.
HEADER_ROOM = 8192
# Of a whole file in receipts: the header is written last, and hashed last.
HASH = f"xxh64+{HEADER_ROOM}"
# Of a bfloat16 without its sign: from here on it is infinite or not a number.
_NOT_FINITE = 0x7F80
# Seconds. Times are float32, which from here on tell no two seconds apart.
LONGEST_S = 1 << 24
_CHECKED_AT_ONCE = 1 << 17  # numbers that stay in a core's cache while they are looked at


@dataclass(frozen=True, slots=True)
class FeatureHeader:
    """What a feature file says about itself.

    Attributes:
        frames, tokens, width: T, P and C.
        metadata: every string of the header.
        bytes: size of the whole file.
    """

    frames: int
    tokens: int
    width: int
    metadata: dict[str, str]
    bytes: int

    @property
    def duration(self) -> float:
        """Seconds of the video."""
        return float(self.metadata["duration"])

    @property
    def damaged(self) -> bool:
        """Whether the decoder met anything it could not read: some pictures may be broken although
        none is missing.
        """
        return self.metadata.get("damaged", "0") != "0"

    @property
    def damage(self) -> str:
        """What the decoder met and what is missing, for people; empty where nothing shows."""
        if not self.damaged:
            return ""
        return describe_damage({name: float(self.metadata.get(name, 0)) for name in WORDS})

    @property
    def content(self) -> str:
        """Hash of the tensors' bytes."""
        return self.metadata["content_xxh3"]


class FeatureWriter:
    """Writes one feature file row by row.

    Args:
        path: where to write; the caller publishes it (see `Storage.writing`).
        frames, tokens, width: the final shape [T, P, C].

    Attributes:
        file_hash: of the whole file once it is finished, as receipts have it.
    """

    def __init__(self, path: Path, frames: int, tokens: int, width: int) -> None:
        if frames < 1:
            raise ValueError(f"{path}: a feature file holds at least one frame, not {frames}")
        self.path, self.shape = Path(path), (frames, tokens, width)
        self.written = 0
        self.file_hash = ""
        self._hash, self._file_hash = xxhash.xxh3_128(), xxhash.xxh64()
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115  closed by finish() or close()
        # Tells who removes temporary files that this one is being written.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.seek(HEADER_ROOM)

    def write(self, rows: np.ndarray) -> None:
        """Append rows, the bit patterns of bfloat16 as uint16 [n, P, C], in frame order."""
        if rows.dtype != np.uint16 or rows.shape[1:] != self.shape[1:]:
            _, tokens, width = self.shape
            raise ValueError(
                f"{self.path}: rows of {rows.dtype} {rows.shape}, expected uint16 [n, {tokens}, "
                f"{width}]"
            )
        if self.written + len(rows) > self.shape[0]:
            raise ValueError(f"{self.path}: row {self.written + len(rows)} of {self.shape[0]}")
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        self._hash.update(data)
        self._file_hash.update(data)
        self._file.write(data)
        self.written += len(rows)

    def finish(self, pts: np.ndarray, metadata: Mapping[str, str]) -> FeatureHeader:
        """Write times and header and close the file.

        Raises:
            ValueError: rows are missing, times do not fit, or the metadata outgrows the header's
                room.
        """
        frames, tokens, width = self.shape
        times = np.ascontiguousarray(pts, np.float32)
        if self.written != frames or times.shape != (frames,):
            raise ValueError(
                f"{self.path}: {self.written} rows and {times.size} times for {frames} frames"
            )
        data = times.tobytes()
        self._hash.update(data)
        self._file_hash.update(data)
        self._file.write(data)
        rows_end = frames * tokens * width * 2
        full = {**metadata, "format": FORMAT, "content_xxh3": self._hash.hexdigest()}
        header = json.dumps(
            {
                "__metadata__": dict(sorted(full.items())),
                "features": {
                    "dtype": "BF16",
                    "shape": list(self.shape),
                    "data_offsets": [0, rows_end],
                },
                "pts": {
                    "dtype": "F32",
                    "shape": [frames],
                    "data_offsets": [rows_end, rows_end + len(data)],
                },
            },
            separators=(",", ":"),
            ensure_ascii=True,
        ).encode()
        if len(header) > HEADER_ROOM - 8:
            raise ValueError(
                f"{self.path}: a header of {len(header)} bytes does not fit into {HEADER_ROOM - 8}"
            )
        start = struct.pack("<Q", HEADER_ROOM - 8) + header.ljust(HEADER_ROOM - 8)
        self._file_hash.update(start)
        self.file_hash = f"{HASH}:{self._file_hash.hexdigest()}"
        self._file.seek(0)
        self._file.write(start)
        self._file.close()
        return FeatureHeader(frames, tokens, width, full, HEADER_ROOM + rows_end + len(data))

    def close(self) -> None:
        """Give the file up; what was written is worthless."""
        self._file.close()


def write_features(
    path: Path,
    features_TPC: torch.Tensor,
    pts: np.ndarray | torch.Tensor,
    metadata: Mapping[str, str],
) -> FeatureHeader:
    """Write a whole feature file at once.

    Args:
        features_TPC: bfloat16 [T, P, C] (other floats are rounded to it).
        pts: float32 [T], seconds.
        metadata: strings; `duration` (seconds) is required.
    """
    import torch

    if "duration" not in metadata:
        raise ValueError(f"{path}: metadata lacks 'duration'")
    rows = features_TPC.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint16).numpy()
    writer = FeatureWriter(path, *rows.shape)
    try:
        writer.write(rows)
        return writer.finish(np.asarray(pts, np.float32), metadata)
    finally:
        writer.close()


def read_header(source: Path | BinaryIO, size: int | None = None, name: str = "") -> FeatureHeader:
    """The header of a feature file, checked against the file's size; reads a few kilobytes.

    Args:
        source: a path or an open binary file.
        size: bytes of the file, where `source` is an open one.
        name: what errors call it; by default its path.

    Raises:
        ValueError: not a feature file, one that is cut short, or one whose duration no video has.
    """
    if isinstance(source, Path | str):
        with open(source, "rb") as file:
            return read_header(file, os.fstat(file.fileno()).st_size, name or str(source))
    name = name or getattr(source, "name", "feature file")
    source.seek(0)
    start = source.read(HEADER_ROOM)
    length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
    if length != HEADER_ROOM - 8 or len(start) != HEADER_ROOM:
        raise ValueError(
            f"{name}: not a feature file of this pipeline (header of {length} bytes); extract it "
            "again"
        )
    try:
        header = json.loads(start[8:])
        metadata, shape = header["__metadata__"], header["features"]["shape"]
        frames, tokens, width = (int(n) for n in shape)
        rows_end = frames * tokens * width * 2
        expected = HEADER_ROOM + rows_end + frames * 4
        consistent = (
            metadata["format"] == FORMAT
            and header["features"]
            == {"dtype": "BF16", "shape": shape, "data_offsets": [0, rows_end]}
            and header["pts"]
            == {
                "dtype": "F32",
                "shape": [frames],
                "data_offsets": [rows_end, rows_end + frames * 4],
            }
            and "content_xxh3" in metadata
        )
        seconds = float(metadata["duration"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{name}: not a feature file of this pipeline ({error!r}); extract it again"
        ) from error
    if not consistent or frames < 1:
        raise ValueError(f"{name}: header is not that of a {FORMAT} file; extract it again")
    if not 0 <= seconds <= LONGEST_S:  # NaN neither
        raise ValueError(
            f"{name}: a duration of {seconds} seconds, where 0 to {LONGEST_S:,} are possible; "
            "extract it again"
        )
    if size is not None and size != expected:
        raise ValueError(
            f"{name}: {size:,} bytes, its header promises {expected:,}; extract it again"
        )
    return FeatureHeader(frames, tokens, width, metadata, expected)


class FeatureFile:
    """One open local feature file; rows are read by mapping, so frames nobody asks for are never
    loaded.

    Attributes:
        header: what the file says about itself.
        pts: float32 [T], seconds of each frame after the first one.

    Raises:
        FileNotFoundError, ValueError: see `read_header`.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.header = read_header(self.path)
        h = self.header
        self._rows = np.memmap(
            self.path, np.uint16, "r", HEADER_ROOM, (h.frames, h.tokens, h.width)
        )
        self.pts: np.ndarray = np.fromfile(
            self.path, np.float32, h.frames, offset=HEADER_ROOM + h.frames * h.tokens * h.width * 2
        )

    @property
    def frames(self) -> int:
        """How many frames the file has."""
        return self.header.frames

    @property
    def metadata(self) -> dict[str, str]:
        """Every string of the header."""
        return self.header.metadata

    @property
    def duration(self) -> float:
        """Seconds of the video."""
        return self.header.duration

    @property
    def damage(self) -> str:
        """What is wrong with the video, for people; empty where nothing shows."""
        return self.header.damage

    def read(self, indices: Sequence[int] | np.ndarray | None = None) -> torch.Tensor:
        """Frames by index, in the order given and repeated where repeated; all of them by default.

        Returns:
            bfloat16 [len(indices), P, C], a copy that owns its memory.

        Raises:
            IndexError: an index outside 0 .. T-1.
            ValueError: a number among them is infinite or not a number; the frame is named.
        """
        import torch

        if indices is None:
            rows = np.array(self._rows)
        else:
            index = np.asarray(indices, np.int64)
            if index.size and (index.min() < 0 or index.max() >= self.frames):
                raise IndexError(f"{self.path}: frame {int(index.max())} of {self.frames}")
            rows = np.asarray(self._rows[index])
        place = _first_not_finite(rows)
        if place is not None:
            row = place // (self.header.tokens * self.header.width)
            frame = row if indices is None else int(np.asarray(indices)[row])
            raise ValueError(
                f"{self.path}: frame {frame} holds numbers that are not finite; the file is "
                "damaged, extract it again"
            )
        return torch.from_numpy(rows).view(torch.bfloat16)


def _first_not_finite(bits: np.ndarray) -> int | None:
    """Place of the first infinite number or NaN among bit patterns of bfloat16, if there is one."""
    flat = bits.reshape(-1)
    room = np.empty(min(_CHECKED_AT_ONCE, flat.size), np.uint16)
    for start in range(0, flat.size, _CHECKED_AT_ONCE):
        part = flat[start : start + _CHECKED_AT_ONCE]
        magnitudes = np.bitwise_and(part, 0x7FFF, out=room[: part.size])
        if magnitudes.max() >= _NOT_FINITE:
            return start + int(np.argmax(magnitudes >= _NOT_FINITE))
    return None


def hash_content(path: Path) -> str:
    """The hash that `content_xxh3` in the header must equal: of all tensor bytes."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        file.seek(HEADER_ROOM)
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def hash_both(file: BinaryIO) -> tuple[str, str]:
    """(`content_xxh3`, hash of the whole file as receipts have it) of an open file, in one pass."""
    content, whole = xxhash.xxh3_128(), xxhash.xxh64()
    file.seek(0)
    start = file.read(HEADER_ROOM)
    while block := file.read(1 << 22):
        content.update(block)
        whole.update(block)
    whole.update(start)
    return content.hexdigest(), f"{HASH}:{whole.hexdigest()}"
