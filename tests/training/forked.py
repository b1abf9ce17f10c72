"""Runs in processes of their own that cost no import: forked from one that has torch loaded.

    python -m tests.training.forked kills FOLDER PHASE COUNT    kill -9, COUNT times in one phase
    python -m tests.training.forked life FOLDER                 two days in fast motion
    python -m tests.training.forked two FOLDER                  two launchers in one folder

Prints one JSON object: what was seen. Used by tests/training/test_kills.py.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import training.loop as loop
import training.run_identity as run_identity
from tests.training.generated_samples import LoaderBehaviour, make_run, tiny_base, train_in_process
from training.checkpoint import Checkpoints
from training.checkpoint_folder import committed
from training.run_config import RunConfig

PREEMPTED, FAILED, KILLED = 75, 1, -signal.SIGKILL

# Phase -> (what begins it, seconds in which the kill may come).
PHASES: dict[str, tuple[tuple[Any, str], float]] = {
    "start-up": ((loop, "_open"), 0.4),
    "first step": ((loop.Trainer, "step"), 0.3),
    "save": ((Checkpoints, "save"), 0.15),
    "export": ((loop, "publish_export"), 0.15),
}


def fork(work: Callable[[], Any]) -> int:
    """Do something in a forked process; returns its id. It ends with 0, 75 or 1."""
    pid = os.fork()
    if pid:
        return pid
    status = FAILED
    try:
        work()
        status = 0
    except loop.Preempted:
        status = PREEMPTED
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def telling(owner: Any, name: str, tell: Callable[[], None]) -> None:
    """Have a function tell when it is entered."""
    plain = getattr(owner, name)

    def told(*args: Any, **kwargs: Any) -> Any:
        tell()
        return plain(*args, **kwargs)

    setattr(owner, name, told)


def killed_in(phase: str, run: RunConfig, chance: random.Random | None) -> int:
    """Start the run and kill it somewhere in a phase, at its very beginning without `chance`; how
    its process ended.
    """
    (owner, name), seconds = PHASES[phase]
    reading, writing = os.pipe()

    def tell() -> None:
        os.write(writing, b".")
        if chance is None:
            signal.pause()

    def work() -> None:
        telling(owner, name, tell)
        train_in_process(run)

    pid = fork(work)
    os.close(writing)
    if os.read(reading, 1):
        time.sleep(chance.uniform(0, seconds) if chance else 0)
        os.kill(pid, signal.SIGKILL)
    os.close(reading)
    return status_of(pid)


def kills(folder: Path, phase: str, count: int) -> dict[str, Any]:
    straight = make_run(folder, max_steps=4, save_every=2)
    run = replace(straight, out=str(folder / "killed"))
    assert status_of(fork(lambda: train_in_process(straight))) == 0
    chance, statuses = random.Random(phase), []
    for number in range(count):
        # Wherever chance puts the others on a slow machine, the first one is in the phase.
        statuses.append(killed_in(phase, run, chance if number else None))
        go_back(Path(run.out), phase)
    assert status_of(fork(lambda: train_in_process(run))) == 0
    out = Path(run.out)
    return {
        "killed": statuses.count(KILLED),
        "ended": len(statuses) - statuses.count(KILLED),
        "steps": steps(out / "metrics.jsonl"),
        "same bytes": contents(out / "export") == contents(Path(straight.out) / "export"),
        "left": sorted(str(path.relative_to(out)) for path in out.rglob(".tmp-*")),
        "damaged": (out / "damaged").exists(),
    }


def go_back(out: Path, phase: str) -> None:
    """See to it that the next attempt comes through the phase once more."""
    if phase != "export":
        for path in committed(out / "state")[1:]:
            shutil.rmtree(path)
    if (out / "result.json").exists():
        (out / "result.json").unlink()
        shutil.rmtree(out / "export")


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def life(folder: Path) -> dict[str, Any]:
    """One run: out of memory, smaller packs, pre-empted, disk full, moved, upgraded, finished."""
    run = make_run(folder, max_steps=12, save_every=2)
    slow = LoaderBehaviour(count=96, pause_s=0.05)
    seen: dict[str, Any] = {}

    def newest(run: RunConfig) -> int:
        found = committed(Path(run.out) / "state")
        return int(found[-1].name.removeprefix("step-")) if found else 0

    def attempt(name: str, run: RunConfig, before: Callable[[], None] = lambda: None) -> None:
        def work() -> None:
            before()
            train_in_process(run, slow)

        seen[name] = [status_of(fork(work)), newest(run)]

    def no_more_memory(trainer: loop.Trainer) -> None:
        trainer.checkpoints.commit_written(wait=True)  # the writer needs memory too
        limit(resource.RLIMIT_AS, 0)

    attempt("out of memory", run, lambda: at_step(4, no_more_memory))
    run = replace(run, micro_tokens=200, workers=0)
    attempt(
        "smaller packs, pre-empted",
        run,
        lambda: at_step(6, lambda _: os.kill(os.getpid(), signal.SIGTERM)),
    )
    # before the step whose checkpoint is due, so that none of it is written yet
    attempt("disk full", run, lambda: at_step(6, lambda _: limit(resource.RLIMIT_FSIZE, 4096)))
    moved = folder / "elsewhere"
    shutil.copytree(tiny_base(), moved / "start")
    shutil.copy(folder / "index.json", moved / "index.json")
    shutil.move(run.out, moved / "out")
    (moved / "tmp").mkdir()
    stream = replace(run.streams[0], root=str(moved))
    run = replace(
        run, out=str(moved / "out"), start=str(moved / "start"), streams=(stream,), keep=3
    )
    attempt("moved, upgraded", run, lambda: upgrade(moved / "tmp"))
    out = Path(run.out)
    records = [json.loads(line) for line in (out / "samples/rank-0.jsonl").read_text().splitlines()]
    ids = [name for record in records for name in record["ids"]]
    return {
        "seen": seen,
        "steps": steps(out / "metrics.jsonl"),
        "sample steps": [record["step"] for record in records],
        "samples": [len(ids), len(set(ids))],
        "result": json.loads((out / "result.json").read_text())["steps"],
        "left": sorted(str(path.relative_to(out)) for path in out.rglob(".tmp-*")),
    }


def two(folder: Path) -> dict[str, Any]:
    """A second launcher comes while the first one is in its third step."""
    run = make_run(folder, max_steps=6, save_every=2)
    reading, writing = os.pipe()

    def first_run() -> None:
        at_step(3, lambda _: (os.write(writing, b"."), os.kill(os.getpid(), signal.SIGSTOP)))
        train_in_process(run)

    first = fork(first_run)
    os.read(reading, 1)
    told = folder / "told"

    def second_run() -> None:
        os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT), 2)
        train_in_process(run)

    second = status_of(fork(second_run))
    os.kill(first, signal.SIGCONT)
    return {
        "first": [first, status_of(first)],
        "second": second,
        "told": told.read_text(),
        "steps": steps(Path(run.out) / "metrics.jsonl"),
    }


def at_step(number: int, act: Callable[[loop.Trainer], Any]) -> None:
    """Act when a step of that number begins."""
    plain = loop.Trainer.step

    def step(trainer: loop.Trainer, groups: Any) -> None:
        if trainer.state.step + 1 == number:
            act(trainer)
        plain(trainer, groups)

    loop.Trainer.step = step  # type: ignore[method-assign]


def limit(what: int, size: int) -> None:
    """No more memory than there is now, or no file larger than that."""
    if what == resource.RLIMIT_AS:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(what, (size, size))


def upgrade(temporary: Path) -> None:
    """A release that counts one more setting, and another folder for temporary files."""
    os.environ["TMPDIR"] = str(temporary)
    run_identity.COUNTED = (*run_identity.COUNTED, "prefetch")
    run_identity.NEUTRAL = {**run_identity.NEUTRAL, "prefetch": 2}


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:]
    tiny_base()
    if command == "kills":
        print(json.dumps(kills(Path(folder), rest[0], int(rest[1]))))
    else:
        print(json.dumps({"life": life, "two": two}[command](Path(folder))))
