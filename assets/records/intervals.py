"""How sure a share is that was counted on a sample."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Z95 = 1.959964  # two-sided
# The same of Student's t, by degrees of freedom from 1 on.
T95 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip


def wilson(counted: int, asked: int) -> tuple[float, float]:
    """The 95 % interval of a share, after Wilson (1927): it also holds near 0 and 1, and for few
    questions (0 to 1 for none).
    """
    if not asked:
        return 0.0, 1.0
    share, z2 = counted / asked, Z95**2
    middle = (share + z2 / (2 * asked)) / (1 + z2 / asked)
    reach = Z95 / (1 + z2 / asked) * math.sqrt(share * (1 - share) / asked + z2 / (4 * asked**2))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def student_reach(values: Sequence[float]) -> float | None:
    """How far the 95 % interval of a mean reaches to each side, by Student's t; None for a single
    value. Beyond 31 values the last quantile of the table is taken, which is a little too wide.
    """
    if len(values) < 2:
        return None
    quantile = T95[min(len(values) - 1, len(T95)) - 1]
    return quantile * statistics.stdev(values) / math.sqrt(len(values))
