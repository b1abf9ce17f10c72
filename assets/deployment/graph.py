"""What the graph of this deployment holds, by its settings: stages that no variant trains, and what
only they would read, are left out.
"""

from __future__ import annotations

from assets.deployment.settings import load_settings
from assets.deployment.variants import collections_of, trained
from training.formats.kinds import MIXED_KINDS
from training.recipes import STAGES

SETTINGS = load_settings()
VARIANTS = SETTINGS.variants
LONG_VIDEOS_ONLY = SETTINGS.training.long_videos_only
CAPTIONS_POOL, QUESTIONS_POOL = SETTINGS.questions.pools
ABLATION = SETTINGS.ablation
HOLDS_OUT = SETTINGS.held_out_share > 0

TRAINED_STAGES = tuple(stage for stage in STAGES if trained(VARIANTS, stage))
# Kinds of shards of the LLaVA collections, those of them in the mixture, and the collections.
LLAVA_READ = SETTINGS.llava_kinds
MIXED_READ = () if LONG_VIDEOS_ONLY else MIXED_KINDS
COLLECTIONS = collections_of(LLAVA_READ)
# LLaVA parts of which features of the short videos are kept; none where they are not.
SHORT_VIDEO_PARTS = SETTINGS.short_video_parts
