"""8-bit resizing against Pillow, the SigLIP processor and the published pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from model.media.resize import resize_frame, resize_image

GOLDEN = Path(__file__).parents[2] / "golden"
BICUBIC = Image.Resampling.BICUBIC
SIZES = [
    (640, 360),
    (360, 640),
    (1280, 720),
    (1920, 1080),
    (1080, 1920),
    (320, 240),
    (144, 176),
    (37, 611),
    (2, 5),
]


def siglip_processor(size, **options):
    """The reference: the processor that uses Pillow, which transformers 5 keeps under a name of its
    own.
    """
    import transformers

    kind = getattr(transformers, "SiglipImageProcessorPil", transformers.SiglipImageProcessor)
    return kind(size={"height": size, "width": size}, **options)


def noise(width, height):
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photograph_like(width, height):
    return np.asarray(
        Image.fromarray(noise(width, height)).resize((16, 9)).resize((width, height), BICUBIC)
    )


def test_resized_frames_are_the_published_ones_within_two_steps():
    golden = load_file(GOLDEN / "image_preprocess" / "image_preprocess.safetensors")
    resized = np.stack([resize_frame(frame, 56) for frame in golden["video.frames"].numpy()])
    pixels = torch.from_numpy(resized).permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(pixels, golden["video.pixel_values"], atol=2 / 127.5 + 1e-6, rtol=0)


@pytest.mark.parametrize("kind", [noise, photograph_like])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_frames_stay_within_two_steps_of_the_siglip_processor(size, kind):
    frame = kind(*size)
    processor = siglip_processor(384, do_rescale=False, do_normalize=False)
    expected = np.asarray(processor(Image.fromarray(frame))["pixel_values"][0]).transpose(1, 2, 0)
    difference = np.abs(resize_frame(frame, 384).astype(int) - expected)
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_images_are_resized_in_the_recorded_order_of_passes(size):
    image = Image.fromarray(noise(*size))
    width, height = size
    shrinks_more = height > 384 and height > width
    between = (width, 384) if shrinks_more else (384, height)
    expected = image.resize(between, BICUBIC).resize((384, 384), BICUBIC)
    assert np.array_equal(resize_image(image, (384, 384)), expected)


def test_a_turned_or_read_only_frame_is_resized_like_a_plain_copy():
    frame = noise(64, 48)
    turned = np.rot90(frame)
    assert np.array_equal(resize_frame(turned, 32), resize_frame(np.ascontiguousarray(turned), 32))
    expected = resize_frame(frame.copy(), 32)
    frame.flags.writeable = False
    assert np.array_equal(resize_frame(frame, 32), expected)
