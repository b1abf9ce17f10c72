"""Whether a stage learned, and whether what it left can be used."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from assets.records.verdict import Verdict
from model.weights.tensors import checkpoint_files, length_fault
from training.metrics import METRICS_NAME, read_metrics
from training.run_config import RunConfig

LOSS, FALLS, EXPORT = "loss", "loss_falls", "export_loads"
REPOSITORY = Path(__file__).resolve().parents[2]
LOAD_TIMEOUT_S = 1800
# A loss has risen where it ends so much higher than it began, and by so many standard errors: few
# steps of a model that has learned already are noise.
RISEN, ERRORS = 1.05, 3.0
SKIPPED = 0.01  # share of steps without a finite gradient that is worth a look
TENTH = 10
NORMAL_MEDIAN = 0.6745  # of the distance from the mean, in standard deviations


def stage_checks(run: RunConfig) -> list[Verdict]:
    """What there is to say about a finished run."""
    out = Path(run.out)
    return [*loss(list(read_metrics(out / METRICS_NAME))), export_loads(out / "export")]


def loss(records: Sequence[dict[str, Any]]) -> list[Verdict]:
    """Whether the loss of every stream is finite and has not risen, and whether it fell, with few
    steps skipped.

    Means of the first and the last tenth are compared, with what successive steps differ by as
    noise. The first verdict may block the next stage; the second is for a person to judge.

    Args:
        records: of a finished run, see `training.metrics`.
    """
    streams: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record["loss"] is not None:
            streams[record.get("stream", "")].append(record["loss"])
    skipped = len(records) - sum(map(len, streams.values()))
    table: list[dict[str, Any]] = []
    rose: list[str] = []
    for name, losses in sorted(streams.items()):
        tenth = max(1, len(losses) // TENTH)
        first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
        table.append(
            {"stream": name, "steps": len(losses), "first": round(first, 4), "last": round(last, 4)}
        )
        if last > RISEN * first and last - first > ERRORS * _error(losses, tenth):
            rose.append(name)
    facts = {"streams": table, "skipped steps": skipped}
    means = "; ".join(f"{row['stream']}: {row['first']:.3f} -> {row['last']:.3f}" for row in table)
    if not table or records[-1]["loss"] is None:
        sound = Verdict(
            LOSS,
            "the run ended without a finite loss; look at the learning rate",
            False,
            facts=facts,
        )
    elif rose:
        sound = Verdict(
            LOSS,
            f"the loss of {', '.join(rose)} rose: {means}; look at the learning rate and the data",
            False,
            facts=facts,
        )
    else:
        sound = Verdict(LOSS, means, facts=facts)
    if not table or any(row["last"] >= row["first"] for row in table):
        learned = Verdict(
            FALLS, f"the loss did not fall: {means or 'no step'}", False, blocking=False
        )
    elif skipped > SKIPPED * len(records):
        learned = Verdict(
            FALLS, f"{skipped:,} of {len(records):,} steps were skipped", False, blocking=False
        )
    else:
        learned = Verdict(FALLS, means, blocking=False)
    return [sound, learned]


def _error(losses: Sequence[float], steps: int) -> float:
    """Standard error of the difference between the means of two times so many steps.

    The noise of a step is estimated from the median of what neighbours differ by: a slow trend and
    a few leaps do not count as noise.
    """
    apart = sorted(abs(after - before) for before, after in pairwise(losses))
    if not apart:
        return math.inf  # of one step nothing can be said
    noise = apart[len(apart) // 2] / (NORMAL_MEDIAN * math.sqrt(2))
    uncertain = 1 + 2 / len(apart)  # as the median of few is itself
    return uncertain * noise * math.sqrt(2 / steps)


def export_loads(export: Path) -> Verdict:
    """The files are as long as their headers say, and `from_pretrained` loads them in a process
    of its own.
    """
    try:
        faults = [fault for file in checkpoint_files(export) if (fault := length_fault(file))]
    except ValueError as error:  # a file of its index is not there
        faults = [str(error)]
    facts: dict[str, Any] = {"folder": str(export)}
    if not faults:
        command = [sys.executable, "-m", "assets.checkpoints.try_loading", str(export)]
        child = subprocess.run(
            command,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=LOAD_TIMEOUT_S,
            check=False,
        )
        if child.returncode == 0:
            found = json.loads(child.stdout.splitlines()[-1])
            faults, facts["tensors"] = found["faults"], found["tensors"]
        elif child.returncode < 0:
            faults = [
                f"loading was ended by signal {-child.returncode}; signal 9 as a rule means too "
                "little memory"
            ]
        else:
            faults = child.stderr.strip().splitlines()[-1:] or [
                f"loading ended with status {child.returncode}"
            ]
    if faults:
        return Verdict(
            EXPORT, f"{export} cannot be used: {'; '.join(faults)}", passed=False, facts=facts
        )
    return Verdict(
        EXPORT,
        f"{facts['tensors']:,} tensors, loaded with from_pretrained, all finite",
        facts=facts,
    )
