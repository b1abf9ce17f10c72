"""What a check of a finished product found, in words and numbers; ``assets/records/reporting.py``
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
        says: what was found, and what to do where something is wrong.
        passed: whether all is well.
        severe: where it is not: whether the product must not be used. Otherwise it is only
            something to look at. That is a matter of the check and not of what it found.
        facts: numbers and tables behind the sentence, by name.
    """

    check: str
    says: str
    passed: bool = True
    severe: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stops(self) -> bool:
        """Whether nothing may be made from the product."""
        return self.severe and not self.passed
