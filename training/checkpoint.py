"""Checkpoints of a running stage: written in the background by all ranks, complete only when
marked, and read only when every byte is as it was written.

    state/step-40/    .metadata, *.distcp   tuned parameters and optimizer moments, as
                                            torch.distributed.checkpoint writes them
                      rng-R.safetensors     random state of rank R
                      state.json            step, data position, whatever else the loop needs
                      COMMITTED             size and hash of each of these, when every rank has
                                            finished; see `training.checkpoint_folder`
    state/latest      name of the newest committed folder, for people

Frozen parameters are those of the run's start and are not written. The shards are laid out anew
when read, so another number of ranks may continue. These folders are read only by the run that
wrote them; what leaves a run is the export.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.atomic import (
    TEMPORARY_PREFIX,
    fsync_file,
    fsync_folder,
    remove_unfinished,
    writing_file,
)
from training.checkpoint_folder import (
    LATEST_NAME,
    STATE_NAME,
    committed,
    describe,
    faults,
    read_marker,
    read_state,
    step_folders,
    step_of,
    write_marker,
)
from training.formats.receipts import FileEntry, set_aside
from training.formats.storage import Storage
from training.progress import size_text
from training.ranks import Ranks
from training.sharded import own_part

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run in one folder. Every rank calls the methods alike.

    Args:
        folder: holds a folder for each checkpoint.
        keep: how many committed checkpoints stay, the newest ones.
        milestone_every: those of every so many steps stay, too.
        note: is told what people should see.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        ranks: Ranks,
        milestone_every: int | None = None,
        note: Callable[[str], None] = log.info,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.ranks = ranks
        self.milestone_every = milestone_every
        self.note = note
        self._pending: tuple[int, Future[list[FileEntry]]] | None = None

    def newest(self) -> Path | None:
        """The newest committed checkpoint, by its marker alone."""
        found = committed(self.folder)
        return found[-1] if found else None

    def newest_whole(self, unmarked: bool = False) -> Path | None:
        """The newest checkpoint whose every byte is as it was written; None where there is none at
        all. Ranks share the reading.

        Newer ones that are damaged are set aside by name, once a whole one is found.

        Args:
            unmarked: take one whose marker says nothing, as releases before hashes wrote it.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged; none was touched.
        """
        found = self.ranks.gather([path.name for path in step_folders(self.folder)])[0]
        damaged: dict[Path, list[str]] = {}
        for path in (self.folder / name for name in reversed(found)):
            if not (faults := self._faults(path, unmarked)):
                self._set_aside(damaged, path)
                return path
            damaged[path] = faults
        if damaged:
            raise ValueError(
                f"{self.folder}: every checkpoint is damaged: {_listed(damaged)}. Restore one of "
                "them from a backup and start the run again; to begin at step 0 instead, rename "
                f"{self.folder.name}"
            )
        return None

    def _faults(self, checkpoint: Path, unmarked: bool) -> list[str]:
        """What is wrong with a checkpoint; the same on all ranks."""
        told: tuple[list[FileEntry], str | None] = ([], None)
        if self.ranks.first:
            try:
                told = (read_marker(checkpoint), None)
            except ValueError as error:
                told = ([], str(error))
        listed, fault = self.ranks.gather(told)[0]
        if fault is not None:
            return [] if unmarked and (checkpoint / STATE_NAME).exists() else [fault]
        mine = listed[self.ranks.rank :: self.ranks.world]
        found = self.ranks.gather(self.ranks.together(lambda: faults(checkpoint, mine)))
        return sorted(fault for of_rank in found for fault in of_rank)

    def _set_aside(self, damaged: dict[Path, list[str]], whole: Path) -> None:
        if not damaged:
            return
        if self.ranks.first:
            out = Storage(str(self.folder.parent))
            for path in damaged:
                name = set_aside(out, f"{self.folder.name}/{path.name}")
                self.note(
                    f"{path.name} is damaged ({_listed({path: damaged[path]})}) and was moved to "
                    f"{out.path(name)}; going on from {whole.name}"
                )
        self.ranks.barrier()

    def remove_incomplete(self) -> None:
        """Remove what a killed run began to write or to remove; for rank 0, before anything is
        written.
        """
        remove_unfinished(self.folder / LATEST_NAME)
        for path in self.folder.glob(f"{TEMPORARY_PREFIX}step-*"):
            log.info("%s: removed, it was never completed", path)
            shutil.rmtree(path)

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """Start writing; training may change the parameters as soon as this returns.

        An earlier write that still runs is awaited first.

        Args:
            state: plain JSON values; those of rank 0 are kept.

        Raises:
            OSError: the disk has no room for it; everything committed earlier stays as it is.
        """
        self.commit_written(wait=True)
        target = self._temporary(step)
        tensors = _tensors(model, optimizer)
        if self.ranks.first:
            shutil.rmtree(target, ignore_errors=True)  # a killed run may have begun it
            target.mkdir(parents=True)
        self._check_room(tensors)
        rng = target / f"rng-{self.ranks.rank}.safetensors"
        save_file(_random_state(), rng)
        fsync_file(rng)
        if self.ranks.first:
            (target / STATE_NAME).write_text(
                json.dumps({**state, "step": step, "updates": _updates(optimizer)})
            )
            fsync_file(target / STATE_NAME)
        written = dcp.async_save(
            tensors, checkpoint_id=str(target), process_group=self.ranks.writers
        )
        assert isinstance(written, Future)
        described: Future[list[FileEntry]] = Future()
        written.add_done_callback(lambda done: self._describe(target, done, described))
        self._pending = step, described

    def _describe(
        self, target: Path, written: Future[Any], described: Future[list[FileEntry]]
    ) -> None:
        """Hash what this rank wrote, in the thread that wrote it."""
        try:
            written.result()
            rank = self.ranks.rank
            names = [path.name for path in target.glob(f"__{rank}_*.distcp")]
            names.append(f"rng-{rank}.safetensors")
            if self.ranks.first:
                names += [path.name for path in target.glob(".metadata")] + [STATE_NAME]
            described.set_result(describe(target, names))
        except BaseException as error:
            described.set_exception(error)

    def _temporary(self, step: int) -> Path:
        """Where a checkpoint lies until it is whole: the same name on all ranks."""
        return self.folder / f"{TEMPORARY_PREFIX}step-{step}"

    def commit_written(self, wait: bool = False) -> int | None:
        """Commit the write in the background if all ranks have ended it; with `wait`, see to it
        that they have.

        Returns:
            The step that became committed, or None.

        Raises:
            OSError: a rank could not write; what it began is removed.
        """
        if self._pending is None:
            return None
        step, future = self._pending
        if wait:
            future.exception()
        failure = future.exception() if future.done() else None
        running, failed = self.ranks.max(not future.done(), failure is not None)
        if running:
            return None
        self._pending = None
        target, temporary = self.folder / f"step-{step}", self._temporary(step)
        if failed:
            if self.ranks.first:
                shutil.rmtree(temporary, ignore_errors=True)
            newest = self.newest()
            raise OSError(
                f"{target}: the checkpoint could not be written ({failure or 'on another rank'}); "
                "free space or repair the disk and start the run again, it continues from "
                f"{newest.name if newest else 'its start'}"
            ) from failure
        entries = self.ranks.gather(future.result())
        if self.ranks.first:
            write_marker(temporary, [entry for of_rank in entries for entry in of_rank])
            self._publish(temporary, target)
            self._remove_old()
        return step

    def _publish(self, temporary: Path, target: Path) -> None:
        """Give a whole checkpoint its name."""
        if target.exists():  # somebody put it there meanwhile
            set_aside(Storage(str(self.folder.parent)), f"{self.folder.name}/{target.name}")
        os.rename(temporary, target)
        fsync_folder(self.folder)
        with writing_file(self.folder / LATEST_NAME) as latest:
            latest.write_text(target.name + "\n")

    def _remove_old(self) -> None:
        """Remove all checkpoints but the newest and the milestones."""
        for old in committed(self.folder)[: -self.keep]:
            if self.milestone_every is None or step_of(old) % self.milestone_every:
                leaving = self._temporary(step_of(old))  # so that a half removed one never counts
                os.rename(old, leaving)
                shutil.rmtree(leaving)

    def load(
        self, source: Path, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any]:
        """Read a whole checkpoint into the model and the optimizer, in place; returns the saved
        state.
        """
        state = read_state(source)
        dcp.load(
            _tensors(model, optimizer), checkpoint_id=str(source), process_group=self.ranks.writers
        )
        for slots in optimizer.state.values():
            slots["step"].fill_(state["updates"])
        rng = source / f"rng-{self.ranks.rank}.safetensors"
        if rng.exists():
            _set_random_state(load_file(rng))
        else:
            log.info(
                "%s has no random state for rank %d: it starts with its own",
                source.name,
                self.ranks.rank,
            )
        return state

    def _check_room(self, tensors: dict[str, Tensor]) -> None:
        """Refuse to begin what cannot fit, on all ranks alike."""
        local = sum(own_part(tensor).nbytes for tensor in tensors.values())
        needed = self.ranks.sum(local)[0]
        free = shutil.disk_usage(self.folder).free if self.ranks.first else float("inf")
        free = -self.ranks.max(-free)[0]
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{self.folder}: a checkpoint takes {size_text(needed)}, and {size_text(free)} are "
                "free on that disk; make room and start the run again, it continues from the "
                "newest committed checkpoint",
            )


def _listed(damaged: dict[Path, list[str]]) -> str:
    """`step-4: a.distcp is missing; step-8: ...`."""
    return "; ".join(
        f"{path.name}: {', '.join(faults[:3])}{' ...' * (len(faults) > 3)}"
        for path, faults in damaged.items()
    )


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Tuned parameters and their moments by name, in the memory of the model and the optimizer."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            tensors[f"model.{name}"] = parameter.detach()
            tensors[f"exp_avg.{name}"] = optimizer.state[parameter]["exp_avg"]
            tensors[f"exp_avg_sq.{name}"] = optimizer.state[parameter]["exp_avg_sq"]
    return tensors


def _updates(optimizer: torch.optim.Optimizer) -> float:
    """How often the optimizer moved the parameters: the same for all of them."""
    return float(next(iter(optimizer.state.values()))["step"])


def _random_state() -> dict[str, Tensor]:
    """State of the global generators of torch, Python, NumPy and CUDA, as tensors."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Tensor]) -> None:
    """Set the global generators to what `_random_state` gave."""
    torch.set_rng_state(state["torch"])
    version, *words = state["python"].tolist()
    gauss = state["python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))
    position, has_gauss, cached = state["numpy_rest"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
