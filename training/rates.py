"""Rates that were measured, and where; and which share of them a card has by its maker's figures.

What a run or a deployment should need is arithmetic over these. No torch here: the command line
reads this module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Rate:
    """A measured rate; `docs/performance.md` tells how it was measured.

    Attributes:
        on: the machine, and what was done there.
    """

    value: float
    unit: str
    on: str


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU.

    Attributes:
        gib: its memory, as the maker counts it.
        teraflops: of dense bfloat16 products with float32 sums, as the maker states them. Only the
            H200 was measured.
        driver: what the driver calls it, where that has not all words of the name.
    """

    name: str
    gib: int
    teraflops: float
    driver: str = ""

    @property
    def memory(self) -> float:
        """Bytes."""
        return float(self.gib * GIB)

    @property
    def share(self) -> float:
        """Of the speed of the card that rates were measured on."""
        return self.teraflops / CARDS[MEASURED_ON].teraflops

    @property
    def stated(self) -> float:
        """Floating point operations a second of bfloat16 products, as the maker's datasheet has
        them.
        """
        return self.teraflops * 1e12

    @property
    def products(self) -> float:
        """Floating point operations a second that bfloat16 products reach: measured on an H200,
        its share of that on another card.
        """
        return self.share * RATES["rate of a matrix product, H200"].value * 1e12


MEASURED_ON = "H200"
CARDS = {
    card.name: card
    for card in (
        Card("H200", 140, 989),
        Card("H100 SXM", 80, 989, driver="H100 80GB HBM3"),
        Card("H100 NVL", 94, 835),
        Card("H100 PCIe", 80, 756),
        Card("A100 80GB", 80, 312),
        Card("A100 40GB", 40, 312),
        Card("L40S", 48, 362),
        Card("L40", 48, 181),
        Card("RTX 6000 Ada", 48, 364),
        Card("RTX A6000", 48, 155),
        Card("A40", 48, 150),
        Card("RTX 5090", 32, 210),
        Card("RTX 4090", 24, 165),
        Card("L4", 24, 121),
        Card("A10", 24, 125),
        Card("A10G", 24, 70),
        Card("RTX 3090", 24, 71),
    )
}

# By what they are a rate of; the same names stand in docs/estimate.md.
RATES = {
    "download": Rate(
        71, "MiB/s", "two shared cores: fetched, examined, hashed and published, four at a time"
    ),
    "features, one H200 and 16 cores": Rate(
        626, "h of video an hour", "14 decoding processes, 640x360 H.264 of 0.5 Mbit/s"
    ),
    "vision encoder alone, H200": Rate(730, "frames/s", "one H200, batches of 512"),
    "CPU time of one sampled second of video": Rate(22.1, "ms", "640x360 H.264 of 0.5 Mbit/s"),
    "grouping of all rows": Rate(30.8, "s", "two cores, 3.3 million rows"),
    "rate of a matrix product, H200": Rate(790, "TFLOP/s", "one H200, 8192 x 8192 in bfloat16"),
    "MFU of stage 1, 3B": Rate(0.543, "", "one H200, images cut into tiles"),
    "MFU of stage 2, 3B": Rate(0.456, "", "one H200, short videos, images, texts"),
    "MFU of stage 3, 3B": Rate(0.525, "", "one H200, videos of 3 to 60 minutes, and texts"),
    "MFU of stage 3, short videos, 3B": Rate(0.421, "", "one H200, frozen vision encoder"),
    "MFU of stage 3, kept short videos, 3B": Rate(0.539, "", "one H200, features from files"),
    "MFU of stage 3, 7B": Rate(0.605, "", "two H200, hour-long samples"),
    "reading an hour, 3B, H200": Rate(0.28, "s", "one H200, prefill of 3,600 frames' features"),
    "a written token, 3B, H200": Rate(6.6, "ms", "one H200, after the hour"),
}
DECODERS = 14  # processes that the rate of features was measured with
GROUPED_ROWS = 3_300_000  # that the time of grouping is of


# Other cards that have all words of a name, and are slower.
_SIZE = re.compile(r"(?P<gib>\d{1,3}) *(?:GiB|GB|G)?", re.IGNORECASE)  # a card may be called 4090
_NOT_THE_SAME = {"laptop", "mobile", "d", "max", "mig"}


def card_of(text: str) -> tuple[Card, bool]:
    """The card that a person means by its name (`RTX 4090`, or as the driver has it), or by its
    memory (`24GiB`): then the slowest known one that has so much.

    Returns:
        The card, and whether it was called by its memory alone.

    Raises:
        ValueError: none that is known, or not which of several; names the known ones.
    """
    known = ", ".join(f"{card.name} ({card.gib} GiB)" for card in CARDS.values())
    if size := _SIZE.fullmatch(text.strip()):
        fitting = [card for card in CARDS.values() if card.gib == int(size["gib"])]
        if not fitting:
            raise ValueError(f"no known card has {size['gib']} GiB; known: {known}")
        return min(fitting, key=lambda card: card.teraflops), True
    found = card_called(text)
    if found is None:
        raise ValueError(f"{text!r} is none of the known cards, or not one alone; known: {known}")
    return found, False


def card_called(name: str) -> Card | None:
    """The card of a name; None where the name does not decide it."""
    words = _words(name)
    if words & _NOT_THE_SAME:
        return None
    fitting = [
        card
        for card in CARDS.values()
        if any(_words(called) <= words for called in (card.name, card.driver) if called)
    ]
    if not fitting and words:  # less than the whole name
        fitting = [card for card in CARDS.values() if words <= _words(card.name)]
    return fitting[0] if len(fitting) == 1 else None


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.casefold())) - {""}
