"""What a run reports of itself: one record a step, as JSON lines. TensorBoard is drawn from the
same records.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.atomic import remove_unfinished, writing_file
from training.progress import span
from training.state import StepTotals
from training.tracking import BackgroundTracker

METRICS_NAME = "metrics.jsonl"
ANSWERS_NAME = "held_out.jsonl"  # answers to questions of held-out samples


class MetricsWriter:
    """Appends records to `folder/metrics.jsonl`, and to TensorBoard event files below
    `folder/tensorboard`.

    Args:
        after: the step that is resumed from; later records, of steps that are about to be done
            again, are dropped.
        name: of the file.
        tracker: gets the numbers of every record, too; closed with this.
    """

    def __init__(
        self,
        folder: Path,
        after: int = 0,
        tensorboard: bool = True,
        name: str = METRICS_NAME,
        tracker: BackgroundTracker | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name
        _truncate(self.path, after)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 closed by `close`
        self.tracker = tracker
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1)

    def write(self, record: dict[str, Any]) -> None:
        """One record; it holds `step`. Numbers in it, also one level down, become TensorBoard
        scalars.
        """
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        if self.tracker is not None:
            self.tracker.log(record["step"], dict(_scalars(record)))
        if self._board is not None:
            for name, value in _scalars(record):
                self._board.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Close the files, and the tracker."""
        self._file.close()
        if self.tracker is not None:
            self.tracker.close()
        if self._board is not None:
            self._board.close()


def step_record(
    step: int,
    steps: int,
    totals: StepTotals,
    stream: str,
    rates: dict[str, float],
    norm: float,
    seconds: float,
    waited: float,
) -> dict[str, Any]:
    """The record of one step.

    Args:
        step, steps: its number, and the number of the last one.
        totals: summed over all ranks.
        stream: name of the stream that its samples are from.
        rates: learning rates by module.
        norm: of the gradient before clipping.
        seconds, waited: how long the slowest rank took, and waited for data.
    """
    loss = totals.loss_sum / totals.supervised if totals.supervised else math.nan
    return {
        "step": step,
        "steps": steps,
        "loss": loss if math.isfinite(loss) else None,
        "grad_norm": norm if math.isfinite(norm) else None,
        "rates": rates,
        "stream": stream,
        "supervised": int(totals.supervised),
        "tokens": int(totals.tokens),
        "samples": int(totals.samples),
        "packs": int(totals.packs),
        "step_s": seconds,
        "data_wait_s": waited,
        "tokens_per_s": totals.tokens / seconds,
        "samples_per_s": totals.samples / seconds,
    }


def step_line(record: dict[str, Any]) -> str:
    """A step's record as a line for people."""
    used = ""
    if "mfu" in record:
        reached, stated = (100 * record[name] for name in ("mfu", "mfu_datasheet"))
        used = f", MFU {reached:.1f} % ({stated:.1f} % by the datasheet)"
    left = f", {span(record['left_s'])} left" if record.get("left_s") else ""
    loss, norm = (
        math.nan if record[name] is None else record[name] for name in ("loss", "grad_norm")
    )
    return (
        f"step {record['step']}/{record['steps']} loss {loss:.4f} grad norm {norm:.3f} "
        f"{record['step_s']:.2f} s (data {record['data_wait_s']:.2f} s) "
        f"{record['tokens_per_s']:.0f} tokens/s{used}{left}"
    )


def held_out_line(record: dict[str, Any]) -> str:
    """What was measured on held-out samples, as a line for people."""
    found = record["held_out"]
    loss = found.get("loss", math.nan)
    return (
        f"step {record['step']}/{record['steps']} held-out loss {loss:.4f} on "
        f"{found['samples']:.0f} samples, {found['seconds']:.1f} s"
    )


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a metrics file in order; none where there is no file. An unfinished last line is
    left out.
    """
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def _truncate(path: Path, after: int) -> None:
    """Drop the records after a step, and an unfinished last line."""
    remove_unfinished(path)
    if not path.exists():
        return
    kept = [
        json.dumps(record, allow_nan=False) + "\n"
        for record in read_metrics(path)
        if record["step"] <= after
    ]
    with writing_file(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _scalars(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and values that TensorBoard draws."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from (
                (f"{key}/{inner}", float(v))
                for inner, v in value.items()
                if isinstance(v, int | float)
            )
        elif isinstance(value, int | float) and key != "step":
            yield key, float(value)
