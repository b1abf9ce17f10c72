"""Pictures and films whose content is known: a figure of one colour on a background of another.

In a film the figure is a square that drifts about and changes its colour at known seconds.
Everything follows from a name, so the same names give the same pixels.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "green": (35, 165, 60),
    "blue": (45, 75, 215),
    "yellow": (235, 215, 45),
    "white": (235, 235, 235),
    "black": (25, 25, 25),
}
FIGURES = ("square", "circle", "triangle")
FILM_WIDTH, FILM_HEIGHT = 160, 120


@dataclass(frozen=True, slots=True)
class Picture:
    """A still: one figure on a background. `shade` is added to the pure colours, `centre` is
    relative.
    """

    background: str
    figure: str
    colour: str
    width: int
    height: int
    centre: tuple[float, float]
    reach: float
    shade: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Film:
    """A video: a square on a background.

    Attributes:
        background: its colour.
        changes: (second, colour) in order, the first at second 0: the square has that colour from
            then on.
        duration: seconds; `duration * fps` frames.
        side: the square's side in pixels.
        drift: periods in seconds and phases of the square's path, horizontally and vertically.
    """

    background: str
    changes: tuple[tuple[int, str], ...]
    duration: int
    fps: int
    side: int
    drift: tuple[float, float, float, float]
    shade: tuple[int, int, int]

    def colour_at(self, second: float) -> str:
        return next(colour for start, colour in reversed(self.changes) if start <= second)

    @property
    def colours(self) -> list[str]:
        return [colour for _, colour in self.changes]


def invent_picture(name: str) -> Picture:
    dice = random.Random(f"picture/{name}")
    background, colour = dice.sample(list(COLOURS), 2)
    width, height = dice.choices(
        [(112, 112), (128, 96), (96, 128), (224, 112)], weights=[12, 2, 2, 1]
    )[0]
    return Picture(
        background=background,
        figure=dice.choice(FIGURES),
        colour=colour,
        width=width,
        height=height,
        centre=(dice.uniform(0.35, 0.65), dice.uniform(0.35, 0.65)),
        reach=dice.uniform(0.2, 0.28),
        shade=_shade(dice),
    )


def invent_film(name: str, duration: int, fps: int, colours: int) -> Film:
    """A film of `duration` seconds whose square has `colours` different colours, each for a
    good while.
    """
    dice = random.Random(f"film/{name}")
    background, *square = dice.sample(list(COLOURS), colours + 1)
    length = duration / colours
    starts = [0] + [round(length * (i + dice.uniform(-0.2, 0.2))) for i in range(1, colours)]
    return Film(
        background=background,
        changes=tuple(zip(starts, square, strict=True)),
        duration=duration,
        fps=fps,
        side=dice.randrange(46, 62, 2),
        drift=(
            dice.uniform(7, 19),
            dice.uniform(7, 19),
            dice.uniform(0, 6.3),
            dice.uniform(0, 6.3),
        ),
        shade=_shade(dice),
    )


def jpeg(picture: Picture) -> bytes:
    """The picture as a JPEG file."""
    image = Image.new(
        "RGB", (picture.width, picture.height), _rgb(picture.background, picture.shade)
    )
    reach = picture.reach * min(picture.width, picture.height)
    centre = picture.centre[0] * picture.width, picture.centre[1] * picture.height
    paint_figure(image, picture.figure, centre, reach, _rgb(picture.colour, picture.shade))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def paint_figure(
    image: Image.Image,
    figure: str,
    centre: tuple[float, float],
    reach: float,
    fill: tuple[int, int, int],
) -> None:
    """Draw a figure into an image.

    Args:
        figure: one of `FIGURES`.
        centre: x and y in pixels.
        reach: pixels from the centre to the sides of the box that the figure fills.
    """
    draw, (x, y) = ImageDraw.Draw(image), centre
    box = (x - reach, y - reach, x + reach, y + reach)
    if figure == "square":
        draw.rectangle(box, fill=fill)
    elif figure == "circle":
        draw.ellipse(box, fill=fill)
    else:
        draw.polygon([(x, y - reach), (x + reach, y + reach), (x - reach, y + reach)], fill=fill)


def write_film(path: Path, film: Film) -> None:
    """Encode the film as H.264 in an MP4 whose index comes first, as hosts serve it."""
    frames = (frame_at(film, number / film.fps) for number in range(film.duration * film.fps))
    # A key frame every five seconds.
    write_h264(path, frames, film.fps, film.fps * 5, "superfast", {"movflags": "+faststart"})


def write_h264(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: int,
    gop_size: int,
    preset: str,
    options: Mapping[str, str],
) -> None:
    """Encode frames as H.264 in an MP4; the same frames give the same bytes everywhere.

    Args:
        frames: uint8 [FILM_HEIGHT, FILM_WIDTH, 3].
        gop_size: frames from one key frame to the next.
        preset: libx264's; a faster one gives larger files.
        options: further ones of the container.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {**options, "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": preset, "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = FILM_WIDTH, FILM_HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1  # more threads would give other bytes
        stream.codec_context.gop_size = gop_size
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def frame_at(film: Film, second: float) -> np.ndarray:
    """The film's picture at a moment: uint8 [height, width, 3]."""
    frame = np.empty((FILM_HEIGHT, FILM_WIDTH, 3), np.uint8)
    frame[:] = _rgb(film.background, film.shade)
    period_x, period_y, phase_x, phase_y = film.drift
    left = _drift(second, period_x, phase_x, FILM_WIDTH - film.side)
    top = _drift(second, period_y, phase_y, FILM_HEIGHT - film.side)
    frame[top : top + film.side, left : left + film.side] = _rgb(film.colour_at(second), film.shade)
    return frame


def _drift(second: float, period: float, phase: float, room: int) -> int:
    return round(room * (0.5 + 0.5 * math.sin(2 * math.pi * second / period + phase)))


def _shade(dice: random.Random) -> tuple[int, int, int]:
    return dice.randint(-20, 20), dice.randint(-20, 20), dice.randint(-20, 20)


def _rgb(colour: str, shade: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (
        min(max(c + s, 0), 255) for c, s in zip(COLOURS[colour], shade, strict=True)
    )
    return red, green, blue
