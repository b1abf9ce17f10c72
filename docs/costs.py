"""The table of docs/costs.md: what `hourllava estimate` says of the example of own videos, card by
card.

python -m docs.costs            # prints it
python -m docs.costs --write    # puts it into the page
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

from assets.deployment.settings import Settings, load_settings
from pipeline.estimate.machine import machine_of
from pipeline.estimate.material import given_material
from pipeline.estimate.needs import needs_of

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "costs.md"
BEGIN, END = "<!-- printed by docs/costs.py -->", "<!-- end -->"
EXAMPLE = REPOSITORY / "pipeline" / "examples" / "own_videos.yaml"
HOURS, VIDEOS, QUESTIONS = 100, 200, 2000
CARDS = ("RTX 3090", "RTX 4090", "L4", "RTX 5090", "A40", "L40S", "A100 80GB", "H100 SXM", "H200")
# What is tuned: the preset, and whether through adapters on the language model.
TUNED = {
    "3B, adapters": ("3b", True),
    "3B, all of stage 3": ("3b", False),
    "7B, adapters": ("7b", True),
    "7B, all of stage 3": ("7b", False),
}
DOES_NOT_FIT = "does not fit"


@cache
def _settings(preset: str, adapted: bool) -> Settings:
    """The example of own videos with another preset, or without adapters."""
    example = load_settings(EXAMPLE)
    (name,) = example.variants
    variant = example.variants[name].model_copy(update={"preset": preset})
    stage3 = dict(example.training.overrides["stage3"])
    if not adapted:
        del stage3["lora"]
    training = example.training.model_copy(update={"overrides": {"stage3": stage3}})
    return example.model_copy(update={"variants": {name: variant}, "training": training})


def hours_of_card(card: str, preset: str, adapted: bool) -> float | None:
    """Hours in which one card is held; None where it does not fit into it."""
    settings = _settings(preset, adapted)
    (name,) = settings.variants
    material = given_material(HOURS, VIDEOS, QUESTIONS)
    try:
        return needs_of(settings, name, material, machine_of(card, 1), None).card_hours
    except ValueError:
        return None


def table() -> str:
    """A row for each card."""
    rows = [["one card", *TUNED], ["---"] * (len(TUNED) + 1)]
    for card in CARDS:
        found = [hours_of_card(card, *tuned) for tuned in TUNED.values()]
        rows.append([card, *(DOES_NOT_FIT if one is None else f"{one:.1f} h" for one in found)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def written() -> str:
    """The whole page with the table of today."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put it into docs/costs.md")
    if parser.parse_args().write:
        PAGE.write_text(written())
    else:
        print(table())


if __name__ == "__main__":
    main()
