"""The needle benchmark: what each arm finds of needles that forgetting dropped, over seeds and
lengths.

    python -m benchmarks.needle --preset tiny    # seconds, to see that it runs
    python -m benchmarks.needle --preset seeds --results docs/results/needle-seeds.json
    python -m benchmarks.needle --preset lengths --results docs/results/needle-lengths.json \\
        --plot docs/images/needle.png
    python -m benchmarks.needle --preset when --results docs/results/needle-when.json

`seeds` is the memory arm at T = 16 with ten seeds; `lengths` trains every arm on 16 and 64 frames
with three seeds, also asks when, and examines the finished models up to 14,400 frames, four hours.
In `when` a lesson ends only when the quarters are right, too.
The task is in benchmarks/needle_task.py, the training in benchmarks/needle_run.py. A finished run
is written to the results file at once and not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from assets.records.intervals import student_reach
from benchmarks.needle_run import NeedleRun, course, course_with_quarters, run_needle
from benchmarks.needle_task import ARMS, Arm, NeedleTask

NAMES = {
    "memory": "memory (Hour-LLaVA)",
    "kept": "kept tokens only",
    "frames": "uniform frames",
    "none": "no MemAug",
}


@dataclass(frozen=True, slots=True)
class Preset:
    """One run for each arm and seed."""

    run: NeedleRun
    arms: tuple[Arm, ...]
    seeds: int


PRESETS = {
    "tiny": Preset(
        NeedleRun(course([16, 32], batch=8, most=2), settle=2, lengths=(16, 64), examined=16),
        ARMS,
        2,
    ),
    "seeds": Preset(NeedleRun(course([16])), ("memory",), 10),
    "lengths": Preset(
        NeedleRun(
            course([16, 64]),
            NeedleTask(when=True),
            lengths=(16, 64, 512, 3600, 14400),
        ),
        ARMS,
        3,
    ),
    "when": Preset(
        NeedleRun(
            course_with_quarters([16, 64], most=4000),
            NeedleTask(when=True),
            lengths=(16, 64, 512, 3600),
        ),
        ARMS,
        3,
    ),
}

Row = dict[str, Any]  # the fields of a NeedleResult


def benchmark(
    preset: Preset, arms: Sequence[Arm], seeds: Sequence[int], device: str, results: Path | None
) -> list[Row]:
    """Run what is not in the results file yet."""
    rows = json.loads(results.read_text()) if results is not None and results.exists() else []
    done = {(row["arm"], row["seed"], row["device"]) for row in rows}
    kind = torch.device(device).type
    for seed in map(str, seeds):
        for arm in arms:
            if (arm, seed, kind) in done:
                continue
            run = replace(preset.run, arm=arm, seed=seed, device=device)
            rows.append(asdict(run_needle(run, lambda text: print(text, flush=True))))
            if results is not None:
                results.parent.mkdir(parents=True, exist_ok=True)
                results.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown: a row for each arm, sort of device and length; means over seeds with their 95 %
    interval, and the worst seed.
    """
    lines = [
        "| arm | on | seeds | frames | hidden needles | worst seed | any needle | hidden: quarter "
        "| training steps | ms a step |",
        f"|{'---|' * 10}",
    ]
    for arm, kind, frames in sorted(
        {(r["arm"], r["device"], a["frames"]) for r in rows for a in r["accuracy"]},
        key=lambda key: (ARMS.index(key[0]), key[1], key[2]),
    ):
        mine = [row for row in rows if (row["arm"], row["device"]) == (arm, kind)]
        found = [a for row in mine for a in row["accuracy"] if a["frames"] == frames]
        hidden = [a["hidden"] for a in found]
        steps = [row["steps"] for row in mine]
        cells = [
            NAMES[arm],
            kind,
            len(found),
            f"{frames:,}",
            interval(hidden),
            f"{min(hidden):.1%}",
            interval([a["any"] for a in found]),
            interval([a["hidden_when"] for a in found if a["hidden_when"] is not None]),
            f"{min(steps):,} to {max(steps):,}",
            f"{statistics.mean(row['step_ms'] for row in mine):.1f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def interval(shares: Sequence[float]) -> str:
    """The mean, and half the width of its 95 % interval over seeds; empty where nothing is."""
    if not shares:
        return ""
    half = student_reach(shares)
    mean = f"{statistics.mean(shares):.1%}"
    return mean if half is None else f"{mean} ± {100 * half:.1f}"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy on hidden needles against length, a line for each arm; and that of training against
    steps, a line for each seed of the memory.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (lengths, steps) = pyplot.subplots(
        1, 2, figsize=(10, 4), layout="constrained", sharey=True
    )
    ticks = sorted({a["frames"] for row in rows for a in row["accuracy"]})
    for arm in ARMS:
        found = [a for row in rows if row["arm"] == arm for a in row["accuracy"]]
        by_length = [[a["hidden"] for a in found if a["frames"] == frames] for frames in ticks]
        if found:
            middle = [statistics.mean(shares) for shares in by_length]
            below = [m - min(s) for m, s in zip(middle, by_length, strict=True)]
            above = [max(s) - m for m, s in zip(middle, by_length, strict=True)]
            lengths.errorbar(ticks, middle, [below, above], marker="o", capsize=3, label=NAMES[arm])
    lengths.set(
        xscale="log",
        xlabel="frames of the video",
        ylabel="accuracy on hidden needles",
        ylim=(0, 1.02),
    )
    lengths.set_xticks(ticks, [f"{frames:,}" for frames in ticks])
    lengths.minorticks_off()
    for row in rows:
        if row["arm"] == "memory" and row["curve"]:
            at, values = list(zip(*row["curve"], strict=True))[:2]
            steps.plot(at, values, label=f"seed {row['seed']}")
    steps.set(xlabel="training steps (memory; two keys, four, eight, sixteen, longer videos)")
    for axes in (lengths, steps):
        axes.axhline(rows[0]["chance"], color="grey", linestyle=":", label="chance")
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="lengths")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="default: the preset's")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: as many as the preset has")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--results", type=Path, help="JSON file of the runs; they are added to it")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    preset = PRESETS[given.preset]
    rows = benchmark(
        preset,
        given.arms or preset.arms,
        given.seeds or range(1, preset.seeds + 1),
        given.device,
        given.results,
    )
    print(table(rows))
    if given.plot:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
