"""The other two collections arrive as annotation files and media that the shard step can use, and
nothing else does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.collections.collection import CollectionReport
from assets.collections.llava_video import collect_llava_video
from assets.collections.mixtures import read_mixture
from assets.collections.onevision import collect_onevision, read_configs
from assets.deployment.settings import Settings
from assets.fetching.errors import AnnotationError, OperatorError
from assets.records.lineage import Lineage, mend
from assets.records.product_files import KnownFiles
from tests.servers.clips import clip
from tests.servers.faulty import Fault, FaultyHubServer, in_turn
from tests.servers.hostile import tar_gz, zipped
from tests.servers.world import files_below, make_settings, quiet
from training.formats.storage import Storage

World = Callable[..., tuple[Storage, Settings]]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURN = pa.struct([("from", pa.string()), ("value", pa.string())])
TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
JPEG, PNG = b"\xff\xd8\xff\xe0 not decoded here", b"\x89PNG\r\n\x1a\n not decoded here"


def parquet(rows: list[dict], image: pa.DataType = IMAGE) -> bytes:
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("image", image),
            ("conversations", pa.list_(TURN)),
            ("data_source", pa.string()),
        ]
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


def picture(number: int, data: bytes = JPEG) -> dict:
    return {
        "id": f"r{number}",
        "image": {"bytes": data + bytes([number]), "path": f"../../{number}.jpg"},
        "conversations": TALK,
        "data_source": "s",
    }


@pytest.fixture
def hub() -> Iterator[FaultyHubServer]:
    with FaultyHubServer() as server:
        yield server


@pytest.fixture
def world(tmp_path: Path, hub: FaultyHubServer) -> World:
    def build(*mixture: str, **collection_settings: Any) -> tuple[Storage, Settings]:
        lines = ["kind,collection,annotation,fraction", *mixture]
        (tmp_path / "mixtures.csv").write_text("\n".join(lines) + "\n")
        settings = make_settings(
            tmp_path,
            {"x": {"kind": "url"}},
            hub_endpoint=hub.url,
            collections={
                "onevision_repo": "some/one",
                "video_repo": "some/videos",
                "mixtures": str(tmp_path / "mixtures.csv"),
                **collection_settings,
            },
        )
        return Storage(settings.root), settings

    return build


def annotation(storage: Storage, collection: str, name: str) -> list[dict]:
    return json.loads(storage.read_bytes(f"{collection}/annotations/{name}"))


SI = "llavavideo_si,LLaVA-OneVision,{},1"


def test_a_set_of_parquet_files_becomes_rows_and_image_files_of_the_same_bytes(
    world: World, hub: FaultyHubServer
) -> None:
    files = {
        "set/train-00000-of-00002.parquet": parquet([picture(0), picture(1, PNG), picture(2)]),
        "set/train-00001-of-00002.parquet": parquet([picture(3)]),
        "other/train-00000-of-00001.parquet": parquet([picture(9)]),
    }
    revision = hub.publish("some/one", files)
    storage, settings = world(SI.format("set.json"))
    report = collect_onevision(storage, settings, quiet)
    rows = annotation(storage, "LLaVA-OneVision", "set.json")
    assert [row["id"] for row in rows] == ["r0", "r1", "r2", "r3"]
    assert rows[0]["conversations"] == TALK
    assert [row["image"].rsplit(".", 1)[1] for row in rows] == ["jpg", "png", "jpg", "jpg"]
    stored = [storage.read_bytes(f"LLaVA-OneVision/images/{row['image']}") for row in rows]
    assert stored == [JPEG + b"\0", PNG + b"\1", JPEG + b"\2", JPEG + b"\3"]
    assert (report.origins, report.counts["images"], report.counts["rows"]) == (
        {"some/one": revision},
        4,
        4,
    )
    assert not any("other/" in exchange.request.path for exchange in hub.log)


def test_text_rows_and_rows_of_several_images(world: World, hub: FaultyHubServer) -> None:
    text = {"id": "t", "image": None, "conversations": TALK, "data_source": "s"}
    pair = {**picture(0), "image": [picture(0)["image"], picture(1)["image"]]}
    hub.publish(
        "some/one",
        {
            "text/train-00000-of-00001.parquet": parquet([text]),
            "multi/pairs/train-00000-of-00001.parquet": parquet([pair], pa.list_(IMAGE)),
        },
    )
    storage, settings = world(
        SI.format("text.json"), "llavavideo_mi,LLaVA-OneVision,multi/pairs.json,1"
    )
    collect_onevision(storage, settings, quiet)
    assert annotation(storage, "LLaVA-OneVision", "text.json") == [
        {"id": "t", "conversations": TALK, "data_source": "s"}
    ]
    (row,) = annotation(storage, "LLaVA-OneVision", "multi/pairs.json")
    assert [storage.read_bytes(f"LLaVA-OneVision/images/{name}") for name in row["image"]] == [
        JPEG + b"\0",
        JPEG + b"\1",
    ]


def test_a_plain_annotation_file_brings_the_images_that_it_names(
    world: World, hub: FaultyHubServer
) -> None:
    rows = [
        {"id": 1, "image": ["a/1.jpg", "a/2.jpg"], "conversations": TALK},
        {"id": 2, "image": "a/1.jpg", "conversations": TALK},
        {"id": 3, "image": "../../etc/passwd", "conversations": TALK},
        {"id": 4, "conversations": TALK},
    ]
    files = {
        "multi_image/x.json": json.dumps(rows).encode(),
        "multi_image/a/1.jpg": b"1",
        "images/a/2.jpg": b"2",
        "z.jpg": b"3",
    }
    hub.publish("some/one", files)
    storage, settings = world("llavavideo_mi,LLaVA-OneVision,multi_image/x.json,1")
    report = collect_onevision(storage, settings, quiet)
    first, second, third, fourth = annotation(storage, "LLaVA-OneVision", "multi_image/x.json")
    assert [storage.read_bytes(f"LLaVA-OneVision/images/{name}") for name in first["image"]] == [
        b"1",
        b"2",
    ]
    assert second["image"] == first["image"][0]
    assert not storage.exists(f"LLaVA-OneVision/images/{third['image']}")
    assert "image" not in fourth
    assert report.counts["images not in the repository"] == 1


def test_a_finished_set_is_made_again_only_when_its_files_change(
    world: World, hub: FaultyHubServer
) -> None:
    files = {"a/train-0.parquet": parquet([picture(0)]), "b/train-0.parquet": parquet([picture(1)])}
    hub.publish("some/one", files)
    storage, settings = world(SI.format("a.json"), SI.format("b.json"))
    first = collect_onevision(storage, settings, quiet)
    asked = len(hub.log)
    assert collect_onevision(storage, settings, quiet).version == first.version
    assert not [e for e in hub.log[asked:] if "/resolve/" in e.request.path]
    hub.publish("some/one", {**files, "b/train-0.parquet": parquet([picture(2)])})
    asked = len(hub.log)
    assert collect_onevision(storage, settings, quiet).version != first.version
    fetched = {e.request.path for e in hub.log[asked:] if "/resolve/" in e.request.path}
    assert {path.split("/")[-2] for path in fetched} == {"b"}
    (row,) = annotation(storage, "LLaVA-OneVision", "b.json")
    assert storage.read_bytes(f"LLaVA-OneVision/images/{row['image']}") == JPEG + b"\2"


def test_passing_faults_change_nothing_and_a_second_try_goes_on(
    world: World, hub: FaultyHubServer, tmp_path: Path
) -> None:
    files = {f"a/train-{n}.parquet": parquet([picture(n)]) for n in range(3)}
    hub.publish("some/one", files)
    storage, settings = world(SI.format("a.json"))
    hub.faults = in_turn(
        {r"GET .*/resolve/": [Fault.answer(429, headers={"Retry-After": "0"}), Fault.truncate(200)]}
    )
    collect_onevision(storage, settings, quiet)
    assert [row["id"] for row in annotation(storage, "LLaVA-OneVision", "a.json")] == [
        "r0",
        "r1",
        "r2",
    ]
    assert not [
        path for path in files_below(Path(storage.root)) if path.startswith(".tmp-incoming")
    ]


def test_what_the_repository_does_not_have_is_listed_or_an_error(
    world: World, hub: FaultyHubServer
) -> None:
    hub.publish("some/one", {"a/train-0.parquet": parquet([picture(0)])})
    storage, settings = world(SI.format("a.json"), SI.format("gone.json"))
    report = collect_onevision(storage, settings, quiet)
    assert [(row["annotation"], row["state"]) for row in report.table] == [
        ("a.json", "ready"),
        ("gone.json", "not in the repository"),
    ]
    storage, settings = world(SI.format("a.json"), SI.format("gone.json"), require_all=True)
    with pytest.raises(AnnotationError, match=r"1 of 2 annotation files: gone\.json"):
        collect_onevision(storage, settings, quiet)


def test_a_hostile_listing_is_not_used(world: World, hub: FaultyHubServer, tmp_path: Path) -> None:
    hub.publish("some/one", {"a/train-0.parquet": parquet([picture(0)]), "../../escaped.jpg": b"x"})
    storage, settings = world(SI.format("a.json"))
    with pytest.raises(OperatorError, match="outside of the repository"):
        collect_onevision(storage, settings, quiet)
    assert not [name for name in files_below(tmp_path) if "escaped" in name]


def test_every_configuration_of_the_table_belongs_to_the_built_in_mixture() -> None:
    known = {entry.annotation for entry in read_mixture() if entry.collection == "LLaVA-OneVision"}
    table = read_configs()
    assert table.keys() <= known
    assert len(set(table.values())) == len(table) - 1, "sharegpt4o is called both .json and .jsonl"


VIDEO = "llavavideo_video,LLaVA-Video-178K,{},1"


def video_files() -> dict[str, bytes]:
    rows = [{"id": str(n), "video": f"src/v{n}.mp4", "conversations": TALK} for n in range(5)]
    return {
        "0_30_s/cap_processed.json": json.dumps(rows).encode(),
        "0_30_s/0_30_s_videos_1.tar.gz": tar_gz(
            {"src/v0.mp4": clip(0), "./src/v1.mp4": clip(1), "src/unused.mp4": clip(7)}
        ),
        "0_30_s/0_30_s_videos_2.tar.gz": tar_gz(
            {"0_30_s/src/v2.mp4": clip(2), "src/v3.mp4": clip(3)[:40_000]}
        ),
        "9_m/other_processed.json": b"[]",
        "9_m/9_m_videos_1.tar.gz": tar_gz({"src/v0.mp4": clip(8)}),
    }


def test_short_videos_come_out_of_their_archives_looked_into(
    world: World, hub: FaultyHubServer
) -> None:
    hub.publish("some/videos", video_files())
    storage, settings = world(VIDEO.format("cap.json"))
    report = collect_llava_video(storage, settings, quiet)
    rows = annotation(storage, "LLaVA-Video-178K", "cap.json")
    assert [row["video"] for row in rows] == [f"0_30_s/src/v{n}.mp4" for n in range(5)]
    for number in range(3):
        assert storage.read_bytes(f"LLaVA-Video-178K/videos/{rows[number]['video']}") == clip(
            number
        )
    assert storage.list("LLaVA-Video-178K/videos") == [
        f"LLaVA-Video-178K/videos/0_30_s/src/v{n}.mp4" for n in range(3)
    ]
    assert storage.list("LLaVA-Video-178K/quarantine") == [
        "LLaVA-Video-178K/quarantine/0_30_s/src/v3.mp4"
    ]
    assert report.counts["rows without their video"] == 2
    assert report.counts["left out: truncated"] == 1
    assert report.counts["videos"] == 3
    assert not any("9_m" in e.request.path and "resolve" in e.request.path for e in hub.log)


def test_a_folder_of_which_no_row_names_a_video_ends_nothing(
    world: World, hub: FaultyHubServer
) -> None:
    rows = [{"id": "0", "video": None, "conversations": TALK}, {"id": "1", "conversations": TALK}]
    hub.publish(
        "some/videos", {**video_files(), "9_m/other_processed.json": json.dumps(rows).encode()}
    )
    storage, settings = world(VIDEO.format("cap.json"), VIDEO.format("other.json"))
    report = collect_llava_video(storage, settings, quiet)
    assert report.counts["videos"] == 3
    assert annotation(storage, "LLaVA-Video-178K", "other.json") == rows
    assert not storage.list("LLaVA-Video-178K/videos/9_m")


def test_an_archive_with_another_hash_gives_nothing_and_a_good_one_beside_it_does(
    world: World, hub: FaultyHubServer
) -> None:
    hub.publish("some/videos", video_files())
    storage, settings = world(VIDEO.format("cap.json"))
    size = len(video_files()["0_30_s/0_30_s_videos_1.tar.gz"])
    hub.faults = lambda r: (
        Fault.answer(206, bytes(size)) if "videos_1" in r.path and r.method == "GET" else None
    )
    report = collect_llava_video(storage, settings, quiet)
    assert storage.list("LLaVA-Video-178K/videos") == ["LLaVA-Video-178K/videos/0_30_s/src/v2.mp4"]
    assert {name for name in report.counts if name.startswith("left out")} == {
        "left out: hash_mismatch",  # zeros are an empty tar
        "left out: truncated",
    }
    hub.faults = None
    again = collect_llava_video(storage, settings, quiet)
    assert len(storage.list("LLaVA-Video-178K/videos")) == again.counts["videos"] == 3
    assert again.version != report.version


def test_a_second_collection_fetches_nothing(world: World, hub: FaultyHubServer) -> None:
    hub.publish("some/videos", video_files())
    storage, settings = world(VIDEO.format("cap.json"))
    first = collect_llava_video(storage, settings, quiet)
    asked = len(hub.log)
    assert collect_llava_video(storage, settings, quiet).version == first.version
    assert not [e for e in hub.log[asked:] if "/resolve/" in e.request.path]


def flip(storage: Storage, rel: str) -> None:
    path = storage.local(rel)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def recorded(storage: Storage, name: str, report: CollectionReport) -> Lineage:
    """The collection as its asset records it."""
    files = KnownFiles(storage, name).describe(report.files)
    record = Lineage(name, report.version).with_files(storage, files)
    record.write(storage)
    return record


@pytest.mark.parametrize(
    "name",
    [
        "images/set/00000/000000.jpg",
        "annotations/set.json",
        "files/set.files.json",
        "collected.json",
    ],
)
def test_a_damaged_file_of_the_images_is_set_aside_and_fetched_again(
    world: World, hub: FaultyHubServer, name: str
) -> None:
    files = {
        "set/train-00000-of-00001.parquet": parquet([picture(0), picture(1, PNG)]),
        "other/train-00000-of-00001.parquet": parquet([picture(2)]),
    }
    hub.publish("some/one", files)
    storage, settings = world(SI.format("set.json"), SI.format("other.json"))
    before = recorded(storage, "llava_onevision", collect_onevision(storage, settings, quiet))
    expected = files_below(Path(storage.path("LLaVA-OneVision")))
    time.sleep(0.15)
    assert mend(storage, "llava_onevision", quiet) == []
    flip(storage, f"LLaVA-OneVision/{name}")
    damaged = {found.path for found in mend(storage, "llava_onevision", quiet)}
    assert damaged == {f"LLaVA-OneVision/{name}"}
    again = collect_onevision(storage, settings, quiet, damaged)
    after = recorded(storage, "llava_onevision", again)
    assert (after.version, after.receipt) == (before.version, before.receipt)
    assert files_below(Path(storage.path("LLaVA-OneVision"))) == expected
    assert storage.exists(f"damaged/LLaVA-OneVision/{name}.1")
    assert after.damage(storage, full=True) == []


def test_a_damaged_short_video_is_set_aside_and_unpacked_again(
    world: World, hub: FaultyHubServer
) -> None:
    hub.publish("some/videos", video_files())
    storage, settings = world(VIDEO.format("cap.json"))
    before = recorded(storage, "llava_video", collect_llava_video(storage, settings, quiet))
    videos = storage.list("LLaVA-Video-178K/videos")
    expected = [storage.read_bytes(name) for name in videos]
    time.sleep(0.15)
    flip(storage, videos[0])
    damaged = {found.path for found in mend(storage, "llava_video", quiet)}
    assert damaged == {videos[0]}
    after = recorded(storage, "llava_video", collect_llava_video(storage, settings, quiet, damaged))
    assert (after.version, after.receipt) == (before.version, before.receipt)
    assert [storage.read_bytes(name) for name in videos] == expected
    assert after.damage(storage, full=True) == []


RAW_CONFIGURATIONS = {
    "a tar.gz beside it": (
        "ureader_kg/ureader_kg_processed.json",
        lambda members: {"ureader_kg/ureader_kg_images.tar.gz": tar_gz(members)},
    ),
    "a zip, and another name": (
        "ureader_kg/train.json",
        lambda members: {"ureader_kg/images.zip": zipped(members)},
    ),
    "a tar.gz in parts, in the root": (
        "ureader_kg_sft.json",
        lambda members: {
            "ureader_kg.tar.gz.part-aa": tar_gz(members)[:100],
            "ureader_kg.tar.gz.part-ab": tar_gz(members)[100:],
        },
    ),
}


@pytest.mark.parametrize("name", RAW_CONFIGURATIONS)
def test_a_raw_configuration_brings_its_images_out_of_its_archives(
    name: str, world: World, hub: FaultyHubServer
) -> None:
    annotations, packed = RAW_CONFIGURATIONS[name]
    rows = [
        {"id": 1, "image": "DUE/DocVQA/a.png", "conversations": TALK},
        {"id": 2, "image": "DUE/other/a.png", "conversations": TALK},
        {"id": 3, "image": "DUE/DocVQA/a.png", "conversations": TALK},
        {"id": 4, "image": "DUE/gone.png", "conversations": TALK},
    ]
    members = {
        "images/DUE/DocVQA/a.png": PNG + b"1",
        "images/DUE/other/a.png": PNG + b"2",
        "images/DUE/unused.png": PNG,
    }
    hub.publish("some/one", {annotations: json.dumps(rows).encode(), **packed(members)})
    storage, settings = world(SI.format("ureader_kg_sft.json"))
    report = collect_onevision(storage, settings, quiet)
    found = annotation(storage, "LLaVA-OneVision", "ureader_kg_sft.json")
    read = [storage.path(f"LLaVA-OneVision/images/{row['image']}") for row in found]
    assert [Path(path).read_bytes()[-1:] for path in read[:3]] == [b"1", b"2", b"1"]
    assert read[0] == read[2]
    assert (report.counts["images"], report.counts["images not in the repository"]) == (2, 1)
    assert report.table[0]["state"] == "ready"


def test_annotations_without_videos_are_told_before_anything_is_fetched(
    world: World, hub: FaultyHubServer
) -> None:
    rows = json.dumps([{"id": "0", "video": "x/1", "conversations": TALK}]).encode()
    files = {**video_files(), "hound/sharegpt_qa_processed.json": rows}
    hub.publish("some/videos", files)
    mixture = (VIDEO.format("cap.json"), VIDEO.format("sharegpt_qa.json"))

    storage, settings = world(*mixture, require_all=True)
    with pytest.raises(AnnotationError, match=r"sharegpt_qa\.json \(no videos beside hound/.*skip"):
        collect_llava_video(storage, settings, quiet)
    assert not any("resolve" in exchange.request.path for exchange in hub.log)

    storage, settings = world(*mixture)
    report = collect_llava_video(storage, settings, quiet)
    assert [row["state"] for row in report.table] == [
        "ready",
        "no videos beside hound/sharegpt_qa_processed.json",
    ]
    assert storage.list("LLaVA-Video-178K/annotations") == ["LLaVA-Video-178K/annotations/cap.json"]

    storage, settings = world(*mixture, require_all=True, skip=["sharegpt_qa.json"])
    report = collect_llava_video(storage, settings, quiet)
    assert [row["annotation"] for row in report.table] == ["cap.json"]


def test_what_is_skipped_must_be_of_the_mixture(world: World) -> None:
    _, settings = world(VIDEO.format("cap.json"), skip=["cap_typo.json"])
    with pytest.raises(ValueError, match=r"collections\.skip names cap_typo\.json"):
        read_mixture(settings.collections.mixtures, settings.collections.skip)
