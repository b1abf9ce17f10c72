"""Extraction as a whole, with real videos, real processes and a tiny encoder."""

import io
from fractions import Fraction
from functools import partial

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import SiglipVisionModel

from assets.features.coordinator import Coordinator
from assets.features.workers.frame_encoder import load_encoder
from assets.features.workers.tower import VisionTower
from model.media.resize import resize_frame, resize_image
from tests.assets.features.conftest import (
    TINY,
    after_layer,
    copy_videos,
    feature_file,
    video_path,
    videos_of,
)
from tests.model.media import clips
from training.formats.feature_file import FeatureFile

SIDE, POOLED = 112, 4


@pytest.fixture(scope="module")
def part(tmp_path_factory, run):
    """Videos of several lengths and kinds, and their extraction by two decoders and one encoder."""
    root = tmp_path_factory.mktemp("root")
    clips.encode(video_path(root, "panda/long"), 470, rate=10)
    clips.encode(video_path(root, "panda/short"), 9, rate=10)
    clips.encode(video_path(root, "panda/medium"), 251, rate=Fraction(24000, 1001), size=(96, 160))
    gaps = np.cumsum([0, *([40, 400, 40, 1200] * 15)])
    clips.encode(
        video_path(root, "ego4d/varying"), 60, times=gaps.tolist(), time_base=Fraction(1, 1000)
    )
    clips.encode(
        video_path(root, "ego4d/web", ".webm"),
        200,
        rate=10,
        codec="libvpx-vp9",
        options={"cpu-used": "8"},
    )
    videos = videos_of(root, 20.0)
    return root, videos, run(root, videos)


def all_frames(path) -> tuple[list[np.ndarray], np.ndarray]:
    """Every picture of a clip and its seconds, decoded the plain way."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [
            (float(f.pts * stream.time_base), f.to_ndarray(format="rgb24"))
            for f in container.decode(stream)
        ]
    times = np.array([seconds for seconds, _ in frames])
    return [picture for _, picture in frames], times - times[0]


@torch.no_grad()
def slow_features(encoder, pictures: list[np.ndarray]) -> torch.Tensor:
    """What the features of upright square pictures are, by transformers' own SigLIP, one picture at
    a time.
    """
    model = SiglipVisionModel.from_pretrained(encoder).eval()
    rows = []
    for picture in pictures:
        pixels = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        patches = after_layer(model, TINY.vision.num_layers - 1, partial(model, pixels))
        side = int(patches.shape[1] ** 0.5)
        grid = patches.transpose(1, 2).reshape(1, -1, side, side)
        pooled = F.interpolate(grid, (POOLED, POOLED), mode="bilinear", align_corners=False)
        rows.append(pooled.flatten(2).transpose(1, 2))
    return torch.cat(rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("video", "frames", "duration"),
    [("panda/long", 47, 47.0), ("panda/short", 9, 0.9), ("panda/medium", 16, 251 * 1001 / 24000)],
)
def test_features_equal_a_slow_independent_path(part, encoder, video, frames, duration):
    root, _, _ = part
    file = FeatureFile(feature_file(root, video))
    pictures, times = all_frames(video_path(root, video))
    chosen = np.linspace(0, len(pictures) - 1, frames, dtype=np.int64)
    square = [resize_frame(pictures[i], SIDE) for i in chosen]
    expected = slow_features(encoder, square)

    assert file.frames == frames
    assert file.duration == pytest.approx(duration, abs=1e-6)
    assert np.allclose(file.pts, times[chosen], atol=1e-4)
    found = file.read().float()
    last_place = expected.abs().max() * 2**-8  # of bfloat16, at the largest value
    assert (found - expected).abs().max() < last_place

    pillow = [np.asarray(resize_image(Image.fromarray(pictures[i]), (SIDE, SIDE))) for i in chosen]
    by_pillow = slow_features(encoder, pillow)
    assert ((found - by_pillow).norm() / by_pillow.norm()) < 0.01


@pytest.mark.slow
def test_a_varying_rate_is_sampled_by_time(part):
    root, _, _ = part
    file = FeatureFile(feature_file(root, "ego4d/varying"))
    _, times = all_frames(video_path(root, "ego4d/varying"))
    wanted = np.linspace(0, times[-1], file.frames)
    assert file.frames == int(file.duration)
    nearest = np.abs(times[None] - wanted[:, None]).min(axis=1)
    assert np.allclose(np.abs(file.pts - wanted), nearest, atol=1e-3)


@pytest.mark.slow
def test_the_report_counts_what_happened(part):
    _, _, report = part
    assert report.counts == {
        "videos": 5,
        "done": 5,
        "already_done": 0,
        "quarantined": 0,
        "damaged": 0,
    }
    assert report.frames == report.new_frames == 47 + 9 + 16 + 24 + 20
    assert report.hours == pytest.approx((47 + 0.9 + 251 * 1001 / 24000 + 24 + 20) / 3600, rel=0.02)
    assert {line["outcome"]: line["videos"] for line in report.table} == {
        "done": 5,
        "already done": 0,
    }
    assert report.frames_per_second > 0
    assert 0 < report.facts["encoder_busy"] <= 1
    assert [line["what"] for line in report.throughput][:2] == ["encoder", "decoders"]


@pytest.mark.slow
def test_the_frame_strip_is_a_picture_of_frames_as_the_encoder_saw_them(part):
    _, _, report = part
    strip = Image.open(io.BytesIO(report.frame_strip)).convert("RGB")
    assert strip.size == (8 * 72, 3 * (72 + 12))  # a line of text above each video's row
    assert len(report.frame_strip) < 100_000
    assert len(strip.getcolors(1 << 20) or []) > 20


@pytest.mark.slow
def test_the_header_says_where_features_come_from(part):
    root, videos, _ = part
    for video in videos:
        facts = FeatureFile(feature_file(root, video.video)).metadata
        assert facts["source_sha256"] == video.sha256
        assert facts["video"] == video.video
        assert facts["decoder"].startswith("pyav ")
        assert facts["why"]
        assert facts["damaged"] == "0"
        assert len(facts["encoder"]) == len(facts["config"]) == 64
    assert FeatureFile(feature_file(root, "ego4d/web")).metadata["codec"] == "vp9"


@pytest.mark.slow
def test_running_again_does_nothing(part, run, monkeypatch):
    root, videos, report = part
    before = {video.video: feature_file(root, video.video).stat().st_mtime_ns for video in videos}

    def never(*_):
        raise AssertionError("processes were started for finished work")

    monkeypatch.setattr(Coordinator, "run", never)
    again = run(root, videos)
    assert again.counts["already_done"] == 5
    assert again.version == report.version
    assert (again.hours, again.frames, again.bytes) == (report.hours, report.frames, report.bytes)
    assert before == {
        video.video: feature_file(root, video.video).stat().st_mtime_ns for video in videos
    }


@pytest.mark.slow
def test_bytes_depend_neither_on_decoders_nor_on_encoders_nor_on_the_batch(part, run, tmp_path):
    root, videos, report = part
    other = copy_videos(root, tmp_path)
    again = run(other, videos[::-1], decode_workers=3, batch_size=7, devices=("cpu", "cpu"))
    for video in videos:
        assert (
            feature_file(root, video.video).read_bytes()
            == feature_file(other, video.video).read_bytes()
        ), video
    assert again.version == report.version
    assert again.facts["batches"] > 2


@pytest.mark.slow
def test_only_what_changed_is_made_again(part, run, encoder, tmp_path):
    root, _, report = part
    other = copy_videos(root, tmp_path)
    (other / "VideoMarathon/features").mkdir()
    for path in (root / "VideoMarathon/features").rglob("*.safetensors"):
        copy = other / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    clips.encode(video_path(other, "panda/short"), 12, rate=10)
    changed = run(other, videos_of(other, 20.0))
    assert (changed.counts["done"], changed.counts["already_done"]) == (1, 4)
    assert FeatureFile(feature_file(other, "panda/short")).frames == 12
    assert changed.version != report.version


def test_a_row_is_the_same_whatever_shares_its_batch(encoder):
    tower = VisionTower(load_encoder(encoder), POOLED, "cpu", 16)
    assert not tower.alone
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (16, SIDE, SIDE, 3), dtype=np.uint8)
    seen = []
    for order in (np.arange(16), rng.permutation(16), np.arange(16)[::-1]):
        batch = tower.free.get()
        for place, i in enumerate(order):
            tower.load(batch, place, pictures[i])
        tower.launch(batch, 16)
        rows = np.empty_like(tower.result(batch))
        rows[order] = tower.result(batch)
        seen.append(rows)
    assert np.array_equal(seen[0], seen[1])
    assert np.array_equal(seen[0], seen[2])
