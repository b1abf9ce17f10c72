"""The front page: an asset that says what to do next. Nothing is made from it."""

import dagster as dg

from assets.automation.rules import WATCHED
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
something changed; no run is spent on it. The numbers of the jobs are the order of use; all of them
for one variant: `02_everything_for_variant`.""",
)
