"""Archives as people publish them: in parts, misnamed, compressed in every way. What cannot
be read is refused by its true name.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from assets.fetching.archives import stream_tar
from assets.fetching.compression import ArchiveError, kind_of
from tests.servers.clips import clip
from tests.servers.faulty import FaultyHubServer
from tests.servers.hostile import tar_gz, zipped
from tests.servers.world import acquire, catalogued, make_settings, question, row

REPO = "someone/clips"
MEMBERS = {f"train/v{number}.mp4": clip(number) for number in range(3)}
TAR = gzip.decompress(tar_gz(MEMBERS))
ZIP = zipped(MEMBERS)


def pieces(data: bytes, names: list[str]) -> dict[str, bytes]:
    """A file cut into as many parts as there are names."""
    size = -(-len(data) // len(names))
    return {name: data[n * size : (n + 1) * size] for n, name in enumerate(names)}


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


READ = {
    "parts by letters": pieces(gzip.compress(TAR), [f"x.tar.gz.part-a{n}" for n in "abc"]),
    "parts as split names them": pieces(gzip.compress(TAR), ["x.tar.gzaa", "x.tar.gzab"]),
    "parts by numbers": pieces(TAR, [f"x.tar.{n:02d}" for n in range(12)]),
    "a zip in parts": pieces(ZIP, ["x.zip.001", "x.zip.002", "x.zip.003"]),
    "parts of a part number": pieces(gzip.compress(TAR), ["x.tgz.part0", "x.tgz.part1"]),
    "bzip2": {"x.tar.bz2": bz2.compress(TAR)},
    "xz": {"x.tar.xz": lzma.compress(TAR)},
    "xz in two streams": {"x.tar.xz": lzma.compress(TAR[:5000]) + lzma.compress(TAR[5000:])},
    "zstd": {"x.tar.zst": zstd(TAR)},
    "zstd in parts": pieces(zstd(TAR), ["x.tar.zst.part_aa", "x.tar.zst.part_ab"]),
    "a plain tar called tar.gz": {"x.tar.gz": TAR},
    "a gzip called tar": {"x.tar": gzip.compress(TAR)},
    "an xz called tar.gz": {"x.tar.gz": lzma.compress(TAR)},
    "a zip called tar.gz": {"x.tar.gz": ZIP},
    "a tar.gz called zip": {"x.zip": gzip.compress(TAR)},
    "a tar called zip": {"x.zip": TAR},
    "a zip of bzip2": {"x.zip": zipped(MEMBERS, zipfile.ZIP_BZIP2)},
    "a zip of LZMA": {"x.zip": zipped(MEMBERS, zipfile.ZIP_LZMA)},
    "beside a signature": {
        "x.tar.gz": gzip.compress(TAR),
        "x.tar.gz.asc": b"-----",
        "x.zip.sig": b"-",
    },
}


def with_header(method: int | None = None, flags: int = 0) -> bytes:
    """A zip whose members say that they are packed in another way."""
    raw = bytearray(zipped(MEMBERS))
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = -1
        while (place := raw.find(magic, place + 1)) >= 0:
            struct.pack_into("<H", raw, place + at, flags)
            if method is not None:
                struct.pack_into("<H", raw, place + at + 2, method)
    return bytes(raw)


REFUSED = {
    "Deflate64": ({"x.zip": with_header(9)}, "unsupported_archive", "Deflate64"),
    "PPMd": ({"x.zip": with_header(98)}, "unsupported_archive", "PPMd"),
    "an encrypted zip": ({"x.zip": with_header(flags=1)}, "encrypted_archive", "is encrypted"),
    "an AES zip": ({"x.zip": with_header(99, 1)}, "encrypted_archive", "is encrypted"),
    "7z": ({"x.7z": b"7z\xbc\xaf\x27\x1c" + bytes(900)}, "unsupported_archive", "is a 7z archive"),
    "RAR called zip": ({"x.zip": b"Rar!\x1a\x07\0" + bytes(900)}, "unsupported_archive", "RAR"),
    "a zip in disks": (
        {"x.z01": b"PK\x07\x08PK\x03\x04" + bytes(900)},
        "unsupported_archive",
        "zip -s 0",
    ),
    "a missing first part": (
        {"x.tar.gz.part-ab": b"a", "x.tar.gz.part-ac": b"b"},
        "archive_incomplete",
        "part-ab|ab, ac",
    ),
    "a gap": ({"x.zip.001": b"a", "x.zip.003": b"b"}, "archive_incomplete", "part 2 is missing"),
    "a single file, compressed": (
        {"x.tar.gz": gzip.compress(clip(0))},
        "not_an_archive",
        "compressed by gzip, and holds a single file",
    ),
    "a page": ({"x.tar.gz": b"<html>" + bytes(900)}, "not_an_archive", "no archive that is known"),
    "a missing last part": (
        dict(
            list(pieces(gzip.compress(TAR), ["x.tar.gz.00", "x.tar.gz.01", "x.tar.gz.02"]).items())[
                :2
            ]
        ),
        "archive_damaged",
        "ended before",
    ),
}


@pytest.fixture
def world(tmp_path: Path):
    with FaultyHubServer() as hub:

        def build(files: dict[str, bytes]):
            hub.publish(REPO, files)
            archives = ["*.zip", "*.tar*", "*.t?z", "*.7z", "*.z01"]
            settings = make_settings(
                tmp_path / "deployment",
                {"set": {"kind": "hub", "repo": REPO, "archives": archives}},
                [question(f"v{number}", "set") for number in range(3)],
                hub_endpoint=hub.url,
            )
            return catalogued(settings), settings

        yield build


@pytest.mark.parametrize("name", READ)
def test_archives_are_told_by_their_bytes_and_read(name, world):
    storage, settings = world(READ[name])
    acquire(storage, settings, "set")
    for number in range(3):
        found = row(storage, "set", f"v{number}")
        assert found.status == "ok", found
        assert storage.read_bytes(f"VideoMarathon/videos/set/v{number}.mp4") == clip(number)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_its_true_name(name, world):
    files, reason, said = REFUSED[name]
    storage, settings = world(files)
    acquire(storage, settings, "set")
    found = row(storage, "set", "v0")
    assert (found.status, found.reason) == ("permanent", reason), found
    assert any(words in found.message for words in said.split("|")), found.message


def test_a_plain_tar_of_every_age_is_known():
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=form) as archive:
            archive.addfile(tarfile.TarInfo("folder/" * 20 + "ü"))
        assert kind_of(raw.getvalue()[:512]) == "tar"
    assert kind_of(bytes(512)) == "tar", "an empty one"
    assert kind_of(clip(0)[:512]) is None


BOMB = 300 << 20


@pytest.mark.slow
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_a_stream_that_grows_out_of_proportion_is_stopped(compress):
    header = tarfile.TarInfo("v.mp4")
    header.size = BOMB
    body = compress(header.tobuf() + bytes(BOMB))
    with pytest.raises(ArchiveError) as error:
        stream_tar(io.BytesIO(body), choose=lambda name, size: None)
    assert error.value.reason == "archive_bomb"
