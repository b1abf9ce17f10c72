"""A video decoded in several places at once gives what decoding it in one go gives."""

import threading

import numpy as np
import pytest

from model.media.parts import LEAST, Damaged, decode_in_parts, parts_of
from model.media.reader import DecodeReport, decode
from model.media.timeline import Timeline, read_timeline
from tests.model.media import clips

SIZE = 48
OPEN_GROUPS = "open-gop=1:keyint=20:min-keyint=20:scenecut=0"


def pictures_of(path, parts):
    line = read_timeline(path)
    wanted = np.arange(0, line.frames, 3)
    found = dict(decode_in_parts(line, wanted, size=SIZE, parts=parts))
    assert sorted(found) == list(range(len(wanted)))
    return line, wanted, np.stack([found[place] for place in range(len(wanted))])


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"g": "12", "bf": "2"}),
        ("libx264", {"g": "1000"}),  # one group: every part decodes from the beginning
        ("libx264", {"x264-params": OPEN_GROUPS}),
        ("libvpx-vp9", {"g": "15", "deadline": "realtime", "cpu-used": "8"}),
    ],
    ids=["short groups", "one group", "open groups", "vp9"],
)
def test_every_picture_is_in_its_place_to_the_last_bit(tmp_path, codec, options):
    suffix = ".webm" if "vp" in codec else ".mp4"
    path = clips.encode(tmp_path / f"clip{suffix}", 100, codec=codec, options=options)
    line, wanted, found = pictures_of(path, 4)
    assert np.array_equal(found, np.stack(list(decode(line, wanted, size=SIZE))))
    assert [clips.number(picture) for picture in found] == wanted.tolist()


def test_damage_anywhere_is_told_so_that_it_is_decoded_from_the_beginning(tmp_path):
    path = clips.encode(tmp_path / "clip.mp4", 100, options={"g": "10"}, size=(320, 192))
    line = read_timeline(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    report = DecodeReport()
    list(decode(line, np.arange(100), size=SIZE, report=report))
    assert report.damaged
    with pytest.raises(Damaged):
        list(decode_in_parts(line, np.arange(100), size=SIZE, parts=5))
    assert threads() == []


def test_who_stops_early_leaves_no_thread_behind(tmp_path):
    path = clips.encode(tmp_path / "clip.mp4", 400, options={"g": "10"})
    pictures = decode_in_parts(read_timeline(path), np.arange(400), size=SIZE, parts=2)
    next(pictures)
    assert len(threads()) == 2  # more than may wait to be taken, so none has finished
    pictures.close()
    assert threads() == []


def test_few_pictures_and_frames_that_only_counting_tells_are_decoded_in_one_go():
    line = Timeline.constant(100_000, 30)
    assert parts_of(line, 3600, 16) == 16
    assert parts_of(line, 3 * LEAST, 16) == 3
    assert parts_of(line, LEAST - 1, 16) == 1
    counted = Timeline(**{**{n: getattr(line, n) for n in line.__slots__}, "skippable": False})
    assert parts_of(counted, 3600, 16) == 1


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "decoder"]
