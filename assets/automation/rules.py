"""When assets are materialized by themselves.

A rule stands beside each asset, and two sensors (`pipeline/sensors.py`) evaluate them: data assets
follow new data, one part at a time; training waits for the night, for all parts, and for contents
that really changed.

The rules ask what is on record, not what happened: a product is due when it was made from other
versions than those of today (`assets/automation/state.py`). Each state of its inputs is asked for
once. A run that failed by the machine is tried again, as often as the settings say.
"""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

from assets.automation.conditions import Due, InputsReady, NotTriedInVain
from assets.deployment.settings import load_settings

AC = dg.AutomationCondition

DATA = {"hourllava/automation": "data"}
TRAINING = {"hourllava/automation": "training"}
BY_HAND = {"hourllava/automation": "by-hand"}
WATCHED = {"hourllava/automation": "watched"}

_SETTINGS = load_settings().automation

# Of outside data: somebody was able to look at it lately. There is none where no sensor looks. What
# is made from it has none either: it is made again when its inputs change, not by the clock.
LOOKED_AT = (
    dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=_SETTINGS.look_within_h))
    if _SETTINGS.data
    else None
)

# For steps that mostly ask other machines: a server that is down for minutes should not cost a
# night. What a person must mend is raised as a Failure that forbids retries (`errors_for_people`);
# what was fetched is not fetched again. Steps of other sorts are tried again as new runs, by
# automation (`NotTriedInVain`).
RETRY_NETWORK = dg.RetryPolicy(
    max_retries=3, delay=60, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
)

# Dagster's own `all_deps_blocking_checks_passed` holds when one partition of each input has passed.
# This one holds only while no partition has failed. A part without a check result does not block:
# parts may be older than their checks.
_NO_CHECK_FAILED = (
    ~AC.any_deps_match(AC.any_checks_match(AC.check_failed(), blocking_only=True))
).with_label("no blocking check of an input has failed")

_READY = InputsReady() & ~AC.any_deps_in_progress() & ~AC.in_progress() & _NO_CHECK_FAILED

# For what a person starts once: from then on it follows its inputs, but it never starts by itself.
FOLLOW_CONTENT = (Due(fills=False) & _READY & NotTriedInVain()).with_label(
    "when an input's content changes"
)

# For one part of something: made when the part appears, and again when the part's inputs change.
FILL_AND_FOLLOW = (Due(fills=True) & _READY & NotTriedInVain()).with_label(
    "each new part, and when its inputs change"
)

NIGHTLY_IF_NEW_DATA = (
    Due(fills=False)
    & _READY
    & NotTriedInVain(AC.cron_tick_passed(_SETTINGS.training_at, _SETTINGS.time_zone))
).with_label("nightly, only if contents changed")
