"""What becomes of unusual media, under every decoder and setting, and on remote roots."""

import ctypes
import dataclasses
import json
import sys
import types

import av
import fsspec
import numpy as np
import pytest
import torch
from transformers import SiglipConfig, SiglipModel

from assets.annotations.catalogue import PresentVideo
from assets.features.extract import extract
from assets.features.workers.backends import open_decord, open_pyav
from assets.features.workers.frame_encoder import FrameEncoder, load_encoder
from assets.features.workers.nvdec import open_nvdec
from tests.assets.features.conftest import (
    FOLDER,
    TINY,
    after_layer,
    feature_file,
    make_encoder,
    options,
    present_video,
    video_path,
)
from tests.model.media import clips, tricky
from training.formats.feature_file import FeatureFile
from training.formats.feature_store import FeatureStore
from training.formats.storage import Storage

GONE = PresentVideo(
    "panda/gone", 5.0, "0" * 64, "VideoMarathon/videos/panda/gone.mp4", damaged=False
)

OPEN = {"size": 112, "min_frames": 16, "max_frames": 10_000, "max_pixels": 1 << 24}


def frames_of(opener, path, **changes):
    with opener(str(path), **(OPEN | changes)) as video:
        return list(video), video.facts, video.stats


@pytest.mark.slow
def test_every_tricky_clip_gives_its_frames_or_is_quarantined_with_its_reason(run, tmp_path):
    names = {}
    for i, clip in enumerate(tricky.CLIPS):
        path = tmp_path / "VideoMarathon/videos/panda" / f"{i:02}" / clip.name
        path.parent.mkdir(parents=True)
        clip.build(path)
        names[f"panda/{i:02}"] = clip, path
    videos = [
        dataclasses.replace(present_video(tmp_path, path), video=video)
        for video, (_, path) in names.items()
    ]
    report = run(tmp_path, [*videos, GONE])

    found = {line["video"]: line["reason"] for line in report.quarantine}
    assert found.pop("panda/gone") == "missing"
    for video, (clip, _) in names.items():
        if clip.reason:
            assert found.pop(video) == clip.reason, clip.name
        elif video in found:
            assert clip.damaged, clip.name
            assert found.pop(video) == "too_corrupt", clip.name
        else:
            file = FeatureFile(feature_file(tmp_path, video))
            hurt = clip.damaged or clip.truncated or clip.missing or clip.leapt
            assert file.header.damaged == bool(hurt), clip.name
            nearest = np.abs(np.array(clip.times)[None] - file.pts[:, None]).min(axis=1)
            assert nearest.max() < 2e-3, clip.name
            assert file.frames >= min(len(clip.times), 16), clip.name
    assert found == {}
    assert report.counts["quarantined"] + report.counts["done"] == len(names) + 1


@pytest.mark.slow
def test_damaged_videos_are_used_or_skipped_as_the_settings_say(run, tmp_path):
    path = video_path(tmp_path, "panda/hurt")
    whole = clips.encode(path, 400, rate=10, options={"g": "20"})
    data = bytearray(whole.read_bytes())
    place = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[place : place + 40] = bytes(range(40))
    whole.write_bytes(bytes(data))
    videos = [present_video(tmp_path, path, 40.0)]

    used = run(tmp_path, videos)
    assert (used.counts["done"], used.counts["damaged"]) == (1, 1)
    facts = FeatureFile(feature_file(tmp_path, "panda/hurt")).metadata
    assert facts["damaged"] == "1"
    assert int(facts["bad_packets"]) + int(facts["concealed"]) > 0

    skipped = run(tmp_path, videos, damaged="skip")
    assert skipped.counts["quarantined damaged"] == 1
    assert not feature_file(tmp_path, "panda/hurt").exists()

    again = run(tmp_path, videos)
    assert again.version == used.version
    assert not list((tmp_path / "VideoMarathon/features").rglob("*.quarantine.json"))


def test_a_video_longer_than_allowed_is_refused_before_anything_is_decoded(tmp_path):
    clips.encode(tmp_path / "v.mp4", 100, rate=1)
    with pytest.raises(ValueError, match="100 frames, one a second; at most 50"):
        frames_of(open_pyav, tmp_path / "v.mp4", max_frames=50)


def test_decord_gives_the_same_pictures_where_it_is_trusted(tmp_path):
    clips.encode(tmp_path / "v.mp4", 200, rate=10)
    plain, _, _ = frames_of(open_pyav, tmp_path / "v.mp4")
    second, facts, _ = frames_of(open_decord, tmp_path / "v.mp4")
    assert facts["decoder"].startswith("decord ")
    assert [(k, seconds) for k, seconds, _ in plain] == [(k, seconds) for k, seconds, _ in second]
    assert all(np.array_equal(a, b) for (_, _, a), (_, _, b) in zip(plain, second, strict=True))


def test_decord_is_not_given_what_it_gets_wrong_and_the_reason_is_recorded(tmp_path):
    clips.encode(tmp_path / "v.ts", 200, rate=10, container="mpegts")
    found, facts, _ = frames_of(open_decord, tmp_path / "v.ts")
    assert len(found) == 20
    assert facts["decoder"].startswith("pyav ")
    assert facts["why"] == "decord is asked for, but: decord is not trusted with h264 in mpegts"


class SoftwareEngine:
    """PyNvVideoCodec's interface over FFmpeg: bare bitstreams in, NV12 surfaces in display order
    out.
    """

    class PacketData:
        bsl_data = bsl = pts = 0
        discardable = False

    class Surface:
        def __init__(self, frame):
            planes = frame.to_ndarray(format="yuv420p")
            self.nv12, self.pts = planes.copy(), frame.pts
            self.nv12[frame.height :] = (
                planes[frame.height :].reshape(2, -1).T.reshape(-1, frame.width)
            )

        def getPTS(self):
            return self.pts

        def __dlpack__(self, **_):
            return torch.from_numpy(self.nv12).__dlpack__()

        def __dlpack_device__(self):
            return torch.from_numpy(self.nv12).__dlpack_device__()

    class Decoder:
        def __init__(self, codec):
            # Without extradata: parameter sets must be in the packets.
            self.codec = av.CodecContext.create(codec, "r")
            self.discarded = set()
            self.fed = self.given = 0

        def Decode(self, data):
            packet = None
            if data.bsl:
                packet = av.Packet(ctypes.string_at(data.bsl_data, data.bsl))
                packet.pts = data.pts
                self.fed += 1
                if data.discardable:
                    self.discarded.add(data.pts)
            frames = [f for f in self.codec.decode(packet) if f.pts not in self.discarded]
            self.given += len(frames)
            return [SoftwareEngine.Surface(frame) for frame in frames]


@pytest.fixture
def engine(monkeypatch):
    module = types.ModuleType("PyNvVideoCodec")
    module.__version__ = "software"
    module.PacketData = SoftwareEngine.PacketData
    module.cudaVideoCodec = types.SimpleNamespace(H264="h264", HEVC="hevc", VP9="vp9")
    module.CreateDecoder = lambda gpuid, codec, cudacontext, cudastream, usedevicememory: (
        SoftwareEngine.Decoder(codec)
    )
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", module)


@pytest.mark.parametrize(
    ("codec", "suffix", "settings"),
    [
        ("libx264", "mp4", {"options": {"bf": "3"}}),
        ("libvpx-vp9", "webm", {"options": {"cpu-used": "8"}}),
    ],
)
def test_nvdec_surfaces_become_the_very_pictures_of_the_cpu(
    engine, tmp_path, codec, suffix, settings
):
    path = tmp_path / f"v.{suffix}"
    colourful = [
        np.roll(np.indices((96, 160)).sum(0)[..., None] * [1, 2, 3] % 256, i, 1) for i in range(160)
    ]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, **settings)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for picture in colourful:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24"))
            )
        container.mux(stream.encode(None))
    plain, _, _ = frames_of(open_pyav, path)
    second, facts, stats = frames_of(open_nvdec, path)
    assert facts["decoder"].startswith("nvdec software")
    assert len(plain) == len(second) == 16
    assert all(np.array_equal(a, b) for (_, _, a), (_, _, b) in zip(plain, second, strict=True))
    assert not any(stats.values())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"codec": "mpeg4"}, "codec mpeg4"),
        ({"pixel_format": "yuv444p"}, "pixel format yuv444p"),
        ({"pixel_format": "yuv444p", "size": (161, 97)}, "pixel format yuv444p"),
    ],
)
def test_what_nvdec_cannot_decode_goes_to_the_cpu_with_the_reason(
    engine, tmp_path, settings, reason
):
    clips.encode(tmp_path / "v.mp4", 40, rate=10, **settings)
    found, facts, _ = frames_of(open_nvdec, tmp_path / "v.mp4")
    assert len(found) == 16
    assert facts["decoder"].startswith("pyav ")
    assert facts["why"] == f"NVDEC does not take it: {reason}"


def test_nvdec_is_given_only_what_wanted_frames_need_and_gives_only_them(
    engine, tmp_path, monkeypatch
):
    made = []
    create = sys.modules["PyNvVideoCodec"].CreateDecoder

    def keep(**options):
        made.append(create(**options))
        return made[-1]

    monkeypatch.setattr(sys.modules["PyNvVideoCodec"], "CreateDecoder", keep)
    clips.encode(tmp_path / "v.mp4", 400, rate=20, options={"bf": "3", "g": "50"})
    found, _, _ = frames_of(open_nvdec, tmp_path / "v.mp4")
    assert made[0].given == len(found) == 20
    assert made[0].fed < 300


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["a frame is lost", "it raises", "it cannot be made"])
def test_what_nvdec_fails_at_is_decoded_by_the_cpu(engine, tmp_path, monkeypatch, trouble):
    module = sys.modules["PyNvVideoCodec"]
    decode = SoftwareEngine.Decoder.Decode

    def troubled(self, data):
        surfaces = decode(self, data)
        if trouble == "it raises" and self.given > 9:
            raise RuntimeError("CUDA_ERROR_UNKNOWN")
        return surfaces[:-1] if trouble == "a frame is lost" and self.given == 12 else surfaces

    def refuse(**_):
        raise RuntimeError("no engine is free")

    monkeypatch.setattr(SoftwareEngine.Decoder, "Decode", troubled)
    if trouble == "it cannot be made":
        monkeypatch.setattr(module, "CreateDecoder", refuse)
    clips.encode(tmp_path / "v.mp4", 200, rate=10)
    plain, _, _ = frames_of(open_pyav, tmp_path / "v.mp4")
    with open_nvdec(str(tmp_path / "v.mp4"), **OPEN) as video:
        found = list(video)
        assert video.gave_up
        assert video.on_gpu < 20
        assert not any(video.stats.values())
    assert [number for number, _, _ in found] == list(range(20))
    for (_, _, expected), (_, _, got) in zip(plain, found, strict=True):
        assert np.array_equal(expected, got)


@pytest.mark.slow
def test_a_remote_root_gives_the_same_files_as_a_local_one(run, encoder, tmp_path):
    clips.encode(video_path(tmp_path, "panda/a"), 200, rate=10)
    videos = [present_video(tmp_path, tmp_path / "VideoMarathon/videos/panda/a.mp4", 20.0)]
    local = run(tmp_path, videos)
    remote = Storage("memory://features-of-a-remote-root", cache=tmp_path / "cache")
    try:
        remote.write_bytes(videos[0].rel, (tmp_path / videos[0].rel).read_bytes())
        report = extract(remote, options(), FOLDER, [*videos, GONE], encoder, print)
        assert report.version == local.version
        assert report.counts["quarantined missing"] == 1
        file = FeatureStore(remote, "VideoMarathon/features/tiny").open("panda/a")
        assert file.path.read_bytes() == feature_file(tmp_path, "panda/a").read_bytes()
        assert not list((tmp_path / "cache").rglob("*.mp4"))  # copies of videos do not pile up
        assert (
            extract(remote, options(), FOLDER, videos, encoder, print).counts["already_done"] == 1
        )
    finally:
        fsspec.filesystem("memory").store.clear()


def test_of_a_full_siglip_checkpoint_the_last_layer_and_the_heads_are_left_out(tmp_path):
    torch.manual_seed(0)
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    config = SiglipConfig(
        text_config={**small, "vocab_size": 50, "max_position_embeddings": 8},
        vision_config={**small, "image_size": 56, "patch_size": 14},
    )
    full = SiglipModel(config).eval()
    full.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    assert len(encoder.layers) == 2
    pictures = torch.randint(0, 256, (3, 56, 56, 3), dtype=torch.uint8)
    with torch.no_grad():
        pixels = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
        expected = after_layer(full, 1, lambda: full.get_image_features(pixels))
        found = FrameEncoder(encoder, pooled_side=4)(pictures).float()
    # There are four by four patches: pooling to as many changes nothing but the rounding.
    assert torch.allclose(found, expected, atol=0.02)


def test_what_is_no_siglip_checkpoint_is_refused_by_name(tmp_path):
    folder = make_encoder(tmp_path / "encoder", seed=1)
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(facts | {"vision_use_head": True, "num_hidden_layers": 9})
    )
    with pytest.raises(ValueError, match="not a SigLIP checkpoint, it lacks"):
        load_encoder(folder)
    assert TINY.vision.num_layers == len(
        load_encoder(make_encoder(tmp_path / "good", seed=1)).layers
    )
