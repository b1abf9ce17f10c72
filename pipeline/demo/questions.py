"""Questions about the demo's pictures and films, with the answers that the drawings make true."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from pipeline.demo.drawing import COLOURS, FIGURES, Film, Picture

LETTERS = "ABCD"
BACKGROUND = "The background is {}."
CLEAR_OF_CHANGE_S = (
    2  # a question about a second keeps this far from the moments at which the colour changes
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answer.

    Attributes:
        task: what it asks for ("background", "colour at a second", ...).
        choices: the answers that stand for election when candidates are compared; empty for a free
            description.
        form: `oe` (open-ended) or `mc` (the options stand inside the question, the answer opens
            with a letter).
        sentence: the answer as a sentence, with `{}` in its place; "{}" where it is one already, or
            has to stay as it is.
    """

    task: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()
    form: str = "oe"
    sentence: str = "{}"

    def in_a_sentence(self) -> Question:
        """The same with answers as a language model gives them that has learned to write."""
        choices = tuple(self.sentence.format(choice) for choice in self.choices)
        return replace(self, answer=self.sentence.format(self.answer), choices=choices)


def about_picture(picture: Picture) -> list[Question]:
    colours = tuple(COLOURS)
    return [
        Question(
            "background",
            "What is the colour of the background?",
            picture.background,
            colours,
            sentence=BACKGROUND,
        ),
        Question(
            "figure colour",
            f"What colour is the {picture.figure}?",
            picture.colour,
            colours,
            sentence=f"The {picture.figure} is {{}}.",
        ),
        Question(
            "figure",
            "Which figure is in the picture?",
            picture.figure,
            FIGURES,
            sentence="There is a {} in the picture.",
        ),
    ]


def about_film(film: Film, name: str, moments: int) -> list[Question]:
    """Questions about the background, the first and the last colour, the order, and `moments`
    single seconds.
    """
    dice = random.Random(f"questions/{name}")
    colours = tuple(COLOURS)
    questions = [
        Question(
            "background",
            "What is the colour of the background?",
            film.background,
            colours,
            sentence=BACKGROUND,
        ),
        Question(
            "first colour",
            "What colour is the square at the beginning?",
            film.colours[0],
            colours,
            sentence="The square is {} at the beginning.",
        ),
        Question(
            "last colour",
            "What colour is the square at the end?",
            film.colours[-1],
            colours,
            sentence="The square is {} at the end.",
        ),
    ]
    for before, after in zip(film.colours, film.colours[1:], strict=False):
        questions.append(
            Question(
                "next colour",
                f"What colour does the square have after {before}?",
                after,
                colours,
                sentence=f"After {before} the square is {{}}.",
            )
        )
    clear = [
        second
        for second in range(film.duration)
        if all(abs(second - change) >= CLEAR_OF_CHANGE_S for change, _ in film.changes[1:])
    ]
    for second in sorted(dice.sample(clear, min(moments, len(clear)))):
        text = f"What colour is the square at second {second}?"
        questions.append(
            Question(
                "colour at a second",
                text,
                film.colour_at(second),
                colours,
                sentence=f"At second {second} the square is {{}}.",
            )
        )
    return questions


def as_multiple_choice(question: Question, name: str) -> Question:
    """The same question with four lettered options inside, answered by letter and text."""
    dice = random.Random(f"options/{name}/{question.text}")
    others = [choice for choice in question.choices if choice != question.answer]
    options = [question.answer, *dice.sample(others, min(len(LETTERS), len(question.choices)) - 1)]
    dice.shuffle(options)
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    answer = next(line for line in lines if line[3:] == question.answer)
    return Question(
        question.task, "\n".join([question.text, *lines]), answer, tuple(lines), form="mc"
    )


def caption(film: Film) -> Question:
    """A free description of the film."""
    course = ", then ".join(film.colours)
    answer = f"A square on a {film.background} background. The square is {course}."
    return Question("caption", "Describe the video.", answer)


def arithmetic() -> list[Question]:
    """Text-only questions: sums and comparisons of small numbers."""
    digits = range(10)
    sums = [
        Question("sum", f"What is {a} plus {b}?", str(a + b), sentence=f"{a} plus {b} is {{}}.")
        for a in digits
        for b in digits
    ]
    larger = [
        Question(
            "larger number",
            f"Which number is larger, {a} or {b}?",
            str(max(a, b)),
            sentence="The larger number is {}.",
        )
        for a in digits
        for b in digits
        if a != b
    ]
    return sums + larger
