"""Settings of what fine-tuning should need."""

from __future__ import annotations

from pydantic import Field, field_validator

from model.configuration import Section
from training.rates import card_of


class Estimate(Section):
    """What an estimate of hours, disk and money is for: `hourllava estimate`, the doctor, and the
    job `fine_tune`.
    """

    card: str | None = Field(
        default=None,
        description="a card by name (RTX 4090) or memory (24GiB); default: the machine's own",
    )
    price: float | None = Field(
        default=None, ge=0, description="of a card and an hour, in any money"
    )

    @field_validator("card")
    @classmethod
    def _known_card(cls, value: str | None) -> str | None:
        if value is not None:
            card_of(value)
        return value
