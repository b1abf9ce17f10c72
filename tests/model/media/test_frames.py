"""Which frames are chosen, against the published rules, and that these are the frames that come out
of real files.
"""

import hashlib
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.media.reader import decode, read
from model.media.sampling import (
    feature_frame_indices,
    linspace_indices,
    stored_frame_indices,
    training_frame_indices,
)
from model.media.timeline import Timeline, read_timeline
from tests.model.media import clips

GOLDEN = Path(__file__).parents[2] / "golden"
RECORD = json.loads((GOLDEN / "frame_sampling" / "frame_sampling.json").read_text())


def sha1(indices):
    return hashlib.sha1(",".join(map(str, indices.tolist())).encode()).hexdigest()


def numbers(frames):
    return [clips.number(frame) for frame in frames]


# --- The rules ---


def embedding_rows():
    # Left out: metadata that claims frames which do not exist (headers are not believed here), and
    # webm files of less than a frame a second, where the published system repeats frames and the
    # specification does not.
    for row in RECORD["embedding"]:
        if "decodable_frames" not in row and row["n"] <= row["total_frames"]:
            yield pytest.param(
                row,
                id="{total_frames}@{average_rate}-{container}".format(**row).replace("/", ":"),
            )


@pytest.mark.parametrize("row", embedding_rows())
def test_a_feature_file_holds_the_published_frames(row):
    line = Timeline.constant(row["total_frames"], Fraction(row["average_rate"]))
    assert line.duration == pytest.approx(row["duration"], abs=0.006)
    assert sha1(feature_frame_indices(line)) == row["sha1"]


@pytest.mark.parametrize(
    "row",
    [row for row in RECORD["streaming"] if row["frames_upbound"] == -1],
    ids=lambda row: f"{row['total_frames']}@{row['avg_fps']}",
)
def test_training_on_a_short_video_takes_the_published_frames(row):
    line = Timeline.constant(row["total_frames"], row["avg_fps"])
    chosen = training_frame_indices(line, min_frames=row["min_frames"])
    if (
        "error" in row
        # Less than half a frame a second: the published rule divides by zero, so every frame is
        # taken.
    ):
        assert chosen.tolist() == list(range(row["total_frames"]))
    else:
        assert sha1(chosen) == row["sha1"]
        assert (
            f"lasts for {line.duration:.2f} seconds, and {len(chosen)} frames"
            in row["time_instruction"]
        )


@pytest.mark.parametrize(
    "row", RECORD["feature"], ids=lambda row: f"{row['feature_frames']}-{row['duration']}"
)
def test_a_sample_shows_the_published_frames_of_a_feature_file(row):
    chosen = stored_frame_indices(row["feature_frames"], row["duration"])
    if row["n"] == 0:  # shorter than a second: the published system gives the model an empty video
        assert chosen.tolist() == [0]
    else:
        assert sha1(chosen) == row["sha1"]


@pytest.mark.parametrize("table", ["temporal_forgetting", "upsample_to_128"])
def test_truncated_linspace_is_numpy_s(table):
    for row in RECORD[table]["rows"]:
        assert sha1(linspace_indices(row["T"], row.get("n", 128))) == row["sha1"]


@given(
    frames=st.integers(1, 5000),
    fps=st.fractions(min_value=Fraction(1, 100), max_value=240, max_denominator=1001),
    min_frames=st.integers(1, 300),
)
def test_every_rule_gives_ascending_indices_that_exist(frames, fps, min_frames):
    line = Timeline.constant(frames, fps)
    for rule in (feature_frame_indices, training_frame_indices):
        chosen = rule(line, min_frames=min_frames)
        assert 1 <= len(chosen) <= frames
        assert len(chosen) >= min(frames, min_frames)
        assert chosen[0] == 0
        assert chosen[-1] < frames
        assert (np.diff(chosen) > 0).all()


@given(st.lists(st.integers(1, 4000), min_size=2, max_size=200))
def test_at_a_varying_rate_the_nearest_frames_to_even_times_are_taken(gaps):
    ticks = np.cumsum([0, *gaps])
    line = Timeline("", ticks / 1000, ticks, None, (int(ticks[-1]) + 1) / 1000, 0, "", "", 0, 0)
    chosen = feature_frame_indices(line, min_frames=16)
    times = np.linspace(0, ticks[-1] / 1000, len(chosen))
    distance = np.abs(line.pts[None] - times[:, None])
    np.testing.assert_allclose(distance[np.arange(len(chosen)), chosen], distance.min(1), atol=1e-9)


# --- Real files ---


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("h264.mp4", {"options": {"bf": "3", "g": "250", "preset": "veryfast"}}),
        ("vp9.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
    ],
)
def test_the_chosen_frames_are_the_ones_that_come_out(name, settings, tmp_path):
    path = clips.encode(tmp_path / name, 300, rate=30, **settings)
    line = read_timeline(path)
    assert line.frames == 300
    assert line.rate == 30
    assert line.duration == 10.0
    for chosen in (
        feature_frame_indices(line, min_frames=8),
        training_frame_indices(line, min_frames=100),
    ):
        decoded = read(line, chosen, size=64)
        assert numbers(decoded.frames_THWC) == chosen.tolist()
        np.testing.assert_allclose(decoded.pts_T, chosen / 30, atol=1e-3)
        assert not decoded.report.damaged


@pytest.fixture(scope="module")
def sixty(tmp_path_factory):
    return read_timeline(
        clips.encode(
            tmp_path_factory.mktemp("sixty") / "clip.mp4", 60, options={"bf": "3", "g": "25"}
        )
    )


@given(st.lists(st.integers(0, 59), min_size=1, max_size=80).map(sorted))
@settings(max_examples=40)
def test_any_frames_may_be_asked_for_even_twice(sixty, chosen):
    assert numbers(decode(sixty, chosen, size=16)) == chosen


@pytest.mark.parametrize("chosen", [[], [60], [-1], [3, 2]])
def test_frames_that_are_not_there_are_refused(chosen, sixty):
    with pytest.raises(ValueError, match=r"ascending list within 0 \.\. 59"):
        decode(sixty, chosen, size=48)


def test_reading_a_timeline_needs_no_torch(sixty):
    script = (
        "import sys; from model.media.timeline import read_timeline\n"
        f"read_timeline({sixty.path!r})\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
