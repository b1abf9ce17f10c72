"""`training.train` with the training itself left out: the real entry, guards and exit statuses,
without torch.

`python -m tests.training.fake_training run.json '{"crash_rank": 1}'`, started as the real one is.
Instead of training, each rank waits and records a step now and then.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.run_config import RunConfig

ROOT = Path(__file__).parents[2]


def torchrun_command(
    run: RunConfig,
    ranks: int,
    options: str | None = None,
    module: str = "tests.training.generated_samples",
) -> list[str]:
    """The command that a deployment runs, on generated samples; writes the run's file."""
    path = Path(run.out).with_suffix(".json")
    run.write(path)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
    ]
    given = [str(path), options or "{}"]
    return [sys.executable, "-m", "training.supervise", *torchrun, "-m", module, *given]


def start(command: list[str]) -> subprocess.Popen[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@dataclass(frozen=True, slots=True)
class FakeTraining:
    """What the ranks do.

    Attributes:
        steps: how many steps of `pause_s` there are.
        crash_rank: the rank that raises in its third step.
        misconfigured: end as with a configuration that cannot work.
        ignores_signals: ignore every signal that can be ignored.
        pid_folder: where each rank leaves its process id.
    """

    steps: int = 3
    pause_s: float = 0.1
    crash_rank: int | None = None
    misconfigured: bool = False
    ignores_signals: bool = False
    pid_folder: str | None = None

    def json(self) -> str:
        return json.dumps(asdict(self))


def main(path: str, options: str) -> int:
    fake = FakeTraining(**json.loads(options))
    rank = int(os.environ["RANK"])

    class Preempted(Exception):
        pass

    def train(run: Any, *_: Any) -> None:
        from training.supervise import stop_requested

        if fake.pid_folder:
            (Path(fake.pid_folder) / f"rank-{rank}").write_text(str(os.getpid()))
        if fake.misconfigured:
            raise ValueError("global batch 9 cannot be shared evenly by 2 ranks")
        if fake.ignores_signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        for step in range(1, fake.steps + 1):
            time.sleep(fake.pause_s)
            if rank == fake.crash_rank and step == 3:
                raise RuntimeError("the rank was told to fail")
            if stop_requested() and not fake.ignores_signals:
                raise Preempted(f"asked to stop after step {step}")
            if rank == 0:
                record = {
                    "step": step,
                    "loss": 1 / step,
                    "rates": {"llm": 0.1, "memaug": 0.2},
                    "stream": "x",
                }
                with open(Path(run.out) / "metrics.jsonl", "a") as file:
                    file.write(json.dumps(record) + "\n")
        if rank == 0:
            (Path(run.out) / "result.json").write_text(json.dumps({"steps": fake.steps}))

    modules: dict[str, dict[str, Any]] = {
        "training.loop": {"Preempted": Preempted, "train": train},
        "training.ranks": {"join_ranks": lambda device: None, "leave_ranks": lambda: None},
        "training.data.loader": {"build_loader": None},
    }
    for name, content in modules.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    from training.train import main as entry

    status = entry([path])
    assert "torch" not in sys.modules
    return status


if __name__ == "__main__":
    status = main(sys.argv[1], sys.argv[2])
    sys.stdout.flush()
    os._exit(status)
