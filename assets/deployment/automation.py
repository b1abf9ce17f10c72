"""When assets are materialized by themselves.

Two rules, and two sensors (`pipeline/sensors.py`) that evaluate them: data assets follow new
data, one part at a time; training waits for the night, for all parts, and for contents that really
changed. Both ask whether an input's *content* changed. Dagster's `eager` also fires when an input
was made again with the same bytes, and that must not cost a day of GPU time.
"""

from __future__ import annotations

import dagster as dg

AC = dg.AutomationCondition

DATA = {"hourllava/automation": "data"}
TRAINING = {"hourllava/automation": "training"}
BY_HAND = {"hourllava/automation": "by-hand"}
WATCHED = {"hourllava/automation": "watched"}
NIGHTLY = "0 2 * * *"

# For steps that mostly ask other machines: a server that is down for minutes should not cost a
# night. What a person must mend is raised as a Failure that forbids retries (`errors_for_people`);
# what was fetched is not fetched again. Trainings are not retried: a person should know why one
# failed, and the next materialization continues from its last checkpoint.
RETRY_NETWORK = dg.RetryPolicy(
    max_retries=3, delay=60, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
)

# Dagster's own `all_deps_blocking_checks_passed` holds when one partition of each input has passed.
# This one holds only while no partition has failed. A part without a check result does not block:
# parts may be older than their checks.
_NO_CHECK_FAILED = (
    ~AC.any_deps_match(AC.any_checks_match(AC.check_failed(), blocking_only=True))
).with_label("no blocking check of an input has failed")

_READY = ~AC.any_deps_missing() & ~AC.any_deps_in_progress() & ~AC.in_progress() & _NO_CHECK_FAILED
_NEWLY_MISSING = AC.missing().newly_true().since(AC.newly_requested())
_INPUT_CHANGED = AC.any_deps_match(AC.data_version_changed())
_REQUESTED, _FIRST = AC.newly_requested(), AC.initial_evaluation()


def _since_requested(changed: dg.AutomationCondition) -> dg.AutomationCondition:
    """Whether an input changed after the asset was last requested, also while it was being made.

    `since_last_handled` would forget changes that come during a long run.
    """
    return changed.since(_REQUESTED | _FIRST)


_CONTENT_CHANGED = _since_requested(_INPUT_CHANGED)
# `_since_requested` forgets a change that is seen in the first evaluation after a request. That is
# right for an asset that is requested together with its input. A training is requested alone, so
# this remembers such a change.
_CHANGED_RIGHT_AFTER_REQUEST = (_INPUT_CHANGED & _REQUESTED).since(
    (_REQUESTED & ~_INPUT_CHANGED) | _FIRST
)

# For what a person starts once: from then on it follows its inputs, but it never starts by itself.
FOLLOW_CONTENT = (_CONTENT_CHANGED & ~AC.missing() & _READY).with_label(
    "when an input's content changes"
)

# For one part of something: made once when the part appears, and again when the part's own inputs
# change.
FILL_AND_FOLLOW = ((_NEWLY_MISSING | _CONTENT_CHANGED) & _READY).with_label(
    "each new part, and when its inputs change"
)

NIGHTLY_IF_NEW_DATA = (
    AC.cron_tick_passed(NIGHTLY) & (_CONTENT_CHANGED | _CHANGED_RIGHT_AFTER_REQUEST) & _READY
).with_label("nightly, only if contents changed")
