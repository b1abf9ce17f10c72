"""Settings that decide what a product is, and that no input of it tells: a product that was made
with others is out of date.
"""

from __future__ import annotations

from typing import Any

from assets.deployment.settings import Settings
from assets.records.lineage import product
from training.formats import layout


def deciding_settings(settings: Settings) -> dict[str, dict[str, Any]]:
    """Product, or asset where it is the same of all its products -> key of its record's `config` ->
    the value that it would have today.
    """
    starts: dict[str, dict[str, Any]] = {
        product("base_model", name): {"start": variant.facts}
        for name, variant in settings.variants.items()
    }
    split = {"held_out_share": settings.held_out_share}
    return {
        **starts,
        "conversations": split,
        "held_out_questions": split,
        layout.MIXTURE: {"long_videos_only": settings.training.long_videos_only},
    }
