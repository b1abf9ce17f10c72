"""How long videos are, as a small picture for a materialization's page."""

from __future__ import annotations

import io
from collections.abc import Sequence

BINS = 30


def duration_histogram(seconds: Sequence[float], title: str) -> bytes:
    """PNG of how many videos are how long: about 8 kB, since it is kept in the event log.

    Durations are in minutes where one is longer than ten of them, else in seconds.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scale, unit = (60, "minutes") if max(seconds, default=0) > 600 else (1, "seconds")
    figure = Figure(figsize=(6, 2.2), dpi=80, layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.hist([value / scale for value in seconds], bins=BINS, color="#4c78a8")
    axes.set_xlabel(f"duration, {unit}")
    axes.set_ylabel("videos")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
