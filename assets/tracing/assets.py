"""The front page: an asset that says what to do next. Nothing is made from it."""

import dagster as dg

from assets.deployment.automation import WATCHED
from assets.records.publishing import OWNERS

# A digit comes before every letter, in each list of the UI.
FRONT_PAGE = "0_start_here"

start_here = dg.AssetSpec(
    FRONT_PAGE,
    group_name=FRONT_PAGE,
    kinds={"dagster"},
    owners=OWNERS,
    tags=WATCHED,
    description="""Where to begin, what is missing, what is broken, and which job is next.

The newest entry below is the deployment as it is now. The sensor `tell_front_page` adds one when
something changed; no run is spent on it. The jobs, in the order of use: `collect_sources`,
`shard_llava`, `acquire_videos`, `shard_long_videos`, `train_to_stage2`, `extract_features`, `mix`,
`train_stage3`; or all of them for one variant: `everything_for_variant`.""",
)
