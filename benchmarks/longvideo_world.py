"""Long films whose every second is known, and 22 kinds of questions about them with the seconds
that hold the answer.

A film is a few scenes, each with a background and a figure in it, and now and then a flash: the
whole picture in one colour for three seconds, which most ways of looking at an hour of video miss.
Everything follows from a name.

The 22 kinds stand in six groups, as VideoMarathon's tasks do; they are this benchmark's own, not
its tasks.

A film can have signs instead of flashes: each pattern of `PATTERNS` fills the picture for two
seconds, in a colour of its own, which is all that such a film is asked for. A flash is only told
from a background of its colour by what is not in the picture; a sign is told by every piece of it,
so that what is learned is to find the moment.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.demo.drawing import (
    COLOURS,
    FIGURES,
    FILM_HEIGHT,
    FILM_WIDTH,
    paint_figure,
    write_h264,
)

FLASH_S, SIGN_S = 3, 2
CLEAR_S = 5  # a question about a second keeps this far from every change
SIDES = ("left", "right")
SIZES = ("small", "large")
MOTIONS = ("moves", "rests")
YES_NO = ("yes", "no")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
QUARTERS = ("first", "second", "third", "fourth")
PATTERNS = ("stripes", "bars", "checks")  # upright, flat, both
GREY = (128, 128, 128)  # stands between a sign's colour; no colour of `COLOURS`
PATTERN_PX = 5


@dataclass(frozen=True, slots=True)
class Scene:
    """From `start` to `end`, in seconds, a figure on a background."""

    start: int
    end: int
    background: str
    figure: str
    colour: str
    side: str
    size: str
    motion: str


@dataclass(frozen=True, slots=True)
class Sign:
    """A pattern in one colour and grey that fills the picture for `seconds` from `second` on."""

    second: int
    pattern: str
    colour: str
    seconds: int


@dataclass(frozen=True, slots=True)
class LongFilm:
    """Scenes one after another, all of different backgrounds, flashes `(second, colour)`, and
    signs.
    """

    name: str
    duration: int
    scenes: tuple[Scene, ...]
    flashes: tuple[tuple[int, str], ...]
    signs: tuple[Sign, ...] = ()

    def scene_at(self, second: float) -> Scene:
        return next(scene for scene in reversed(self.scenes) if scene.start <= second)

    def flash_at(self, second: float) -> str | None:
        return next(
            (colour for start, colour in self.flashes if start <= second < start + FLASH_S), None
        )

    def sign_at(self, second: float) -> Sign | None:
        return next(
            (sign for sign in self.signs if sign.second <= second < sign.second + sign.seconds),
            None,
        )


@dataclass(frozen=True, slots=True)
class LongQuestion:
    """A question; `evidence`: the seconds that answer it, None where only the whole film does."""

    task: str
    text: str
    answer: str
    choices: tuple[str, ...]
    evidence: tuple[float, float] | None = None


def invent_long_film(name: str, duration: int) -> LongFilm:
    """A film of `duration` seconds with 3 to 5 scenes and up to 2 flashes."""
    dice = random.Random(f"long film/{name}")
    count = dice.randint(3, 5)
    backgrounds = dice.sample(list(COLOURS), count)
    length = duration / count
    starts = [
        0,
        *(round(length * (i + dice.uniform(-0.3, 0.3))) for i in range(1, count)),
        duration,
    ]
    scenes = [_scene(*span, dice) for span in zip(starts, starts[1:], backgrounds, strict=False)]
    flashes: list[tuple[int, str]] = []
    for _ in range(dice.choice((0, 1, 1, 2))):
        scene = dice.choice(scenes)
        second = dice.randrange(scene.start + CLEAR_S, scene.end - CLEAR_S - FLASH_S)
        if all(abs(second - other) > 4 * CLEAR_S for other, _ in flashes):
            flashes.append((second, dice.choice([c for c in COLOURS if c != scene.background])))
    return LongFilm(name, duration, tuple(scenes), tuple(sorted(flashes)))


def invent_clip(name: str) -> LongFilm:
    """A film of seconds with two scenes, for short videos and the stills of the first stages."""
    dice = random.Random(f"clip/{name}")
    duration = dice.randint(12, 20)
    middle = round(duration * dice.uniform(0.3, 0.7))
    first, second = dice.sample(list(COLOURS), 2)
    scenes = (_scene(0, middle, first, dice), _scene(middle, duration, second, dice))
    return LongFilm(name, duration, scenes, ())


def with_signs(film: LongFilm, seconds: int = SIGN_S) -> LongFilm:
    """The same scenes with a sign of each pattern at moments of their own in place of flashes.

    Args:
        seconds: how long each is shown.
    """
    dice = random.Random(f"signs/{film.name}")
    slots = dice.sample(range(film.duration // seconds), len(PATTERNS))
    signs = tuple(
        Sign(slot * seconds, pattern, dice.choice(list(COLOURS)), seconds)
        for slot, pattern in zip(slots, PATTERNS, strict=True)
    )
    return replace(film, flashes=(), signs=signs)


def _scene(start: int, end: int, background: str, dice: random.Random) -> Scene:
    colour = dice.choice([colour for colour in COLOURS if colour != background])
    looks = (
        dice.choice(FIGURES),
        colour,
        dice.choice(SIDES),
        dice.choice(SIZES),
        dice.choice(MOTIONS),
    )
    return Scene(start, end, background, *looks)


# --- Pictures
# -----------------------------------------------------------------------------------------------


def draw(film: LongFilm, second: float) -> Image.Image:
    """The film's picture at a moment."""
    if (flash := film.flash_at(second)) is not None:
        return Image.new("RGB", (FILM_WIDTH, FILM_HEIGHT), COLOURS[flash])
    if (sign := film.sign_at(second)) is not None:
        return _draw_sign(sign)
    scene = film.scene_at(second)
    picture = Image.new("RGB", (FILM_WIDTH, FILM_HEIGHT), COLOURS[scene.background])
    reach = 34 if scene.size == "large" else 20
    x, y = FILM_WIDTH * (0.27 if scene.side == "left" else 0.73), FILM_HEIGHT / 2
    if scene.motion == "moves":
        y += 20 * math.sin(second)
    paint_figure(picture, scene.figure, (x, y), reach, COLOURS[scene.colour])
    return picture


def _draw_sign(sign: Sign) -> Image.Image:
    """A pattern that looks the same everywhere in the picture."""
    row_H, column_W = (np.arange(size) // PATTERN_PX % 2 for size in (FILM_HEIGHT, FILM_WIDTH))
    coloured_HW = {
        "stripes": np.broadcast_to(column_W, (FILM_HEIGHT, FILM_WIDTH)),
        "bars": np.broadcast_to(row_H[:, None], (FILM_HEIGHT, FILM_WIDTH)),
        "checks": row_H[:, None] ^ column_W,
    }[sign.pattern]
    palette = np.array([GREY, COLOURS[sign.colour]], np.uint8)
    return Image.fromarray(palette[coloured_HW])


def write_long_film(path: Path, film: LongFilm, fps: int = 1) -> None:
    """Encode the film as H.264; at one frame a second an hour takes seconds."""
    frames = (np.asarray(draw(film, number / fps)) for number in range(film.duration * fps))
    temporary = path.with_name(f".tmp-{path.name}")
    write_h264(temporary, frames, fps, 30, "ultrafast", {})
    temporary.replace(path)


# --- Questions
# -----------------------------------------------------------------------------------------------


def about_long_film(film: LongFilm) -> list[LongQuestion]:
    """One question of every kind that the film can be asked; about its signs alone where it has
    any.
    """
    if film.signs:
        return about_signs(film)
    dice = random.Random(f"long questions/{film.name}")
    return [question for kind in KINDS for question in kind(film, dice)]


def about_clip(film: LongFilm) -> list[LongQuestion]:
    """Questions about a clip's scenes; none about seconds or flashes, for which it is too short."""
    first, last = film.scenes
    ask = "What colour is the background"
    asked = [
        LongQuestion("clip", f"{ask} at the beginning?", first.background, _COLOURS),
        LongQuestion("clip", f"{ask} at the end?", last.background, _COLOURS),
        LongQuestion("clip", f"{ask} after {first.background}?", last.background, _COLOURS),
    ]
    for scene in film.scenes:
        where = f"on the {scene.background} background"
        asked += [
            LongQuestion("clip", f"What colour is the figure {where}?", scene.colour, _COLOURS),
            LongQuestion("clip", f"Which figure is {where}?", scene.figure, FIGURES),
            LongQuestion("clip", f"Is the figure left or right {where}?", scene.side, SIDES),
            LongQuestion(
                "clip", f"What does the figure do {where}, moves or rests?", scene.motion, MOTIONS
            ),
        ]
    return asked


def about_signs(film: LongFilm) -> list[LongQuestion]:
    """The colour of each sign."""
    return [
        LongQuestion(
            f"sign: {sign.pattern}",
            f"What colour are the {sign.pattern}?",
            sign.colour,
            _COLOURS,
            (sign.second, sign.second + sign.seconds),
        )
        for sign in film.signs
    ]


def tasks() -> set[str]:
    """The kinds of questions that films are asked."""
    films = [invent_long_film(f"any/{number}", 300) for number in range(30)]
    return {question.task for film in films for question in about_long_film(film)}


Kind = Callable[[LongFilm, random.Random], Iterator[LongQuestion]]
_COLOURS = tuple(COLOURS)


def _other_than(colour: str) -> tuple[str, ...]:
    """The colours that an answer can be which a question has excluded one of."""
    return tuple(other for other in COLOURS if other != colour)


def _scenes(film: LongFilm, dice: random.Random) -> Iterator[LongQuestion]:
    first, last = film.scenes[0], film.scenes[-1]
    before, after = dice.choice(list(zip(film.scenes, film.scenes[1:], strict=False)))
    second, scene = _moment(film, dice)

    def ask(task: str, where: str, answer: str, evidence: tuple[float, float]) -> LongQuestion:
        return LongQuestion(
            f"scene: {task}", f"What colour is the background {where}?", answer, _COLOURS, evidence
        )

    yield ask("at a second", f"at second {second}", scene.background, (second, second + 1))
    yield ask("first", "at the beginning", first.background, (0, first.end))
    yield ask("last", "at the end", last.background, (last.start, last.end))
    text = f"What colour is the background after {before.background}?"
    during = (before.end, after.start + 1)
    yield LongQuestion(
        "scene: next", text, after.background, _other_than(before.background), during
    )
    count = NUMBERS[len(film.scenes)]
    yield LongQuestion(
        "scene: count", "How many different backgrounds are there?", count, NUMBERS[3:6]
    )


def _objects(film: LongFilm, dice: random.Random) -> Iterator[LongQuestion]:
    scene, (second, shown) = dice.choice(film.scenes), _moment(film, dice)
    figures = {scene.figure for scene in film.scenes}
    absent = sorted(set(FIGURES) - figures)
    # As often there as not, where both can be.
    wanted = dice.choice(sorted(figures) if dice.random() < 0.5 or not absent else absent)
    where, during = f"on the {scene.background} background", (scene.start, scene.end)
    text = f"What colour is the figure {where}?"
    # Never that of its background, which the question names.
    others = _other_than(scene.background)
    yield LongQuestion("object: colour", text, scene.colour, others, during)
    text = f"Which figure is in the picture at second {second}?"
    yield LongQuestion("object: at a second", text, shown.figure, FIGURES, (second, second + 1))
    yield LongQuestion("object: figure", f"Which figure is {where}?", scene.figure, FIGURES, during)
    there = "yes" if wanted in figures else "no"
    yield LongQuestion("object: existence", f"Is there a {wanted} in the video?", there, YES_NO)
    text = "How many different figures are there?"
    yield LongQuestion("object: count", text, NUMBERS[len(figures)], NUMBERS[1:4])


def _space(film: LongFilm, dice: random.Random) -> Iterator[LongQuestion]:
    scene, (second, shown) = dice.choice(film.scenes), _moment(film, dice)
    where, during = f"on the {scene.background} background", (scene.start, scene.end)
    text = f"Is the figure left or right at second {second}?"
    yield LongQuestion("space: at a second", text, shown.side, SIDES, (second, second + 1))
    yield LongQuestion(
        "space: side", f"Is the figure left or right {where}?", scene.side, SIDES, during
    )
    yield LongQuestion(
        "space: size", f"Is the figure small or large {where}?", scene.size, SIZES, during
    )


def _action(film: LongFilm, dice: random.Random) -> Iterator[LongQuestion]:
    scene = dice.choice(film.scenes)
    before, after = dice.choice(list(zip(film.scenes, film.scenes[1:], strict=False)))

    def ask(task: str, where: str, scene: Scene) -> LongQuestion:
        text = f"What does the figure do {where}, moves or rests?"
        return LongQuestion(
            f"action: {task}", text, scene.motion, MOTIONS, (scene.start, scene.end)
        )

    yield ask("in a scene", f"on the {scene.background} background", scene)
    yield ask("next", f"after {before.background}", after)


def _events(film: LongFilm, dice: random.Random) -> Iterator[LongQuestion]:
    text = "Is there a flash in the video?"
    yield LongQuestion("event: existence", text, "yes" if film.flashes else "no", YES_NO)
    text = "How many flashes are there?"
    yield LongQuestion("event: count", text, NUMBERS[len(film.flashes)], NUMBERS[:3])
    if len(film.flashes) == 1:
        [(second, colour)] = film.flashes
        during = (second, second + FLASH_S)
        yield LongQuestion("event: colour", "What colour is the flash?", colour, _COLOURS, during)
        background = film.scene_at(second).background
        yield LongQuestion(
            "event: scene", "On which background is the flash?", background, _COLOURS, during
        )


def _time(film: LongFilm, dice: random.Random) -> Iterator[LongQuestion]:
    one, other = dice.sample(film.scenes, 2)
    earlier = min(one, other, key=lambda scene: scene.start)
    longest = max(film.scenes, key=lambda scene: scene.end - scene.start)
    text = f"Which background comes first, {one.background} or {other.background}?"
    yield LongQuestion("time: order", text, earlier.background, (one.background, other.background))
    yield LongQuestion(
        "time: longest", "Which background lasts longest?", longest.background, _COLOURS
    )
    if len(film.flashes) == 1:
        [(second, _)] = film.flashes
        quarter, during = QUARTERS[second * 4 // film.duration], (second, second + FLASH_S)
        yield LongQuestion(
            "time: quarter", "In which quarter is the flash?", quarter, QUARTERS, during
        )


KINDS: tuple[Kind, ...] = (_scenes, _objects, _space, _action, _events, _time)


def _moment(film: LongFilm, dice: random.Random) -> tuple[int, Scene]:
    """A second well inside a scene and away from flashes."""
    while True:
        second = dice.randrange(film.duration)
        scene = film.scene_at(second)
        clear = scene.start + CLEAR_S <= second < scene.end - CLEAR_S
        if clear and all(
            not start - CLEAR_S <= second < start + FLASH_S + CLEAR_S for start, _ in film.flashes
        ):
            return second, scene
