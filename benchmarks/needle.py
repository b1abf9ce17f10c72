"""The needle benchmark over lengths: every arm at every number of frames, a table, a JSON file and a plot.

python -m benchmarks.needle --out results/needle           # T = 64, 512, 3600 on a GPU
python -m benchmarks.needle --preset tiny                  # a minute on a CPU, to see that it runs
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from training.needle import ARMS, NeedleResult, NeedleRun, NeedleTask, run_needle

# Longer videos leave room for fewer of them at a time; steps are those after which the memory arm has long converged.
RUNS = {
    64: NeedleRun(NeedleTask(frames=64, when=True), hidden_size=128, batch=128, steps=2000, rate=1e-3),
    512: NeedleRun(NeedleTask(frames=512, when=True), hidden_size=128, batch=64, steps=3000, rate=1e-3),
    3600: NeedleRun(NeedleTask(frames=3600, when=True), hidden_size=128, batch=16, steps=4000, rate=1e-3),
}
TINY = {16: NeedleRun(NeedleTask(frames=16), batch=32, steps=20, examined=64)}


def benchmark(runs: dict[int, NeedleRun], arms: Sequence[str], device: str, out: Path | None) -> list[NeedleResult]:
    """Run every arm at every length; results are written after each, so that a stopped benchmark loses one run."""
    results: list[NeedleResult] = []
    for run in runs.values():
        for arm in arms:
            results.append(run_needle(replace(run, arm=arm, device=device), print))  # type: ignore[arg-type]
            print(table(results), flush=True)
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                (out / "needle.json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
                plot(results, out / "needle.png")
    return results


def table(results: Sequence[NeedleResult]) -> str:
    """Markdown: accuracy on hidden needles and on any, and the quarter they stand in."""
    lines = [
        "| frames | arm | hidden | any | hidden, when | chance | steps | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        when = "" if r.hidden_when is None else f"{r.hidden_when:.1%}"
        found = f"{r.hidden:.1%} | {r.any:.1%} | {when} | {r.chance:.1%}"
        lines.append(f"| {r.frames} | {r.arm} | {found} | {r.steps} | {r.seconds:.0f} |")
    return "\n".join(lines)


def plot(results: Sequence[NeedleResult], path: Path) -> None:
    """Accuracy on hidden needles against the length of the video, a line an arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for arm in dict.fromkeys(result.arm for result in results):
        points = [(result.frames, result.hidden) for result in results if result.arm == arm]
        axes.plot(*zip(*points, strict=True), marker="o", label=arm)
    axes.axhline(results[0].chance, color="grey", linestyle=":", label="chance")
    axes.set(xscale="log", xlabel="frames", ylabel="accuracy on hidden needles", ylim=(0, 1.02))
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("tiny", "full"), default="full")
    parser.add_argument("--frames", type=int, nargs="*", choices=sorted(RUNS), help="lengths of the full preset")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    runs = TINY if given.preset == "tiny" else {frames: RUNS[frames] for frames in given.frames or RUNS}
    benchmark(runs, given.arms, given.device, given.out)


if __name__ == "__main__":
    main()
