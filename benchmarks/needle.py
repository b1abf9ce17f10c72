"""The needle benchmark: accuracy against the length of the video for every arm, and against the
number of needles.

    python -m benchmarks.needle --preset tiny    # seconds, to see that it runs
    python -m benchmarks.needle --preset cpu \\
        --results docs/results/needle-cpu.json --plot docs/images/needle.png
    python -m benchmarks.needle --preset gpu \\
        --results docs/results/needle-gpu.json --plot docs/images/needle-gpu.png

Every arm is one model that is trained on short videos first and then, in ever fewer steps, on
longer ones: looking things up is what takes long to learn, and it carries over. In the end the
finished model is examined at every length, and at some that it was not trained on. All arms get the
same steps. Rows are merged into the results file, so arms can be run one at a time (`--arms
memory`); `--arms` with nothing behind it only draws.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.needle_task import (
    ARMS,
    Arm,
    NeedleResult,
    NeedleRun,
    NeedleTask,
    build_model,
    run_needle,
)

NAMES = {
    "memory": "memory (Hour-LLaVA)",
    "kept": "kept tokens only",
    "frames": "uniform frames",
    "none": "no MemAug",
}


@dataclass(frozen=True, slots=True)
class Preset:
    """Runs one after another, each going on from the one before it; further lengths, examined only;
    and runs of the memory arm from scratch."""

    lengths: tuple[NeedleRun, ...]
    beyond: tuple[int, ...] = ()
    counts: tuple[NeedleRun, ...] = ()


def _longer(first: NeedleRun, frames: int, batch: int, steps: int) -> NeedleRun:
    task = replace(first.task, frames=frames)
    return replace(
        first, task=task, batch=batch, steps=steps, rate=first.rate / 4, warmup=30, points=0
    )


CPU = NeedleRun(NeedleTask(frames=16), batch=32, steps=2000, points=20, examined=256)
GPU = NeedleRun(
    NeedleTask(frames=64, when=True), hidden_size=128, batch=128, steps=2000, rate=1e-3, points=20
)
QUICK = NeedleRun(NeedleTask(frames=16), batch=8, steps=8, points=2, examined=16)
PRESETS = {
    "tiny": Preset(
        (QUICK, _longer(QUICK, 32, 8, 4)), (64,), (replace(QUICK, task=NeedleTask(needles=1)),)
    ),
    "cpu": Preset(
        (CPU, _longer(CPU, 64, 32, 200), _longer(CPU, 128, 16, 100)),
        (32, 256, 512),
        tuple(replace(CPU, task=NeedleTask(frames=16, needles=needles)) for needles in (1, 2, 8)),
    ),
    "gpu": Preset(
        (GPU, _longer(GPU, 512, 64, 1000), _longer(GPU, 3600, 16, 1000)),
        (7200,),
        tuple(
            replace(GPU, task=NeedleTask(frames=64, needles=needles, when=True))
            for needles in (1, 2, 8, 12)
        ),
    ),
}


def benchmark(
    preset: Preset, arms: Sequence[Arm], counts: bool, device: str, results: Path | None
) -> list[Row]:
    """Run what is asked for. The file is written after each run, so that a stopped benchmark loses
    one.
    """
    rows = _read(results)
    for arm in arms:
        model = None
        for run in preset.lengths:
            run = replace(run, arm=arm, device=device)
            following = model is not None
            model = model or build_model(run).to(device)
            rows = _merge(rows, run_needle(run, print, model), following, results)
        for frames in (*(run.task.frames for run in preset.lengths), *preset.beyond):
            last = replace(preset.lengths[-1], arm=arm, device=device, steps=0)
            found = run_needle(replace(last, task=replace(last.task, frames=frames)), model=model)
            rows = _finish(rows, found, results)
    for run in preset.counts if counts else ():
        rows = _merge(rows, run_needle(replace(run, device=device), print), False, results)
    return rows


Row = dict[str, Any]  # the fields of a NeedleResult


def _merge(
    rows: Sequence[Row], result: NeedleResult, following: bool, path: Path | None
) -> list[Row]:
    row = (
        asdict(result) | {"final": None} | ({} if following else {"before": None})
    )  # nothing was learned before
    merged = _write([*(other for other in rows if _key(other) != _key(row)), row], path)
    print(table([row]), flush=True)
    return merged


def _finish(rows: Sequence[Row], found: NeedleResult, path: Path | None) -> list[Row]:
    """Note what the finished model finds at a length; one that it was not trained on becomes a row
    of its own.
    """
    row = asdict(found)
    trained = [other for other in rows if _key(other) == _key(row) and other["steps"]]
    row = (trained[0] if trained else row) | {"final": found.hidden}
    return _write([*(other for other in rows if _key(other) != _key(row)), row], path)


def _key(row: Row) -> tuple[int, int, int]:
    return ARMS.index(row["arm"]), row["needles"], row["frames"]


def _write(rows: Sequence[Row], path: Path | None) -> list[Row]:
    ordered = sorted(rows, key=_key)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A curve's points on lines of their own would be most of the file.
        path.write_text("[\n" + ",\n".join(json.dumps(row) for row in ordered) + "\n]\n")
    return ordered


def _read(path: Path | None) -> list[Row]:
    return json.loads(path.read_text()) if path is not None and path.exists() else []


def table(rows: Sequence[Row]) -> str:
    """Markdown: hidden needles found before and after a length's training and by the finished
    model, and the rest.
    """
    lines = [
        (
            "| arm | frames | needles | before | after | finished model | any needle | quarter | "
            "steps x batch | seconds |"
        ),
        f"|{'---|' * 10}",
    ]
    for row in rows:
        before, final, when = (_percent(row[name]) for name in ("before", "final", "hidden_when"))
        trained = bool(row["steps"])
        cells = [
            NAMES[row["arm"]],
            row["frames"],
            row["needles"],
            before,
            _percent(row["hidden"]) if trained else "",
        ]
        cells += [
            final,
            _percent(row["any"]),
            when,
            f"{row['steps']} x {row['batch']}" if trained else "not trained",
        ]
        cells.append(round(row["seconds"]))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def plot(rows: Sequence[Row], needles: int, path: Path) -> None:
    """Hidden needles: accuracy against length, a line an arm; and against steps, a line a number of
    needles.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (lengths, steps) = pyplot.subplots(
        1, 2, figsize=(10, 4), layout="constrained", sharey=True
    )
    for arm in ARMS:
        mine = [row for row in rows if row["arm"] == arm and row["needles"] == needles]
        points = sorted((row["frames"], row["final"] or row["hidden"]) for row in mine)
        if points:
            lengths.plot(*zip(*points, strict=True), marker="o", label=NAMES[arm])
    lengths.set(
        xscale="log",
        xlabel="frames of the video",
        ylabel="accuracy on hidden needles",
        ylim=(0, 1.02),
    )
    ticks = sorted({row["frames"] for row in rows})
    lengths.set_xticks(ticks, list(map(str, ticks)))
    lengths.minorticks_off()
    for row in sorted(
        (r for r in rows if r["arm"] == "memory" and r["curve"]), key=lambda r: r["needles"]
    ):
        label = f"{row['needles']} needle{'s' * (row['needles'] > 1)}"
        steps.plot(*zip(*row["curve"], strict=True), label=label)
    steps.set(xlabel=f"training steps (memory, {min(ticks)} frames, from scratch)")
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
    parser.add_argument("--preset", choices=sorted(PRESETS), default="gpu")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument(
        "--no-counts", action="store_true", help="leave out the runs with other numbers of needles"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--results", type=Path, help="JSON file that rows are merged into")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    preset = PRESETS[given.preset]
    rows = benchmark(
        preset, given.arms, bool(given.arms) and not given.no_counts, given.device, given.results
    )
    print(table(rows))
    if given.plot:
        plot(rows, preset.lengths[0].task.needles, given.plot)


if __name__ == "__main__":
    main()
