"""What a run reports of itself: one record a step, as JSON lines. TensorBoard is drawn from the
same records.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.atomic import remove_unfinished, writing_file

METRICS_NAME = "metrics.jsonl"


class MetricsWriter:
    """Appends records to ``folder/metrics.jsonl``, and to TensorBoard event files below
    ``folder/tensorboard``.

    Args:
        after: the step that is resumed from; later records, of steps that are about to be done
            again, are dropped.
        name: of the file.
    """

    def __init__(
        self, folder: Path, after: int = 0, tensorboard: bool = True, name: str = METRICS_NAME
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name
        _truncate(self.path, after)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 closed by `close`
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1)

    def write(self, record: dict[str, Any]) -> None:
        """One record; it holds ``step``. Numbers in it, also one level down, become TensorBoard
        scalars.
        """
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in _scalars(record):
                self._board.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


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
    for key, value in record.items():
        if isinstance(value, dict):
            yield from (
                (f"{key}/{inner}", float(v))
                for inner, v in value.items()
                if isinstance(v, int | float)
            )
        elif isinstance(value, int | float) and key != "step":
            yield key, float(value)
