"""Checkpoints of a running stage: written in the background by all ranks, complete only when
marked.

    state/step-40/    .metadata, *.distcp   tuned parameters and optimizer moments, as
                                            torch.distributed.checkpoint writes them
                      rng-R.safetensors     random state of rank R
                      state.json            step, data position, whatever else the loop needs
                      COMMITTED             written last, when every rank has finished: a folder
                                            without it does not count
    state/latest      name of the newest committed folder, for people

Frozen parameters are those of the run's start and are not written. The shards are laid out anew
when read, so another number of ranks may continue. These folders are read only by the run that
wrote them; what leaves a run is the export.
"""

from __future__ import annotations

import errno
import json
import logging
import random
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.atomic import fsync_file, remove_unfinished, writing_file
from training.parallel import Ranks

log = logging.getLogger(__name__)

COMMITTED_NAME = "COMMITTED"
LATEST_NAME = "latest"
STATE_NAME = "state.json"


class Checkpoints:
    """The checkpoints of one run in one folder. Every rank calls `save`, `commit_written` and
    `load` alike.

    Args:
        folder: holds a folder for each checkpoint.
        keep: how many committed checkpoints stay, the newest ones.
    """

    def __init__(self, folder: Path, keep: int, ranks: Ranks) -> None:
        self.folder = folder
        self.keep = keep
        self.ranks = ranks
        self._pending: tuple[int, Future[Any]] | None = None

    def newest(self) -> Path | None:
        """The newest committed checkpoint."""
        found = committed(self.folder)
        return found[-1] if found else None

    def remove_incomplete(self) -> None:
        """Remove what a killed run began to write; for rank 0, before anything is written."""
        remove_unfinished(self.folder / LATEST_NAME)
        whole = set(committed(self.folder))
        for path in self.folder.glob("step-*"):
            if path not in whole:
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
        target = self.folder / f"step-{step}"
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
        future = dcp.async_save(
            tensors, checkpoint_id=str(target), process_group=self.ranks.writers
        )
        assert isinstance(future, Future)
        self._pending = step, future

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
        target = self.folder / f"step-{step}"
        if failed:
            if self.ranks.first:
                shutil.rmtree(target, ignore_errors=True)
            newest = self.newest()
            raise OSError(
                f"{target}: the checkpoint could not be written ({failure or 'on another rank'}); "
                "free space or repair the disk and start the run again, it continues from "
                f"{newest.name if newest else 'its start'}"
            ) from failure
        if self.ranks.first:
            with writing_file(target / COMMITTED_NAME) as marker:
                marker.touch()
            with writing_file(self.folder / LATEST_NAME) as latest:
                latest.write_text(target.name + "\n")
            for old in committed(self.folder)[: -self.keep]:
                (old / COMMITTED_NAME).unlink()  # first, so that a half removed folder never counts
                shutil.rmtree(old)
        return step

    def load(
        self, source: Path, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any]:
        """Read a committed checkpoint into the model and the optimizer, in place; returns the saved
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
        local = sum(_local(tensor).nbytes for tensor in tensors.values())
        needed = self.ranks.sum(local)[0]
        free = shutil.disk_usage(self.folder).free if self.ranks.first else float("inf")
        free = -self.ranks.max(-free)[0]
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{self.folder}: a checkpoint takes {needed / 2**30:.1f} GiB and "
                f"{free / 2**30:.1f} GiB are free; free space and start the run again, it "
                "continues from the newest committed checkpoint",
            )


def committed(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    found = [path.parent for path in folder.glob(f"step-*/{COMMITTED_NAME}")]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The plain values of a checkpoint."""
    return dict(json.loads((checkpoint / STATE_NAME).read_text()))


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


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


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
