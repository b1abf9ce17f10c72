"""Training without shards: a loader over generated samples that can be told to misbehave, and runs
on it.

Run as a module it is `training.train` on that loader:

    python -m tests.training.generated_samples run.json '{"count": 64}'
"""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import random
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from model.inputs import SampleInputs
from model.processor import Processor
from training.data.micro_batch import MicroBatch
from training.formats.hashing import seed_of
from training.formats.machine_faults import MachineFault, wait_out
from training.run_config import RunConfig, parse_run


@dataclass(frozen=True, slots=True)
class LoaderBehaviour:
    """What the loader holds and how it fails.

    Attributes:
        count: samples in an epoch.
        infinite: numbers of samples with an infinite feature.
        crash_at, crash_rank: the optimizer step (from 0) in which the loader of this rank raises.
        machine_fault: that is a fault of the machine.
        outage_s: so long the disk of `crash_rank` is at fault in step `crash_at`, in place of that.
        collective_timeout_s: from the first sample on, a rank waits so long in a collective.
        pause_s: how long every micro-batch takes.
        usable: micro-batches of each step; of the later ones all samples are dropped.
    """

    count: int = 64
    infinite: tuple[int, ...] = ()
    crash_at: int | None = None
    crash_rank: int = 0
    machine_fault: bool = False
    outage_s: float = 0.0
    collective_timeout_s: float | None = None
    pause_s: float = 0.0
    usable: int | None = None

    def json(self) -> str:
        return json.dumps(asdict(self))


class GeneratedLoader:
    """Samples in a seeded order that depends on the epoch and not on the number of ranks.

    Odd ones are short videos as features, even ones text; every answer says which.
    """

    def __init__(
        self,
        run: RunConfig,
        processor: Processor,
        rank: int,
        world: int,
        behaviour: LoaderBehaviour | None = None,
    ) -> None:
        self.processor, self.rank, self.world = processor, rank, world
        self.behaviour = behaviour or LoaderBehaviour()
        self.micro, self.accumulation = run.batches(world)
        self.global_batch = run.recipe.global_batch
        self.seed, self.machine_wait_s = run.seed, run.machine_wait_s
        self.steps_per_epoch = self.behaviour.count // self.global_batch
        self.epoch, self.step = 0, 0
        self.closed = False
        self.notes: list[str] = []
        self.held_out: list[int] = []

    def __iter__(self) -> Iterator[MicroBatch]:
        if self.behaviour.collective_timeout_s is not None:
            shorten_collectives(self.behaviour.collective_timeout_s)
        order = list(range(self.behaviour.count))
        random.Random(seed_of(self.seed, self.epoch)).shuffle(order)
        for step in range(self.step, self.steps_per_epoch):
            if self.rank == self.behaviour.crash_rank and step == self.behaviour.crash_at:
                if self.behaviour.outage_s:
                    wait_out(disk_at_fault_for(self.behaviour.outage_s), self.machine_wait_s)
                elif self.behaviour.machine_fault:
                    raise MachineFault("the disk of features_cache is full")
                else:
                    raise RuntimeError("the loader was told to fail")
            everyone = order[step * self.global_batch : (step + 1) * self.global_batch]
            mine = everyone[self.rank :: self.world]
            for micro in range(self.accumulation):
                time.sleep(self.behaviour.pause_s)
                chosen = mine[micro * self.micro : (micro + 1) * self.micro]
                if micro == self.accumulation - 1:
                    self.step = step + 1
                if self.behaviour.usable is not None and micro >= self.behaviour.usable:
                    dropped = [(f"sample-{number}", "unreadable") for number in chosen]
                    yield MicroBatch([], [], 0, dropped)
                    continue
                samples = [self._sample(number) for number in chosen]
                yield MicroBatch(samples, [sample.id for sample in samples], 0)
        self.epoch, self.step = self.epoch + 1, 0

    def _sample(self, number: int) -> SampleInputs:
        name = f"sample-{number}"
        seed = seed_of(self.seed, self.epoch, name)
        config = self.processor.config
        if number % 2 == 0 and number not in self.behaviour.infinite:
            turns = [
                {"from": "human", "value": f"What is {number}?"},
                {"from": "gpt", "value": "It is text."},
            ]
            return self.processor.sample(turns, id=name, seed=seed)
        turns = [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": "It is a video."},
        ]
        generator = torch.Generator().manual_seed(seed_of(name))
        features = torch.randn(
            20, config.memory.frame_tokens, config.vision.hidden_size, generator=generator
        )
        if number in self.behaviour.infinite:
            features[0, 0, 0] = math.inf
        stored = types.SimpleNamespace(
            frames=20, duration=20.0, read=lambda indices: features[torch.as_tensor(indices)]
        )
        return self.processor.sample(turns, video=stored, id=name, seed=seed)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]

    def close(self) -> None:
        self.closed = True


def disk_at_fault_for(seconds: float) -> Callable[[], None]:
    """Reads from a disk that gives errors from the first time on, for so long."""
    began: list[float] = []

    def read() -> None:
        began.append(time.monotonic())
        if began[-1] - began[0] < seconds:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "features.safetensors")

    return read


def shorten_collectives(seconds: float) -> None:
    """Let a rank wait only so long in a collective of any group, the default one included. For
    ranks that have started: on a busy machine one may be ready long before the other.
    """
    from torch.distributed import distributed_c10d

    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


@functools.cache
def tiny_base() -> Path:
    """The tiny variant's starting point; made once a process, gone with it."""
    from model.weights.tiny import build_tiny

    folder = tempfile.TemporaryDirectory(prefix="tiny-base-")
    tiny_base.keep = folder  # type: ignore[attr-defined]
    build_tiny(Path(folder.name) / "export")
    return Path(folder.name) / "export"


def make_run(folder: Path, **fields: Any) -> RunConfig:
    """A run of tiny's stage 3 in `folder`: 8 steps of 8 samples, a checkpoint every 4; the demo's
    tuning left out.
    """
    (folder / "index.json").write_text("{}")
    values = {
        "variant": "tiny",
        "stage": 3,
        "start": str(tiny_base()),
        "out": str(folder / "out"),
        "streams": [{"name": "generated", "root": str(folder), "indexes": ["index.json"]}],
        "device": "cpu",
        "max_steps": 8,
        "save_every": 4,
        "tensorboard": False,
    }
    steps = {
        "global_batch": 8,
        "micro_batch": 8,
        "max_length": 4096,
        "epochs": 2,
        "warmup": 0.03,
        "clip": 1.0,
    }
    run = parse_run({**values, **steps, **fields})
    return run if "rates" in fields else replace(run, rates=dict.fromkeys(run.recipe.rates, 2e-3))


@contextmanager
def single_rank() -> Iterator[Any]:
    from training.ranks import join_ranks, leave_ranks

    ranks = join_ranks("cpu")
    try:
        yield ranks
    finally:
        leave_ranks()


def train_in_process(run: RunConfig, behaviour: LoaderBehaviour | None = None) -> dict[str, Any]:
    """Train in this process, as the only rank."""
    from training.loop import train
    from training.reporting import Reporter

    with single_rank() as ranks:
        return train(run, ranks, Reporter(), lambda *given: GeneratedLoader(*given, behaviour))


def sample_ids(run: RunConfig) -> dict[int, set[str]]:
    """Ids of the samples of each step, over all ranks."""
    steps: dict[int, set[str]] = {}
    for path in (Path(run.out) / "samples").glob("rank-*.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            steps.setdefault(record["step"], set()).update(record["ids"])
    return steps


def losses(run: RunConfig) -> list[float]:
    return [
        json.loads(line)["loss"]
        for line in (Path(run.out) / "metrics.jsonl").read_text().splitlines()
    ]


def main(path: str, options: str) -> int:
    """As `training.train.main`, on generated samples."""
    from training import train

    behaviour = LoaderBehaviour(**json.loads(options))
    loader = types.ModuleType("training.data.loader")
    loader.build_loader = lambda *given: GeneratedLoader(*given, behaviour)  # type: ignore[attr-defined]
    sys.modules["training.data.loader"] = loader
    return train.main([path])


if __name__ == "__main__":
    status = main(sys.argv[1], sys.argv[2])
    sys.stdout.flush()
    os._exit(status)
