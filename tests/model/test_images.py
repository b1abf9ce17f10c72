"""Image pixels against the published system's, and what becomes of the unusual ones."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from model.anyres import plan_anyres
from model.images import anyres, load_image, padded_square, squashed
from tests.model.media.test_resize import siglip_processor

GOLDEN = load_file(
    Path(__file__).parents[1] / "golden" / "image_preprocess" / "image_preprocess.safetensors"
)


def normalised(pixels):
    assert pixels.dtype == torch.uint8
    return pixels.float() / 127.5 - 1


def png(image, **options):
    return encoded(image, "PNG", **options)


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def colours(width=8, height=6):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("index", range(6))
def test_tiles_and_padded_squares_are_the_published_ones(index):
    image = Image.fromarray(GOLDEN[f"{index}.image"].numpy())
    layout = plan_anyres(image.size, tile=56, side=4)
    torch.testing.assert_close(
        normalised(anyres(image, layout)), GOLDEN[f"{index}.anyres"], atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        normalised(padded_square(image, 56)), GOLDEN[f"{index}.pad"], atol=1e-6, rtol=0
    )


def test_tiles_of_the_real_size_are_the_published_ones():
    image = Image.fromarray(GOLDEN["real384.image"].numpy())
    pixels = normalised(anyres(image, plan_anyres(image.size, tile=384, side=27)))
    torch.testing.assert_close(
        pixels[:, :, ::7, ::7], GOLDEN["real384.anyres_every7"], atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        pixels.mean((1, 2, 3)), GOLDEN["real384.tile_mean"], atol=1e-6, rtol=0
    )


def test_squashing_is_what_the_siglip_processor_does():
    image = colours(61, 37)
    expected = torch.as_tensor(siglip_processor(56)(image)["pixel_values"][0])
    torch.testing.assert_close(normalised(squashed(image, 56)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_other_colour_modes_become_rgb(mode):
    image = colours().convert(mode)
    loaded = load_image(image)
    assert loaded.mode == "RGB"
    assert np.array_equal(loaded, image.convert("RGB"))


def test_transparency_is_dropped_and_the_colour_under_it_stays():
    rgb = colours()
    see_through = rgb.copy()
    see_through.putalpha(Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)))
    assert np.array_equal(load_image(png(see_through)), rgb)
    grey_alpha = load_image(png(Image.merge("LA", (rgb.convert("L"), see_through.getchannel("A")))))
    assert np.array_equal(grey_alpha, rgb.convert("L").convert("RGB"))


def test_sixteen_bit_grey_is_scaled_rather_than_clipped():
    values = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
    loaded = np.asarray(load_image(png(Image.fromarray(values))))
    assert np.array_equal(loaded[..., 0], np.round(values / 257))
    assert loaded.min() == 0
    assert loaded.max() == 255


@pytest.mark.parametrize(
    "values", [np.full((2, 2), 70000, np.int32), np.full((2, 2), 0.5, np.float32)]
)
def test_grey_of_unknown_range_is_refused(values):
    with pytest.raises(ValueError, match="8 or 16 bits"):
        load_image(encoded(Image.fromarray(values), "TIFF"))


def test_a_camera_s_orientation_is_applied():
    upright = Image.new("RGB", (32, 16), "black")
    upright.paste("white", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: to be turned a quarter clockwise
    stored = encoded(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)
    loaded = load_image(stored)
    assert loaded.size == (32, 16)
    assert np.abs(np.asarray(loaded).astype(int) - np.asarray(upright)).max() < 16


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(form):
    shots = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    moving = encoded(
        shots[0], form, save_all=True, append_images=shots[1:], duration=100, **options
    )
    assert np.array_equal(load_image(moving), shots[0])


def test_a_file_and_its_bytes_give_the_same_image(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(png(colours()))
    assert np.array_equal(load_image(path), load_image(path.read_bytes()))
    assert np.array_equal(load_image(str(path)), colours())


def test_a_truncated_file_is_refused_by_name(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(colours(200, 200), "JPEG")[:-3000])
    with pytest.raises(ValueError, match=r"cut\.jpg.*truncated"):
        load_image(path)


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match="image of 13 bytes"):
        load_image(b"<html></html>")


def test_a_format_that_starts_other_programs_is_not_even_tried():
    postscript = encoded(colours(), "EPS")
    with pytest.raises(ValueError, match="cannot identify"):
        load_image(postscript)


@pytest.mark.slow
def test_a_decompression_bomb_is_refused_before_it_unfolds():
    small_file = png(Image.new("1", (20_000, 20_000)))
    assert len(small_file) < 100_000
    with pytest.raises(ValueError, match="decompression bomb"):
        load_image(small_file)
    with (
        pytest.raises(ValueError, match="at most 89,478,485"),
        pytest.warns(Image.DecompressionBombWarning),
    ):
        load_image(png(Image.new("1", (10_000, 10_000))))


@pytest.mark.slow
def test_a_very_long_image_is_padded_without_a_gigantic_square():
    square = padded_square(
        Image.new("RGB", (60_000, 40), "white"), 56
    )  # the square of 60,000 would need 10 GB
    grey = (square == 127).float().mean()
    assert square.shape == (3, 56, 56)
    assert 0.9 < grey < 1


def test_an_opened_file_that_breaks_off_is_refused_like_any_other(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(colours(200, 200), "JPEG")[:-3000])
    with Image.open(path) as opened, pytest.raises(ValueError, match=r"cut\.jpg.*truncated"):
        load_image(opened)


def test_a_missing_file_is_not_taken_for_a_bad_image(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "nowhere.png")
