"""The page's form for how a checkpoint is asked; closed, everything is as in training."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from nicegui import ui

from model.options import MOST_SEED, TEMPLATE_TOKENS, AskOptions

AS_TRAINED = "as trained"
SHARES = {"1": "all of it", "1/2": "1/2", "1/4": "1/4", "1/8": "1/8", "0": "only what stays"}


class OptionsForm:
    """Inputs that make `AskOptions`."""

    def __init__(self) -> None:
        with ui.expansion("Options").classes("w-full").props('dense data-testid="options"'):
            self.scale = ui.select(
                {"": AS_TRAINED, **SHARES}, label="Memory that MemAug looks up", value=""
            )
            self.frames = ui.number("Frames that stay as queries", min=1, precision=0)
            self.template = ui.select(
                {"": AS_TRAINED, **{name: name for name in TEMPLATE_TOKENS}},
                label="Template tokens, to MemAug",
                value="",
            )
            self.seed = ui.number("Forget at random, by this seed", min=0, precision=0)
            for field in (self.scale, self.frames, self.template, self.seed):
                field.classes("w-full").props("dense")
            for field, usual in ((self.frames, AS_TRAINED), (self.seed, "nothing is drawn")):
                field.props(f'clearable stack-label placeholder="{usual}"')

    def options(self) -> AskOptions:
        """What is chosen.

        Raises:
            ValueError: an input that has no meaning.
        """
        return AskOptions(
            memory_scale=float(Fraction(self.scale.value)) if self.scale.value else None,
            kept_frames=_whole(self.frames.value),
            template_tokens=self.template.value or None,
            forgetting_seed=_whole(self.seed.value),
        )


def _whole(value: Any) -> int | None:
    """A number of the form, which a browser may give as a fraction, or as nothing."""
    if value is None or value == "":
        return None
    if not abs(value) <= MOST_SEED or value != int(value):
        raise ValueError(f"{value} is no whole number that is meant here")
    return int(value)
