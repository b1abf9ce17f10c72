"""Attention over a video as a picture: a band as long as the player is wide, and the places to look
at first.
"""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT = 1000, 36  # of the picture's own units
MOST_BINS = 250


def bins(shares: Sequence[float], most: int = MOST_BINS) -> list[float]:
    """Shares of frames as shares of at most so many equal stretches of the video."""
    count = min(most, len(shares))
    summed = [0.0] * count
    for place, share in enumerate(shares):
        summed[place * count // len(shares)] += share
    return summed


def band_svg(shares: Sequence[float]) -> str:
    """What stands inside an <svg> of WIDTH x HEIGHT: the more attention, the darker and higher.

    Made of numbers alone.
    """
    summed = bins(shares)
    step, highest = WIDTH / len(summed), max(summed) or 1.0
    bars = []
    for place, share in enumerate(summed):
        height, opacity = HEIGHT * share / highest, 0.25 + 0.75 * share / highest
        bars.append(
            f'<rect x="{place * step:.2f}" y="{HEIGHT - height:.2f}" width="{step:.2f}" '
            f'height="{height:.2f}" fill="#1d4ed8" fill-opacity="{opacity:.2f}"/>'
        )
    ground = f'<rect x="0" y="0" width="{WIDTH}" height="{HEIGHT}" fill="#e5e7eb"/>'
    return ground + "".join(bars)


def peaks(shares: Sequence[float], duration: float, most: int = 3) -> list[float]:
    """Seconds of the stretches that got the most attention, none beside another; in time."""
    summed = bins(shares)
    chosen: list[int] = []
    for place in sorted(range(len(summed)), key=lambda at: -summed[at]):
        if all(abs(place - other) > 1 for other in chosen):
            chosen.append(place)
        if len(chosen) == most:
            break
    return [duration * (place + 0.5) / len(summed) for place in sorted(chosen)]


def clock(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
