"""What can be estimated: one's own videos alone, with a preset that something was measured of. No
torch here.
"""

from __future__ import annotations

from assets.deployment.settings import Settings


def refuse_others(settings: Settings, variant: str) -> None:
    """Raise ValueError where nothing was measured for a variant, or where it is trained on more
    than own videos.
    """
    chosen = settings.variants[variant]
    if chosen.fits_cpu:
        raise ValueError(f"{variant}: no rate was measured for the preset {chosen.preset}")
    if chosen.first_stage < 3 or not settings.training.long_videos_only:
        raise ValueError(
            f"{variant} is trained on the LLaVA collections as well; docs/estimate.md has the "
            "published recipe. Own videos alone: training.long_videos_only, and a start of stage 2 "
            "or 3"
        )
