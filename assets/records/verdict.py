"""What a check of a finished product found, in words and numbers. `assets/records/publishing.py`
tells it to Dagster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one check.

    Attributes:
        check: its name, unique among the checks of the asset.
        message: what was found, and what to do where something is wrong.
        passed: whether all is well.
        blocking: whether the product must not be used where the check does not pass. Otherwise
            that is only something to look at. It depends on the check, not on what it found.
        facts: numbers and tables behind the message, by name.
    """

    check: str
    message: str
    passed: bool = True
    blocking: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def blocks(self) -> bool:
        """Whether nothing may be made from the product."""
        return self.blocking and not self.passed
