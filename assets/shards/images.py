"""What becomes of an image file on its way into a shard. Every case has one defined outcome.

- JPEG, any colour space: its bytes, untouched, once a strict decoder has found all of its picture
  (`jpeg.py`). EXIF rotation stays in them and is applied by
  whoever decodes.
- PNG of 8-bit grey or RGB without alpha, EXIF or animation: its bytes, untouched, checksums
  verified.
- Everything else (palettes, alpha, CMYK, 16 bits, animations, GIF, WebP, BMP, TIFF, ...): decoded
  once by the very function that training uses (`model.images.load_image`) and stored as PNG,
  losslessly, or as JPEG where configured. A sample thus shows the model the same pixels through a
  shard as from the original file.
- Missing, empty, cut short (also where an end marker was put behind it), overwritten with zeros,
  unreadable, of a foreign format or above the pixel limit: refused, with that reason.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Literal

from PIL import Image, UnidentifiedImageError

from assets.shards.jpeg import jpeg_fault

_PNG_END = b"IEND\xaeB`\x82"
_PNG_DEPTH = 24  # where a PNG's header says how many bits a channel has
_PNG_EXIF = (b"eXIf", b"Raw profile type exif")  # it may turn the picture
# What Pillow's readers raise.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, OverflowError, struct.error)


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """How images that are not kept as they are get stored.

    Attributes:
        encoding: "png" is lossless.
        jpeg_quality: used with "jpeg" only.
    """

    encoding: Literal["png", "jpeg"] = "png"
    jpeg_quality: int = 95


DEFAULT_POLICY = ImagePolicy()


class RefusedImage(ValueError):
    """An image that does not go into a shard; `reason` is one of a few fixed phrases."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def stored_image(data: bytes, policy: ImagePolicy = DEFAULT_POLICY) -> bytes:
    """The bytes that a shard holds for an image file's `data`.

    Raises:
        RefusedImage: the file cannot be used.
    """
    from model.images import FORMATS, load_image
    from model.media.limits import MAX_IMAGE_PIXELS

    if not data:
        raise RefusedImage("image empty")
    try:
        with warnings.catch_warnings():
            # Above the limit it is refused below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise RefusedImage("image of unknown format", repr(data[:8])) from error
    except Image.DecompressionBombError as error:
        raise RefusedImage("image too large", str(error)) from error
    except _BROKEN as error:
        raise RefusedImage("image unreadable", str(error)) from error
    with image:
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise RefusedImage("image too large", f"{image.width} x {image.height} pixels")
        if image.format in ("JPEG", "MPO"):
            if fault := jpeg_fault(data):
                what, _, detail = fault.partition(": ")
                raise RefusedImage(f"image {what}", detail)
            return data
        if image.format == "PNG" and _plain_png(image, data):
            return data
    try:
        return _encoded(load_image(data), policy)
    except ValueError as error:
        raise RefusedImage(
            "image cut short" if "truncated" in str(error) else "image unreadable", str(error)
        ) from error


def _plain_png(image: Image.Image, data: bytes) -> bool:
    """Whether a PNG can be kept: nothing in it would be read differently by different readers."""
    if (
        image.mode not in ("L", "RGB")
        or "transparency" in image.info
        or getattr(image, "n_frames", 1) > 1
    ):
        return False
    # Not through Pillow's getexif(): for a PNG it decodes the whole picture.
    if data[_PNG_DEPTH] != 8 or any(mark in data for mark in _PNG_EXIF):
        return False
    if _PNG_END not in data[-64:]:
        raise RefusedImage("image cut short", "no end chunk")
    try:
        # verify() wants a file that nothing has read yet.
        with Image.open(io.BytesIO(data), formats=("PNG",)) as fresh:
            fresh.verify()
    except _BROKEN as error:
        raise RefusedImage("image unreadable", str(error)) from error
    return True


def _encoded(image: Image.Image, policy: ImagePolicy) -> bytes:
    out = io.BytesIO()
    if policy.encoding == "png":
        image.save(out, "PNG", compress_level=6)
    else:
        image.save(out, "JPEG", quality=policy.jpeg_quality, subsampling=0)
    return out.getvalue()
