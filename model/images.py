"""Images from anywhere to the pixels of one visual: squashed, cut into tiles, or padded to a
square.

Every image becomes plain 8-bit RGB first, upright, and what is done about the unusual ones is
decided here once:

    grey, palette, 1-bit, CMYK   converted
    transparency                 the alpha channel is dropped, the colours under it stay
    16-bit grey                  scaled to 8 bits (Pillow alone would clip all above 255 to white)
    32-bit grey                  the same if its values fit 16 bits, otherwise refused: nothing
                                 says what white is
    EXIF orientation             applied
    animation                    its first frame
    truncated, unknown, huge     refused

Pixels are uint8 [n, 3, S, S], and with u / 127.5 - 1 they equal what the SigLIP processor gives.
All refusals are ValueErrors that say why.
"""

import io
import math
import os
import re
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from model.anyres import AnyresLayout, paste_box
from model.media.limits import MAX_IMAGE_PIXELS
from model.media.resize import resize_image

# Pillow's other readers are left out on purpose: some start programs (EPS), some are rarely
# exercised parsers.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
LONGEST_SIDE = math.isqrt(MAX_IMAGE_PIXELS)
PAD_COLOUR = (127, 127, 127)  # SigLIP's mean, 0.5, as the published system rounds it

ImageSource = Image.Image | bytes | str | os.PathLike[str] | np.ndarray


def load_image(source: ImageSource) -> Image.Image:
    """An upright 8-bit RGB image from a file, the bytes of one, an opened image, or an array
    [H, W, 3] uint8. ValueError if it cannot be used.
    """
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if isinstance(source, Image.Image):
        name = f"image {getattr(source, 'filename', '') or source.size}"
    elif isinstance(source, bytes):
        name, content = f"image of {len(source)} bytes", source
    elif not isinstance(source, str | os.PathLike):
        raise ValueError(
            f"an image cannot be made from a {type(source).__name__}; give a file, its bytes, a "
            "picture of Pillow or an array [H, W, 3] uint8"
        )
    else:
        refuse_address(source)
        name, content = f"image {os.fspath(source)}", Path(source).read_bytes()
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return _to_rgb(image)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {error}") from error
    # What Pillow's readers raise on broken files; OSError covers truncation and unidentified
    # images.
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, struct.error) as error:
        raise ValueError(f"{name}: {error}") from error


def is_address(source: object) -> bool:
    """Whether it is an address on the network rather than a file."""
    return isinstance(source, str) and bool(re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://|data:", source))


def refuse_address(source: str | os.PathLike[str]) -> None:
    """Raise ValueError for an address on the network: nothing is fetched here."""
    if is_address(source):
        raise ValueError(
            f"{os.fspath(source)[:80]} is an address, not a file; download it first: which hosts "
            "to trust is not for a model to decide"
        )


def _from_array(pixels_HWC: np.ndarray) -> Image.Image:
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[-1] != 3:
        raise ValueError(
            f"an image as an array must be uint8 [H, W, 3], not {pixels_HWC.dtype} "
            f"{list(pixels_HWC.shape)}"
        )
    return Image.fromarray(pixels_HWC)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{image.width}x{image.height} pixels; at most {MAX_IMAGE_PIXELS:,} are accepted"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return _deep_grey_to_rgb(image)
    return image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(
            f"grey values of mode {image.mode} from {values.min()} to {values.max()}; "
            "save it with 8 or 16 bits a channel, so that it is known what is white"
        )
    return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")


def squashed(image: Image.Image, size: int) -> Tensor:
    """The whole RGB image, distorted into one square: uint8 [3, size, size]."""
    return _to_tensor(resize_image(image, (size, size)))


def anyres(image: Image.Image, layout: AnyresLayout) -> Tensor:
    """The squashed image, then its tiles by rows: uint8 [1 + tiles, 3, S, S]. Padding is black."""
    canvas = Image.new("RGB", layout.resolution)
    left, top, right, bottom = paste_box(image.size, layout.resolution)
    canvas.paste(resize_image(image, (right - left, bottom - top)), (left, top))
    tiles = (
        _to_tensor(canvas).unfold(1, layout.tile, layout.tile).unfold(2, layout.tile, layout.tile)
    )
    tiles = tiles.permute(1, 2, 0, 3, 4).flatten(0, 1)
    return torch.cat([squashed(image, layout.tile)[None], tiles])


def padded_square(image: Image.Image, size: int) -> Tensor:
    """The image in the middle of a grey square, aspect ratio kept: uint8 [3, size, size]."""
    if (
        max(image.size) > LONGEST_SIDE
    ):  # or a panorama of 90,000 x 900 pixels would need a square of 24 GB
        width, height = (max(1, side * LONGEST_SIDE // max(image.size)) for side in image.size)
        image = resize_image(image, (width, height))
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), PAD_COLOUR)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return squashed(canvas, size)


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
