"""How sure a share is that was counted on a sample."""

from __future__ import annotations

import math

Z95 = 1.959964  # two-sided


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
