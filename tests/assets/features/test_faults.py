"""What a broken file, a broken decoder or a killed run costs: one video, no work that was done, no
leftovers.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from assets.deployment.settings import Limits
from assets.features import decoder_pool
from assets.features import extract as extraction
from tests.assets.features.conftest import (
    FOLDER,
    copy_videos,
    feature_file,
    make_encoder,
    video_path,
    videos_of,
)
from tests.model.media import clips
from training.formats.feature_file import FeatureFile

FAULTY = "tests.assets.features.faults:open_faulty"
PROJECT = Path(__file__).parents[3]


def leftovers(root):
    return list((root / "VideoMarathon/features").rglob(".tmp-*"))


def record(root, video):
    return json.loads((root / f"VideoMarathon/features/tiny/{video}.quarantine.json").read_text())


@pytest.fixture(scope="module")
def faulty(tmp_path_factory, run):
    """A part in which every second video makes its decoder misbehave."""
    root = tmp_path_factory.mktemp("root")
    for name in (
        "hang",
        "segfault",
        "hog",
        "exit",
        "spin",
        "late",
        "good-a",
        "good-b",
        "good-c",
        "good-d",
    ):
        clips.encode(video_path(root, f"panda/{name}"), 200 + len(name), rate=10)
    limits = Limits(stall_s=4, deadline_s=8, memory_bytes=1 << 30)
    return (
        root,
        run(root, videos_of(root), backends=[FAULTY] * 3, limits=limits, decode_workers=3),
        limits,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("video", "reason", "detail"),
    [
        ("hang", "timeout", "no picture for 4 s"),
        ("spin", "timeout", "no picture for 4 s"),
        ("late", "timeout", "not done after 8 s"),
        ("segfault", "crash", "died of SIGSEGV"),
        ("exit", "crash", "ended with code 7"),
        ("hog", "oom", "more than 1.0 GiB"),
    ],
)
def test_a_decoder_that_misbehaves_costs_one_video(faulty, video, reason, detail):
    root, report, _ = faulty
    found = record(root, f"panda/{video}")
    assert found["reason"] == reason
    assert detail in found["detail"]
    assert found["attempts"] == 1
    assert not feature_file(root, f"panda/{video}").exists()
    assert f"panda/{video}" in [line["video"] for line in report.quarantine]


@pytest.mark.slow
def test_all_other_videos_are_made(faulty):
    root, report, _ = faulty
    assert report.counts == {
        "videos": 10,
        "done": 4,
        "already_done": 0,
        "quarantined": 6,
        "damaged": 0,
        "quarantined crash": 2,
        "quarantined oom": 1,
        "quarantined timeout": 3,
    }
    for name in "abcd":
        assert FeatureFile(feature_file(root, f"panda/good-{name}")).frames == 20
    assert leftovers(root) == []


@pytest.mark.slow
def test_what_a_crashing_decoder_said_is_kept(faulty):
    root, _, _ = faulty
    said = record(root, "panda/segfault")["stderr"]
    assert said.startswith("about to crash")
    assert "Fatal Python error: Segmentation fault" in said
    assert "string_at" in said


@pytest.mark.slow
def test_passing_failures_are_tried_again_but_not_for_ever(faulty, run, tmp_path):
    root, _, limits = faulty
    other = copy_videos(root, tmp_path)
    videos = [video for video in videos_of(other) if video.video in ("panda/exit", "panda/good-a")]
    for attempt in (1, 2, 3):
        report = run(other, videos, backends=[FAULTY], limits=limits)
        assert record(other, "panda/exit")["attempts"] == attempt
        assert report.counts["already_done"] == (attempt > 1)
    assert run(other, videos, backends=[FAULTY], limits=limits).counts["quarantined crash"] == 1
    assert record(other, "panda/exit")["attempts"] == 3
    healed = run(other, videos, limits=Limits(stall_s=3))  # other limits: another chance
    assert healed.counts["done"] == 1
    assert not (other / "VideoMarathon/features/tiny/panda/exit.quarantine.json").exists()


@pytest.mark.slow
def test_a_decoder_on_the_gpu_that_dies_is_replaced_and_its_video_decoded_by_the_cpu(
    run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(decoder_pool, "NVDEC", FAULTY)
    for name in ("exit", "segfault", "hang", "good"):
        clips.encode(video_path(tmp_path, f"panda/{name}"), 200, rate=10)
    report = run(tmp_path, videos_of(tmp_path), backends=[FAULTY] * 3, limits=Limits(stall_s=4))
    assert report.counts["done"] == 4
    assert report.counts["quarantined"] == 0
    for name in ("exit", "segfault", "hang", "good"):
        assert FeatureFile(feature_file(tmp_path, f"panda/{name}")).frames == 20
    assert leftovers(tmp_path) == []
    log = capsys.readouterr().out
    assert log.count("died (") == 3
    assert "panda/exit: the decoder on the GPU died (crash: the decoding process ended" in log


CHILD = """
import sys
from pathlib import Path
from tests.assets.features.conftest import FOLDER, options, videos_of
from assets.features.extract import extract
from training.formats.storage import Storage

root, encoder = Path(sys.argv[1]), Path(sys.argv[2])
backends = ["tests.assets.features.faults:open_slow"] * 2
extract(Storage(str(root)), options(), FOLDER, videos_of(root), encoder, print, backends)
"""


def descendants(pid: int) -> set[int]:
    """All processes below one, by /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = set(), [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            found.add(child)
            todo.append(child)
    return found


@pytest.mark.slow
def test_after_kill_9_the_rest_is_made_and_the_bytes_are_the_same(
    run, encoder, tmp_path, monkeypatch
):
    root = tmp_path / "killed"
    for i in range(6):
        clips.encode(video_path(root, f"panda/v{i}"), 170 + 10 * i, rate=10)
    undisturbed = copy_videos(root, tmp_path / "undisturbed")
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(root), str(encoder)], cwd=PROJECT)
    try:
        deadline = time.monotonic() + 120
        while not list(root.rglob("[!.]*.safetensors")) or not leftovers(root):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        family = descendants(process.pid)
        assert len(family) >= 4  # fork server, two decoders, encoder
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) for pid in family):
        assert time.monotonic() < deadline, "children outlived the run"
        time.sleep(0.05)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("[!.]*.safetensors")}
    assert 1 <= len(before) < 6
    assert leftovers(root)

    monkeypatch.setattr(extraction, "STALE_S", 0.0)
    again = run(root, videos_of(root))
    whole = run(undisturbed, videos_of(undisturbed))

    assert again.counts["already_done"] == len(before)
    assert again.counts["done"] == 6 - len(before)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert leftovers(root) == []
    assert again.version == whole.version
    for path in undisturbed.rglob("*.safetensors"):
        assert path.read_bytes() == (root / path.relative_to(undisturbed)).read_bytes()


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


@pytest.mark.slow
def test_an_encoder_that_dies_fails_the_run_with_its_last_words_and_leaves_nothing(run, tmp_path):
    clips.encode(video_path(tmp_path, "panda/a"), 200, rate=10)
    broken = make_encoder(tmp_path / "encoder", seed=3)
    (broken / "config.json").write_text('{"vision_use_head": false}')
    with pytest.raises(
        RuntimeError, match=r"(?s)the encoder on cpu ended.*is this a SigLIP vision encoder"
    ):
        run(tmp_path, videos_of(tmp_path), encoder=broken)
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_decoders_see_neither_secrets_nor_the_network(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_SECRET", "hush")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        clips.encode(video_path(tmp_path, f"panda/v-{port}"), 20, rate=10)
        report = run(
            tmp_path, videos_of(tmp_path), backends=["tests.assets.features.faults:open_nosy"]
        )
        isolated = "no network" in next(
            line["value"] for line in report.throughput if line["what"] == "decoders"
        )
    if isolated:
        assert report.counts["done"] == 1
    # A system that grants no network namespaces: said so, and secrets are hidden all the same.
    else:
        assert "['network']" in record(tmp_path, f"panda/v-{port}")["stderr"]


def test_a_folder_without_an_encoder_says_what_to_do(run, tmp_path):
    with pytest.raises(ValueError, match=r"no vision encoder .*materialize vision_encoder"):
        run(tmp_path, [], encoder=tmp_path)


def test_temporary_files_of_living_writers_are_left_alone(tmp_path, monkeypatch):
    from training.formats.feature_file import FeatureWriter
    from training.formats.storage import Storage

    monkeypatch.setattr(extraction, "STALE_S", 0.0)
    folder = tmp_path / FOLDER / "panda"
    folder.mkdir(parents=True)
    living = FeatureWriter(folder / ".tmp-1-a.safetensors", 1, 1, 1)
    (folder / ".tmp-2-b.safetensors").write_bytes(b"x")
    os.utime(folder / ".tmp-2-b.safetensors", (1, 1))
    extraction.remove_stale_files(Storage(str(tmp_path)), [f"{FOLDER}/panda", f"{FOLDER}/ego4d"])
    assert [path.name for path in folder.iterdir()] == [".tmp-1-a.safetensors"]
    living.close()
