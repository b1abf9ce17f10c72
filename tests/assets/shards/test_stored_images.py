"""Images on their way into a shard: the model sees the same pixels either way, and every odd file
has one outcome.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from assets.shards.images import ImagePolicy, RefusedImage, stored_image
from model.images import load_image
from model.media.limits import MAX_IMAGE_PIXELS
from tests.assets.shards.roots import encoded, picture

ROTATED = Image.Exif()
ROTATED[0x0112] = 6


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65535, 48 * 40, dtype=np.uint16).reshape(40, 48))


def animation(kind: str) -> bytes:
    return encoded(picture(1), kind, save_all=True, append_images=[picture(2)], duration=100)


KEPT = {
    "jpeg": encoded(picture(0), "JPEG", quality=80),
    "progressive jpeg": encoded(picture(0), "JPEG", progressive=True),
    "grey jpeg": encoded(picture(0, "L"), "JPEG"),
    "cmyk jpeg": encoded(picture(0, "CMYK"), "JPEG"),
    "turned jpeg": encoded(picture(0), "JPEG", exif=ROTATED),
    "jpeg with something behind it": encoded(picture(0), "JPEG") + b"\0" * 100,
    "png": encoded(picture(0), "PNG"),
    "grey png": encoded(picture(0, "L"), "PNG"),
}
CONVERTED = {
    "png with alpha": encoded(picture(0).convert("RGBA"), "PNG"),
    "palette png": encoded(picture(0, "P"), "PNG"),
    "png with a transparent colour": encoded(picture(0), "PNG", transparency=(1, 2, 3)),
    "16-bit png": encoded(sixteen_bits(), "PNG"),
    "1-bit png": encoded(picture(0, "1"), "PNG"),
    "turned png": encoded(picture(0), "PNG", exif=ROTATED),
    "gif": encoded(picture(0), "GIF"),
    "animated gif": animation("GIF"),
    "animated webp": animation("WEBP"),
    "animated png": animation("PNG"),
    "webp": encoded(picture(0), "WEBP"),
    "bmp": encoded(picture(0), "BMP"),
    "cmyk tiff": encoded(picture(0, "CMYK"), "TIFF"),
}


@pytest.mark.parametrize("name", KEPT)
def test_jpeg_and_plain_png_keep_their_bytes(name):
    assert stored_image(KEPT[name]) == KEPT[name]


@pytest.mark.parametrize("name", CONVERTED)
def test_everything_else_becomes_a_png_that_shows_the_same_pixels(name):
    stored = stored_image(CONVERTED[name])
    with Image.open(io.BytesIO(stored)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(image), np.asarray(load_image(CONVERTED[name])))
    assert stored_image(stored) == stored


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.asarray(Image.open(io.BytesIO(stored_image(CONVERTED["16-bit png"]))))[
        ..., 0
    ].reshape(-1)
    assert (values[0], values[-1]) == (0, 255)
    assert 120 < values[len(values) // 2] < 136


def test_a_turned_image_is_upright_when_it_is_read_back():
    for name in ("turned jpeg", "turned png"):
        data = {**KEPT, **CONVERTED}[name]
        assert load_image(stored_image(data)).size == (40, 48)


def test_other_formats_become_jpeg_where_that_is_configured():
    stored = stored_image(CONVERTED["webp"], ImagePolicy(encoding="jpeg", jpeg_quality=95))
    with Image.open(io.BytesIO(stored)) as image:
        assert image.format == "JPEG"
        difference = np.asarray(image, int) - np.asarray(load_image(CONVERTED["webp"]), int)
        assert np.abs(difference).mean() < 8


def huge_png() -> bytes:
    """A PNG of a few dozen bytes whose header declares more pixels than are accepted."""
    data = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    side = int(MAX_IMAGE_PIXELS**0.5) + 10
    data[16:24] = side.to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "image empty"),
        (b"<html>not found</html>", "image of unknown format"),
        (KEPT["jpeg"][: len(KEPT["jpeg"]) // 2], "image cut short"),
        (KEPT["jpeg"][:-2], "image cut short"),
        (KEPT["png"][: len(KEPT["png"]) // 2], "image cut short"),
        (CONVERTED["webp"][: len(CONVERTED["webp"]) // 2], "image unreadable"),
        (CONVERTED["16-bit png"][: len(CONVERTED["16-bit png"]) // 2], "image cut short"),
        (KEPT["png"][:60] + b"\xff\xff" + KEPT["png"][62:], "image unreadable"),
        (huge_png(), "image too large"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "image of unknown format"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(data, reason):
    with pytest.raises(RefusedImage) as refused:
        stored_image(data)
    assert refused.value.reason == reason


def test_the_end_marker_of_a_thumbnail_does_not_make_a_cut_jpeg_whole():
    thumbnail = encoded(picture(3, size=(16, 16)), "JPEG")
    segment = b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2, "big") + b"Exif\0\0" + thumbnail
    whole = KEPT["jpeg"][:2] + segment + KEPT["jpeg"][2:]
    assert stored_image(whole) == whole
    with pytest.raises(RefusedImage, match="cut short"):
        stored_image(whole[:-40])


def photograph(noise: float = 12.0) -> Image.Image:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:240, 0:320]
    waves = [100 * np.sin(x / 37), 90 * np.cos(y / 53 + x / 99), 80 * np.sin((x + y) / 71)]
    return Image.fromarray(
        (127 + np.stack(waves, -1) + rng.normal(0, noise, (240, 320, 3))).clip(0, 255).astype("u1")
    )


JPEGS = {
    "plain": {},
    "progressive": {"progressive": True},
    "optimised": {"optimize": True},
    "full colour": {"subsampling": 0},
    "restart markers": {"restart_marker_rows": 2},
}


def half_with_an_end(data: bytes) -> bytes:
    return data[: len(data) // 2] + b"\xff\xd9"


def late_end(data: bytes) -> bytes:
    return data[: len(data) * 95 // 100] + b"\xff\xd9"


def zeroed(data: bytes) -> bytes:
    start, length = len(data) // 2, len(data) // 12
    return data[:start] + bytes(length) + data[start + length :]


@pytest.mark.parametrize("damage", [half_with_an_end, late_end, zeroed])
@pytest.mark.parametrize("options", JPEGS)
def test_half_a_jpeg_with_an_end_and_one_zeroed_inside_are_found(options, damage):
    """Pillow reads all of them without a word and fills the rest with grey."""
    whole = encoded(photograph(), "JPEG", quality=88, **JPEGS[options])
    assert stored_image(whole) == whole
    assert load_image(damage(whole)).size == (320, 240)
    with pytest.raises(RefusedImage) as refused:
        stored_image(damage(whole))
    assert refused.value.reason == "image damaged"


def test_jpegs_that_are_odd_but_whole_are_kept():
    plain = encoded(photograph(), "JPEG", quality=88)
    white = Image.new("RGB", (640, 480), (255, 255, 255))
    odd = {
        "white, with tables made for it": encoded(white, "JPEG", optimize=True),
        "white": encoded(white, "JPEG"),
        "bytes too many before the end": plain[:-2] + b"\x00\x12" + plain[-2:],
        "zeros behind it": plain + bytes(4096),
        "another behind it": plain + encoded(picture(1), "JPEG"),
        "filled markers": plain[:2] + b"\xff\xff" + plain[2:],
        "one pixel": encoded(picture(0, size=(1, 1)), "JPEG"),
        "two pictures": encoded(photograph(), "MPO", save_all=True, append_images=[picture(1)]),
        "noise": encoded(photograph(90.0), "JPEG", quality=97),
    }
    for name, data in odd.items():
        assert stored_image(data) == data, name
