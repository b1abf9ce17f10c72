"""Colours and orientation against arithmetic of the test's own, on the CPU and as for a GPU."""

import struct

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.media import pictures
from model.media.pictures import PictureMaker, colour_matrix, full_range
from model.media.reader import read
from model.media.resize import resize_frame
from model.media.surfaces import TOLERANCE, SurfaceConverter, resize_weights
from model.media.timeline import read_timeline
from tests.model.media import clips

EXACT = 3  # steps of 255 that swscale's 16 bits may cost
# Weights of red and blue in brightness, from the ITU's recommendations.
WEIGHTS = {
    1: (0.2126, 0.0722),  # BT.709
    2: (0.299, 0.114),  # says nothing: BT.601
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020
}


def frame_of(size=(64, 48), matrix=1, of_range=1, pixel_format="yuv420p", seed=0):
    """A frame of random colour values, with them: Y [H, W], U and V [H/2, W/2]."""
    rng = np.random.default_rng(seed)
    frame = av.VideoFrame(*size, pixel_format)
    values = []
    for plane in frame.planes:
        value = rng.integers(16, 236, (plane.height, plane.width), dtype=np.uint8)
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : plane.width] = value
        plane.update(rows.tobytes())
        values.append(value)
    frame.colorspace, frame.color_range = matrix, of_range
    return frame, values


def exact_rgb(values, matrix, full):
    y, u, v = (value.astype(np.float64) for value in values)
    u, v = (c.repeat(2, 0).repeat(2, 1)[: y.shape[0], : y.shape[1]] - 128 for c in (u, v))
    red, blue = WEIGHTS[matrix]
    if full:
        u, v = u / 127.5, v / 127.5
    else:
        y, u, v = (y - 16) * 255 / 219, u / 112, v / 112
    r, b = y + 127.5 * 2 * (1 - red) * v, y + 127.5 * 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.stack([r, g, b], -1), 0, 255)


@pytest.mark.parametrize("of_range", [0, 1, 2])
@pytest.mark.parametrize("matrix", WEIGHTS)
def test_colours_are_those_of_the_stream_s_own_matrix_and_range(matrix, of_range):
    frame, values = frame_of(matrix=matrix, of_range=of_range)
    rgb = PictureMaker(64).rgb(frame)[..., :3]
    assert np.abs(rgb - exact_rgb(values, matrix, of_range == 2)).max() <= EXACT


def test_jpeg_s_formats_use_all_of_their_range_whatever_the_stream_says():
    frame, values = frame_of(matrix=5, of_range=0, pixel_format="yuvj420p")
    rgb = PictureMaker(64).rgb(frame)[..., :3]
    assert np.abs(rgb - exact_rgb(values, 5, True)).max() <= EXACT


def test_one_maker_follows_colours_that_change_within_a_video():
    maker = PictureMaker(64)
    for matrix, of_range in ((1, 1), (9, 1), (5, 2), (1, 1), (2, 1)):
        frame, values = frame_of(matrix=matrix, of_range=of_range, seed=matrix)
        rgb = maker.rgb(frame)[..., :3]
        assert np.abs(rgb - exact_rgb(values, matrix, of_range == 2)).max() <= EXACT


@pytest.mark.parametrize("size", [(854, 480), (426, 240), (1082, 608)])
def test_widths_that_fit_no_vector_give_the_same_pixels_every_time(size):
    """With several threads swscale overwrites pixels where one thread's rows end."""
    frame, values = frame_of(size)
    for _ in range(5):
        rgb = PictureMaker(64).rgb(frame)[..., :3]
        assert np.abs(rgb - exact_rgb(values, 1, False)).max() <= EXACT


@pytest.mark.parametrize("of_range", [1, 2])
@pytest.mark.parametrize("matrix", [1, 4, 5, 7, 9])
@pytest.mark.parametrize("size", [(640, 360), (320, 240), (96, 160), (360, 640)])
def test_surfaces_become_the_pictures_of_the_cpu(matrix, of_range, size):
    frame, (y, u, v) = frame_of(size, matrix, of_range)
    converter = SurfaceConverter(112, colour_matrix(frame), full_range(frame))
    luma_THW = torch.from_numpy(y)[None].repeat(2, 1, 1)
    chroma_Thw2 = torch.from_numpy(np.stack([u, v], -1))[None].repeat(2, 1, 1, 1)
    found = converter(luma_THW, chroma_Thw2).numpy()
    expected = PictureMaker(112)(frame)
    assert np.array_equal(found[0], found[1])
    apart = np.abs(found[0].astype(int) - expected)
    assert apart.max() <= TOLERANCE
    assert (apart > 0).mean() < 0.03


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", [(640, 360), (1280, 720)])
def test_surfaces_on_a_gpu_become_the_pictures_of_the_cpu(size):
    frame, (y, u, v) = frame_of(size)
    converter = SurfaceConverter(384, colour_matrix(frame), full_range(frame))
    chroma_Thw2 = torch.from_numpy(np.stack([u, v], -1))[None].cuda()
    found = converter(torch.from_numpy(y)[None].cuda(), chroma_Thw2).cpu().numpy()[0]
    assert np.abs(found.astype(int) - PictureMaker(384)(frame)).max() <= TOLERANCE


@pytest.mark.parametrize("length", [20, 56, 57, 97, 640, 1081])
def test_resize_weights_are_those_of_torch(length):
    rows = np.random.default_rng(length).integers(0, 256, (length, 5, 4), dtype=np.uint8)
    weights, bits = resize_weights(length, 56)
    sums = weights.astype(np.int64) @ rows.transpose(1, 0, 2).astype(np.int64)
    ours = np.clip((sums + (1 << (bits - 1))) >> bits, 0, 255)
    image = torch.from_numpy(rows[None]).permute(0, 3, 1, 2)
    theirs = F.interpolate(image, (56, 5), mode="bicubic", antialias=True)
    assert np.array_equal(ours, theirs[0].permute(2, 1, 0).numpy())


def test_a_fourth_channel_is_left_out_and_changes_nothing():
    rgba = np.random.default_rng(0).integers(0, 256, (90, 160, 4), dtype=np.uint8)
    assert np.array_equal(
        resize_frame(rgba, 56), resize_frame(np.ascontiguousarray(rgba[..., :3]), 56)
    )


# What a viewer sees of a stored picture, for each display matrix of quarter turns and mirrors. A
# stored pixel (x, y) is shown at (a x + c y, b x + d y), by the QuickTime specification.
SHOWN = {
    (1, 0, 0, 1): lambda p: p,
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
    (-1, 0, 0, -1): lambda p: p[::-1, ::-1],
    (0, 1, 1, 0): lambda p: p.transpose(1, 0, 2),
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),
    (0, -1, 1, 0): lambda p: np.rot90(p, 1),
    (0, -1, -1, 0): lambda p: np.rot90(p, 2).transpose(1, 0, 2),
}


@pytest.mark.parametrize("matrix", SHOWN)
def test_turned_and_mirrored_pictures_are_shown_upright(tmp_path, matrix):
    path = clips.encode(tmp_path / "v.mp4", 3, options={"qp": "0"})
    plain = read(read_timeline(path), [0, 1], size=64).frames_THWC
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (struct.pack(">i", value << 16) for value in matrix)
    data[start : start + 20] = a + b + bytes(4) + c + d
    path.write_bytes(data)
    found = read(read_timeline(path), [0, 1], size=64).frames_THWC
    for stored, shown in zip(plain, found, strict=True):
        assert np.abs(SHOWN[matrix](stored).astype(int) - shown).mean() < 2


def test_an_rgb_stream_has_no_matrix(tmp_path):
    frame = av.VideoFrame.from_ndarray(clips.picture(5, 64, 48), format="bgr24")
    rgb = pictures.PictureMaker(48).rgb(frame)
    assert np.array_equal(rgb[..., 2::-1], clips.picture(5, 64, 48))
