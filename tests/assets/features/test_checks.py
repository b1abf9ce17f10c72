"""Whether each video of a part has the features that training will ask for."""

import dataclasses
from pathlib import Path

import pytest
import torch

from assets.annotations.catalogue import PresentVideo
from assets.deployment.settings import Settings
from assets.features.checks import complete
from assets.features.extract import hash_encoder
from assets.features.options import ExtractionOptions
from assets.features.quarantine import Quarantined, forget_records, read_record, write_record
from model.media.reading import reading
from tests.assets.features.conftest import FOLDER, TINY, feature_file, present_video, video_path
from tests.model.media import tricky
from training.formats import layout
from training.formats.feature_file import FeatureFile, write_features
from training.formats.storage import Storage

TOKENS, WIDTH = TINY.memory.pooled_side**2, TINY.vision.hidden_size


@pytest.fixture
def settings(tmp_path):
    return Settings.model_validate(
        {
            "root": str(tmp_path),
            "annotations": {"paths": ["none.jsonl"]},
            "sources": {},
            "shards": {},
            "variants": ["tiny"],
        }
    )


@pytest.fixture
def storage(settings):
    return Storage(settings.root)


def video(name: str, seconds: float = 40.0, packets: int | None = 400) -> PresentVideo:
    return PresentVideo(
        f"panda/{name}", seconds, f"sha of {name}", f"videos/{name}.mp4", False, packets
    )


@pytest.fixture
def make(settings, storage, encoder):
    """Write a feature file as an extraction of this video would, or with something different about
    it.
    """

    def write(
        of: PresentVideo, frames: int = 40, features: torch.Tensor | None = None, **facts: str
    ) -> Path:
        path = Path(storage.path(layout.feature_file(FOLDER, of.video)))
        path.parent.mkdir(parents=True, exist_ok=True)
        config = ExtractionOptions.of(settings.features, "tiny").config_hash()
        metadata = {
            "duration": str(of.duration),
            "reading": reading(),
            "pictures": str(of.packets),
            "source_sha256": of.sha256,
            "encoder": hash_encoder(encoder),
        }
        values = torch.randn(frames, TOKENS, WIDTH) if features is None else features
        write_features(
            path, values, torch.arange(frames).float(), {**metadata, "config": config, **facts}
        )
        return path

    return write


def found(storage, settings, encoder, *videos):
    """The verdict that can stop a training."""
    return complete(storage, settings, "tiny", videos, encoder)[0]


def test_a_part_whose_videos_all_have_features_passes(storage, settings, encoder, make):
    make(video("a"))
    make(video("b"))
    verdict = found(storage, settings, encoder, video("a"), video("b"))
    assert verdict.passed, verdict.message
    assert verdict.message == "2 of 2 videos have sound features"


def test_a_video_without_features_stops_training(storage, settings, encoder, make):
    make(video("a"))
    verdict = found(storage, settings, encoder, video("a"), video("b"))
    assert verdict.blocks
    assert (
        "panda/b: VideoMarathon/features/tiny/panda/b.safetensors is not there" in verdict.message
    )


def test_features_of_another_encoder_or_another_file_stop_training(
    storage, settings, encoder, make
):
    make(video("a"), encoder="of stage 2 before it was trained again")
    make(video("b"), source_sha256="of the file before it was fetched again")
    verdict = found(storage, settings, encoder, video("a"), video("b"))
    assert verdict.blocks
    assert verdict.message.startswith("2 of 2 videos lack sound features")


def test_frames_that_do_not_fit_the_duration_stop_training(storage, settings, encoder, make):
    make(video("a"), frames=20)
    verdict = found(storage, settings, encoder, video("a"))
    assert verdict.blocks
    assert "20 frames, but 400 pictures in 40.0 s make 40" in verdict.message


def test_a_video_with_fewer_pictures_than_seconds_has_a_frame_for_each(
    storage, settings, encoder, make
):
    slides = video("slides", seconds=600.0, packets=12)
    make(slides, frames=12)
    assert found(storage, settings, encoder, slides).passed


@pytest.mark.slow
def test_cut_joined_and_still_files_pass_whatever_an_earlier_release_recorded(
    run, storage, settings, encoder, tmp_path
):
    """Their raw clocks say 3 s, 1,201 s or 40 s; what counts is what is shown."""
    names = [
        "edit_list.mp4",
        "edit_list_ends_early.mp4",
        "joined_clock_starts_over.ts",
        "joined_clock_leaps_ahead.ts",
        "still_of_15_minutes.mp4",
        "slow_0.4_fps.mp4",
        "vfr_vp9.webm",
        "one_picture_without_a_time_stamp.ts",
        "sound_is_longer.mkv",
    ]
    videos, expected = [], {}
    for number, clip in enumerate(clip for clip in tricky.CLIPS if clip.name in names):
        path = video_path(tmp_path, f"panda/{number}", Path(clip.name).suffix)
        clip.build(path)
        videos.append(dataclasses.replace(present_video(tmp_path, path, 1201.0), packets=5))
        seconds = len(clip.times) / clip.rate if clip.rate else clip.times[-1]
        expected[f"panda/{number}"] = min(len(clip.times), max(int(seconds), 16))
    assert len(expected) == len(names)
    run(tmp_path, videos)
    verdict = complete(storage, settings, "tiny", videos, encoder)[0]
    assert verdict.passed, verdict.message
    assert verdict.facts["of another length than the catalogue says"] == len(names)
    frames = {v.video: FeatureFile(feature_file(tmp_path, v.video)).frames for v in videos}
    assert frames == expected


def test_features_of_another_reading_are_named_with_both_readings(storage, settings, encoder, make):
    make(video("a"), reading="rules 1")
    verdict = found(storage, settings, encoder, video("a"))
    assert verdict.blocks
    assert f"read in another way (rules 1; now {reading()})" in verdict.message


def test_numbers_that_are_not_finite_or_all_alike_stop_training(storage, settings, encoder, make):
    values = torch.randn(40, TOKENS, WIDTH)
    values[0, 0, 0] = float("inf")
    make(video("a"), features=values)
    make(video("b"), features=torch.zeros(40, TOKENS, WIDTH))
    verdict = found(storage, settings, encoder, video("a"), video("b"))
    assert "panda/a: frame 0 holds numbers that are not finite" in verdict.message
    assert "panda/b: all numbers of frame 0 are the same" in verdict.message


def quarantine(storage, name: str) -> None:
    write_record(storage, FOLDER, Quarantined(f"panda/{name}", "corrupt", "no picture", 1, "hash"))


def test_a_few_quarantined_videos_are_told_and_stop_nothing(storage, settings, encoder, make):
    videos = [video(f"v{number}") for number in range(20)]
    for one in videos[1:]:
        make(one)
    quarantine(storage, "v0")
    whole, none_quarantined = complete(storage, settings, "tiny", videos, encoder)
    assert (whole.passed, whole.message) == (True, "19 of 20 videos have sound features")
    assert (none_quarantined.passed, none_quarantined.blocks) == (False, False)
    assert (
        none_quarantined.message
        == "1 of 20 videos are quarantined: 1 corrupt. Training leaves them out"
    )


def test_more_quarantined_videos_than_the_settings_allow_stop_training(
    storage, settings, encoder, make
):
    make(video("a"))
    quarantine(storage, "b")
    verdict = found(storage, settings, encoder, video("a"), video("b"))
    assert verdict.blocks
    assert "shards.max_drop_share allows 0.1" in verdict.message


def test_a_forgotten_record_lets_the_next_run_try_again(storage):
    quarantine(storage, "b")
    forget_records(storage, FOLDER, ["panda/b", "panda/never-quarantined"])
    assert read_record(storage, FOLDER, "panda/b") is None
