"""What becomes of each tricky clip: the right frames at the right times, or a refusal with its
reason.
"""

import pickle
import random
import re
import socket
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from model.media.container import PacketReader, open_video
from model.media.reader import DecodeReport, decode, read
from model.media.refusals import REASONS, MediaError
from model.media.sampling import feature_frame_indices
from model.media.timeline import read_timeline
from tests.model.media import clips, tricky

SIZE = 64
USABLE = [clip for clip in tricky.CLIPS if not clip.reason]
REFUSED = [clip for clip in tricky.CLIPS if clip.reason]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder, done = tmp_path_factory.mktemp("tricky"), {}

    def build(clip):
        if clip.name not in done:
            done[clip.name] = clip.build(folder / clip.name)
        return done[clip.name]

    return build


def by_name(clip):
    return clip.name


@pytest.mark.slow
@pytest.mark.parametrize("clip", USABLE, ids=by_name)
def test_every_frame_is_found_at_its_time_and_looks_as_it_should(clip, built):
    line = read_timeline(built(clip))
    np.testing.assert_allclose(
        line.pts, clip.times, atol=1.1e-3
    )  # a millisecond is the tick of some containers
    assert line.rate == clip.rate
    assert line.truncated == clip.truncated
    assert line.missing_fragments == clip.missing
    assert line.leapt_s == pytest.approx(clip.leapt, abs=0.1)
    if clip.rate is not None:
        assert line.duration == pytest.approx(len(clip.times) / clip.rate)
    decoded = read(line, np.arange(line.frames), size=SIZE)
    wrong = [
        clips.number(frame) != number
        for frame, number in zip(decoded.frames_THWC, clip.numbers, strict=True)
    ]
    assert sum(wrong) <= clip.apart
    assert decoded.report.damaged == clip.damaged


def slowly(path, stream):
    """Every picture of a file by the plainest way there is: decode it all, turn it, let Pillow
    resize it.
    """
    pictures = []
    titles = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    with av.open(str(path), **titles) as container:
        for frame in container.decode(video=stream):
            picture = Image.fromarray(
                np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            )
            pictures.append(np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))
    return pictures


@pytest.mark.slow
@pytest.mark.parametrize("clip", [clip for clip in USABLE if not clip.damaged], ids=by_name)
@pytest.mark.parametrize("count", [1, 7])
def test_planned_decoding_gives_the_pictures_of_a_slow_independent_path(clip, count, built):
    everything, last = slowly(built(clip), clip.stream), len(clip.times) - 1
    assert len(everything) == last + 1
    times = [clip.times[-1] * step / max(1, count - 1) for step in range(min(count, last + 1))]
    if clip.rate is not None:
        expected = [int(last * (step / max(1, count - 1))) for step in range(len(times))]
    else:
        expected = [
            min(range(last + 1), key=lambda index: abs(clip.times[index] - second))
            for second in times
        ]

    line = read_timeline(built(clip))
    chosen = feature_frame_indices(line, min_frames=count)
    if line.duration < count + 1:
        assert chosen.tolist() == expected
    for index, picture in zip(chosen, decode(line, chosen, size=SIZE), strict=True):
        assert np.abs(picture.astype(int) - everything[index]).max() <= 2


@pytest.mark.parametrize("clip", REFUSED, ids=by_name)
def test_what_cannot_be_used_is_refused_with_its_reason(clip, built):
    with pytest.raises(MediaError) as caught:
        read_timeline(built(clip))
    assert caught.value.reason == clip.reason
    assert clip.name in str(caught.value)


def test_every_tricky_kind_that_the_suite_promises_is_there():
    assert len({clip.name for clip in tricky.CLIPS}) == len(tricky.CLIPS) >= 45
    assert {clip.reason for clip in REFUSED} <= REASONS.keys()


# --- Trust ---


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}/segment.ts\n#EXT-X-ENDLIST\n",
        "\ufeff\n #EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}/other.m3u8\n",
        "ffconcat version 1.0\nfile '{url}/video.mp4'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        '<?xml version="1.0"?><MPD><BaseURL>{url}</BaseURL></MPD>',
    ],
    ids=["hls", "hls with a byte order mark", "concat", "sdp", "dash"],
)
def test_a_playlist_in_disguise_fetches_nothing(text, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        path = tmp_path / "holiday.mp4"
        path.write_text(text.format(url=f"http://127.0.0.1:{server.getsockname()[1]}"))
        with pytest.raises(MediaError) as caught:
            read_timeline(path)
        assert caught.value.reason == "hostile_format"
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "name", ["http:127.0.0.1", "concat:a.mp4|b.mp4", "-i", "100%d.mp4", "pipe:0", "häß lich.mp4"]
)
def test_a_strange_file_name_is_only_a_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clips.encode(tmp_path / "plain.mp4", 10).rename(tmp_path / name)
    assert read_timeline(name).frames == 10


@pytest.mark.parametrize(
    "name", ["http://127.0.0.1:1/video.mp4", "concat:a.mp4|b.mp4", "nowhere.mp4"]
)
def test_a_url_is_not_followed_and_a_missing_file_is_the_caller_s_mistake(name):
    with pytest.raises(FileNotFoundError):
        read_timeline(name)


def test_a_refusal_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(MediaError("too_large", "a.mp4", "8192x8192")))
    assert (error.reason, error.path, error.detail) == ("too_large", "a.mp4", "8192x8192")


def test_a_timeline_survives_the_way_between_processes(built):
    line = read_timeline(built(USABLE[0]))
    again = pickle.loads(pickle.dumps(line))
    assert [clips.number(frame) for frame in decode(again, [3, 50], size=SIZE)] == [3, 50]


def test_the_limit_on_pixels_can_be_lowered(tmp_path):
    path = clips.encode(tmp_path / "clip.mp4", 5, size=(160, 96))
    assert read_timeline(path, max_pixels=160 * 96).frames == 5
    with pytest.raises(MediaError, match="160x96, at most 15,359"):
        read_timeline(path, max_pixels=160 * 96 - 1)


def test_a_picture_that_grows_past_the_limit_half_way_is_refused_when_it_comes(built):
    path = built(
        next(clip for clip in USABLE if clip.name == "changes_size_and_clock.ts")
    )  # 160x96, then 240x176
    line = read_timeline(path, max_pixels=20_000)
    assert len(list(decode(line, range(45), size=SIZE, max_pixels=20_000))) == 45
    with pytest.raises(MediaError, match=r"too_large \(a frame of 240x176"):
        list(decode(line, range(90), size=SIZE, max_pixels=20_000))


@pytest.mark.slow
def test_a_bomb_is_refused_before_it_unfolds(tmp_path):
    path = tricky.bomb_vp9(tmp_path / "bomb.webm")
    with pytest.raises(MediaError, match="too_large"):
        read_timeline(path)
    script = (
        "import sys\n"
        "from model.media.refusals import MediaError\n"
        "from model.media.timeline import read_timeline\n"
        "from tests.memory import peak_mib\n"
        "before = peak_mib()\n"
        "try: read_timeline(sys.argv[1])\n"
        "except MediaError: print(round(peak_mib() - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 60  # MB; one picture of it is 100


def test_streams_that_appear_late_do_not_end_the_reading_with_an_error(built):
    class Late:
        """A container in which PyAV finds, at the end, more streams than it knew of."""

        def __init__(self, container):
            self.container = container

        def demux(self, stream):
            yield from self.container.demux(stream)
            raise IndexError("list index out of range")

    with open_video(str(built(USABLE[0]))) as (container, stream):
        packets = PacketReader(Late(container), stream)
        assert len(list(packets)) == 90
        assert not packets.broken


# --- Damage ---


def test_pictures_that_never_come_out_are_filled_with_the_last_good_one_and_counted(built):
    line = read_timeline(built(next(clip for clip in USABLE if clip.name == "zeroed_stretch.mp4")))
    report = DecodeReport()
    shown = [
        clips.number(frame) for frame in decode(line, range(line.frames), size=SIZE, report=report)
    ]
    assert len(shown) == line.frames
    missing = [index for index in range(1, len(shown)) if shown[index] == shown[index - 1]]
    assert report.filled >= len(missing) > 0
    assert report.bad_packets > 0
    assert report.too_corrupt(line.frames)


def test_little_damage_is_reported_but_does_not_make_a_video_useless(built):
    line = read_timeline(built(next(clip for clip in USABLE if clip.name == "flipped_bits.mp4")))
    report = read(line, np.arange(line.frames), size=SIZE).report
    assert report.damaged
    assert not report.too_corrupt(line.frames)


def test_damage_of_hevc_is_told_by_the_checksums_of_its_pictures(tmp_path):
    """Without them FFmpeg mends half of it in silence."""
    path = clips.encode(
        tmp_path / "a.mp4", 60, codec="libx265", options={"x265-params": "hash=1:log-level=none"}
    )
    line, everything = read_timeline(path), np.arange(60)
    whole = read(line, everything, size=SIZE)
    assert not whole.report.damaged
    with av.open(str(path)) as container:
        packets = [
            (packet.pos, packet.size) for packet in container.demux(video=0) if packet.size > 30
        ]
    data, dice, broken, told = path.read_bytes(), random.Random(0), 0, 0
    for at, size in dice.sample(packets, 20):
        hurt = bytearray(data)
        for place in dice.sample(range(at + 8, at + size), 5):
            hurt[place] ^= 1 << dice.randrange(8)
        path.write_bytes(hurt)
        seen = read(line, everything, size=SIZE)
        if (seen.frames_THWC != whole.frames_THWC).any():
            broken, told = broken + 1, told + seen.report.damaged
    assert broken > 5
    assert (
        told >= 0.8 * broken
    )  # a picture that is lost together with its checksum still goes by in silence


def test_a_file_that_vanishes_between_the_passes_is_noticed(tmp_path):
    line = read_timeline(clips.encode(tmp_path / "clip.mp4", 10))
    (tmp_path / "clip.mp4").unlink()
    with pytest.raises(FileNotFoundError):
        next(decode(line, [0], size=SIZE))


@pytest.mark.slow
def test_mutated_files_give_frames_or_a_refusal_and_never_hang_or_crash(built, tmp_path):
    sources = [
        clip
        for clip in USABLE
        if clip.name.startswith(("h264", "vp9", "hevc", "av1", "mpeg", "vfr", "edit"))
    ]
    dice = random.Random("fuzz")
    for round_ in range(60):
        data = bytearray(built(dice.choice(sources)).read_bytes())
        for _ in range(dice.choice([1, 10, 100])):
            data[dice.randrange(len(data))] = dice.randrange(256)
        if dice.random() < 0.3:
            del data[dice.randrange(len(data)) :]
        (tmp_path / f"{round_}.mp4").write_bytes(data or b"x")
    script = (
        "import sys, numpy as np\n"
        "from model.media.reader import read\n"
        "from model.media.sampling import feature_frame_indices\n"
        "from model.media.timeline import read_timeline\n"
        "from model.media.refusals import MediaError\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        line = read_timeline(path)\n"
        "        chosen = feature_frame_indices(line, min_frames=16)\n"
        "        assert len(read(line, chosen, size=32).frames_THWC) == len(chosen)\n"
        "        print('frames')\n"
        "    except MediaError as error:\n"
        "        print(error.reason)\n"
    )
    files = [str(path) for path in sorted(tmp_path.glob("*.mp4"))]
    done = subprocess.run(
        [sys.executable, "-c", script, *files], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = done.stdout.split()
    assert len(outcomes) == 60
    assert outcomes.count("frames") > 10
    assert set(outcomes) <= {"frames", *REASONS}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_the_video(tmp_path):
    peaks = []
    for frames in (200, 2000):
        path = clips.encode(
            tmp_path / f"{frames}.mp4", frames, size=(320, 192), options=tricky.X264
        )
        script = (
            "import sys\n"
            "from model.media.reader import decode\n"
            "from model.media.timeline import read_timeline\n"
            "from tests.memory import peak_mib\n"
            "line = read_timeline(sys.argv[1])\n"
            "print(sum(1 for _ in decode(line, range(line.frames), size=384)))\n"
            "print(round(peak_mib()))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
        )
        count, peak = map(int, done.stdout.split())
        assert count == frames
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 20  # MB; the frames themselves are 0.44 MB each


@pytest.mark.slow
def test_planning_spares_the_decoder_most_of_its_work(tmp_path):
    path = clips.encode(
        tmp_path / "long.mp4", 1500, size=(640, 360), options={"bf": "3", "g": "250", "crf": "30"}
    )
    line = read_timeline(path)
    chosen = feature_frame_indices(line, min_frames=1)

    def seconds(skippable):
        import dataclasses

        start = time.process_time()
        pictures = list(decode(dataclasses.replace(line, skippable=skippable), chosen, size=SIZE))
        assert [clips.number(picture) for picture in pictures] == chosen.tolist()
        return time.process_time() - start

    seconds(True)
    assert seconds(True) < 0.9 * seconds(False)


def test_frames_of_a_rate_that_varies_are_spread_over_time_not_over_frames(built):
    clip = next(clip for clip in USABLE if clip.name == "vfr_vp9.webm")
    line = read_timeline(built(clip))
    chosen = feature_frame_indices(line, min_frames=1)
    assert len(chosen) == len(
        clip.times
    )  # fewer frames than seconds: as many times as there are frames
    assert len(set(chosen.tolist())) < len(chosen)
    assert line.rate is None
    assert Fraction(line.fps).limit_denominator(10) < 1


# --- The page for people ---

PAGE = Path(__file__).parents[3] / "docs/videos.md"


def drawn(clip: tricky.Clip) -> str:
    if clip.reason:
        return f"refused: `{clip.reason}`"
    seconds = len(clip.times) / float(clip.rate) if clip.rate else None
    told = (clip.truncated, clip.missing, clip.leapt)
    return in_words(len(clip.times), seconds, clip.times[-1], *told)


def found(clip: tricky.Clip, path: Path) -> str:
    try:
        line = read_timeline(path)
    except MediaError as error:
        return f"refused: `{error.reason}`"
    told = (line.truncated, line.missing_fragments, line.leapt_s)
    return in_words(line.frames, line.duration if line.rate else None, float(line.pts[-1]), *told)


def in_words(
    pictures: int, seconds: float | None, last: float, truncated: bool, missing: int, leapt: float
) -> str:
    shown = f"last at {last:.2f} s" if seconds is None else f"{seconds:.2f} s"
    told = [
        *["truncated"] * truncated,
        *[f"{missing} fragments missing"] * bool(missing),
        *[f"clock leaps {leapt:.5g} s"] * bool(leapt),
    ]
    return "; ".join(filter(None, [f"{pictures} pictures, {shown}", ", ".join(told)])).replace(
        ".00 s", " s"
    )


@pytest.mark.slow
def test_the_page_about_videos_says_what_is_read(built):
    rows = re.findall(r"^\| `(\S+)` \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.M)
    clips_by_name = {clip.name: clip for clip in tricky.CLIPS}
    assert len(rows) > 30
    for name, expected, got in rows:
        clip = clips_by_name[name]
        assert (expected, got) == (drawn(clip), found(clip, built(clip))), name
