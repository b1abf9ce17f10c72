"""The loss of a run as a small picture, for the materialization's page."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from training.metrics import METRICS_NAME, read_metrics
from training.run_config import RunConfig

MOST_POINTS = 2000
# The small picture has to fit into the Markdown that the UI shows without a click.
SMALL, SMALL_STEP = (240, 60), 6
SMALL_COLOURS = [255, 255, 255, 76, 120, 168, 245, 133, 24, 160, 160, 160]


def loss_curve(run: RunConfig) -> bytes:
    """PNG of the loss over the steps, with its running mean: about 20 kB, since it is kept in the
    event log.

    Raises:
        ValueError: the run has recorded no step.
    """
    records = list(read_metrics(Path(run.out) / METRICS_NAME))
    if not records:
        raise ValueError(f"{run.out}: no step in {METRICS_NAME}; the run has not started")
    return draw(records, f"{run.variant}, stage {run.stage}")


def small_loss_curve(run: RunConfig) -> bytes:
    """PNG of a few hundred bytes: the running mean of each stream's loss, from the first step on
    the left to the last one on the right, zero at the bottom.
    """
    from PIL import Image, ImageDraw

    streams: dict[str, list[float]] = {}
    for record in read_metrics(Path(run.out) / METRICS_NAME):
        if record["loss"] is not None:
            streams.setdefault(record.get("stream", ""), []).append(record["loss"])
    means = [_running_mean(losses) for _, losses in sorted(streams.items())]
    highest = max((value for values in means for value in values), default=1.0) or 1.0
    picture = Image.new("P", SMALL)
    picture.putpalette(SMALL_COLOURS)
    pen = ImageDraw.Draw(picture)
    width, height = SMALL
    pen.line([(0, height - 1), (width - 1, height - 1)], fill=3)
    for number, values in enumerate(means):
        points = [
            (x, round((height - 2) * (1 - values[x * (len(values) - 1) // (width - 1)] / highest)))
            for x in range(0, width, SMALL_STEP)
        ]
        pen.line(points, fill=1 + number % 2, width=2)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True, bits=2)
    return out.getvalue()


def draw(records: list[dict[str, Any]], title: str) -> bytes:
    """PNG of the `loss` of `records` over their `step`; streams in their own colours, skipped
    steps marked.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    thinned = records[:: max(1, len(records) // MOST_POINTS)]
    figure = Figure(figsize=(6, 3), dpi=80, layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for stream in sorted({record.get("stream", "") for record in thinned}):
        points = [r for r in thinned if r.get("stream", "") == stream and r["loss"] is not None]
        axes.plot(
            [r["step"] for r in points],
            [r["loss"] for r in points],
            ".",
            markersize=4,
            alpha=0.5,
            label=stream,
        )
    good = [record for record in thinned if record["loss"] is not None]
    axes.plot(
        [r["step"] for r in good],
        _running_mean([r["loss"] for r in good]),
        color="black",
        linewidth=1.2,
    )
    held_out = [r for r in records if "loss" in r.get("held_out", {})]
    if held_out:
        axes.plot(
            [r["step"] for r in held_out],
            [r["held_out"]["loss"] for r in held_out],
            color="crimson",
            marker="o",
            markersize=3,
            label="held out",
        )
    for record in thinned:
        if record["loss"] is None:
            axes.axvline(record["step"], color="red", linewidth=0.8)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    if held_out or len({record.get("stream", "") for record in thinned}) > 1:
        axes.legend(fontsize=9, markerscale=4)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _running_mean(values: list[float]) -> list[float]:
    """Exponential mean over about a twentieth of the run, without the pull towards the start."""
    decay = 1 - 1 / max(1.0, len(values) / 20)
    means, weight, held = [], 0.0, 0.0
    for value in values:
        held = decay * held + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        means.append(held / weight)
    return means
