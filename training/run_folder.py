"""A run's folder: whose it is, how far it is, and what it leaves when it is done.

Nothing here is deleted. What is damaged goes below `damaged/`, what belongs to another run, or to
steps that are taken again, to `earlier-N/`. No torch: the asset graph reads it, too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.checkpoint_folder import committed, read_state, step_folders, step_of
from training.formats.receipts import FileEntry, Stamps, describe_files, find_damage, set_aside
from training.formats.storage import Storage
from training.metrics import ANSWERS_NAME, METRICS_NAME, read_metrics
from training.run_config import OtherState
from training.run_identity import Identity, differences
from training.state import TrainState

IDENTITY_NAME = "identity.json"
RESULT_NAME = "result.json"
STATE_FOLDER = "state"
EXPORT_NAME = "export"
NONFINITE_NAME = "nonfinite.jsonl"  # samples of steps that were not taken
SAMPLES_FOLDER = "samples"
TENSORBOARD_FOLDER = "tensorboard"
# What a run makes. "fingerprint" is what releases before identities signed a folder with.
RUN_FILES = (
    STATE_FOLDER, RESULT_NAME, EXPORT_NAME, METRICS_NAME, SAMPLES_FOLDER, TENSORBOARD_FOLDER,
    NONFINITE_NAME, ANSWERS_NAME, IDENTITY_NAME, "fingerprint",
)  # fmt: skip
EARLIER = "earlier-"  # what was set aside because it is of another run, or is made again

Note = Callable[[str], None]


class RunFolder:
    """The folder of one run; for the one rank that holds its lock.

    Args:
        out: the folder.
        note: is told what people should see.
    """

    def __init__(self, out: Path, note: Note) -> None:
        self.out, self.note = out, note
        self.storage = Storage(str(out))

    def claim(self, identity: Identity, other: OtherState) -> None:
        """See to it that what lies here is of this run, and sign the folder.

        Raises:
            ValueError: it is of another run, or says not of which; what differs is named.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        signed = dict(self._identities())
        foreign = {
            name: theirs for name, theirs in signed.items() if theirs not in (None, identity)
        }
        unknown = None in signed.values() and IDENTITY_NAME not in signed
        if (foreign or (unknown and other != "adopt")) and self._holds_work():
            if other != "set_aside":
                raise ValueError(self._refusal(foreign, signed, identity))
            self._set_aside_all()
        elif foreign:  # nothing but records of steps that no checkpoint holds
            self._set_aside_all()
        if signed.get(IDENTITY_NAME) != identity or not (self.out / IDENTITY_NAME).exists():
            self.storage.write_json(IDENTITY_NAME, identity)

    def go_back(self, step: int) -> None:
        """Move checkpoints after `step`, and what was made of them, to `earlier-N/`, so that the
        run goes on from there. Where that was done already, nothing happens.

        Raises:
            ValueError: there is no checkpoint of that step.
        """
        folders = step_folders(self.out / STATE_FOLDER)
        later = [path for path in folders if step_of(path) > step]
        if later and _values(later[-1]).get("continued_from") == step:
            return
        if self.out / STATE_FOLDER / f"step-{step}" not in committed(self.out / STATE_FOLDER):
            known = ", ".join(str(step_of(path)) for path in folders) or "none"
            raise ValueError(
                f"continue_from: {self.out / STATE_FOLDER} holds no checkpoint of step {step}; "
                f"steps with one: {known}. Set milestone_every to keep some for ever"
            )
        if not later:
            return
        place = self._earlier()
        metrics = self.out / METRICS_NAME
        if metrics.exists():  # a copy: the records up to that step stay in use
            (place / METRICS_NAME).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(metrics, place / METRICS_NAME)
        for name in (
            RESULT_NAME,
            EXPORT_NAME,
            *(f"{STATE_FOLDER}/{path.name}" for path in reversed(later)),
        ):
            self._move(name, place)
        self.note(f"back to step {step}: later checkpoints were moved to {place}")

    def finished(self) -> dict[str, Any] | None:
        """The result, if the run is finished and its export is whole; every byte of it is read.

        What is not whole is named and set aside, to be made again from the last checkpoint.

        Raises:
            ValueError: something is not whole and there is no checkpoint to make it from; nothing
                was touched.
        """
        if not (self.out / RESULT_NAME).exists():
            return None
        try:
            result = json.loads((self.out / RESULT_NAME).read_text())
            entries = [FileEntry(**entry) for entry in result["files"]]
            records = int(result["metrics_records"])
        except (ValueError, LookupError, TypeError):
            self._start_again_at_the_end(f"{RESULT_NAME} cannot be read or does not say its files")
            return None
        if damage := find_damage(self.storage, entries, Stamps(), full=True):
            self._start_again_at_the_end("; ".join(map(str, damage)))
            return None
        if (found := len(list(read_metrics(self.out / METRICS_NAME)))) != records:
            self.note(
                f"{self.out / METRICS_NAME} holds {found} records and had {records} when the run "
                "was finished; the export is whole, the curve is not"
            )
        return dict(result)

    def remove_incomplete(self) -> None:
        """Remove what a killed export or result began to write."""
        for name in (EXPORT_NAME, "replaced", RESULT_NAME, IDENTITY_NAME):
            self.storage.remove_unfinished(name)

    def write_result(
        self, state: TrainState, identity: Identity, export: str, world: int
    ) -> dict[str, Any]:
        """Write `result.json`, which says that the run is complete, and return its content.

        Losses are means over the first and the last tenth of the steps.

        Args:
            state: of all ranks, after the last step.
            export: name of the export's folder, just written.
            world: number of ranks.
        """
        records = list(read_metrics(self.out / METRICS_NAME))
        losses = [record["loss"] for record in records if record["loss"] is not None]
        tenth = max(1, len(losses) // 10)
        result = {
            "first_loss": sum(losses[:tenth]) / tenth if losses else None,
            "last_loss": sum(losses[-tenth:]) / tenth if losses else None,
            "steps": state.step,
            "samples": state.samples,
            "tokens": state.tokens,
            "supervised": state.supervised,
            "seconds": state.seconds,
            "skipped_steps": state.skipped,
            "dropped": dict(state.dropped),
            "ranks": world,
            "export": export,
            "files": [
                asdict(entry) for entry in describe_files(self.storage, self.storage.list(export))
            ],
            "metrics_records": len(records),
            "identity": identity,
        }
        self.storage.write_json(RESULT_NAME, result)
        return result

    def _identities(self) -> Iterator[tuple[str, Identity | None]]:
        """Who everything here says it is of; None where it does not say. What cannot be read is
        left out.
        """
        if isinstance(signed := _json(self.out / IDENTITY_NAME), dict):
            yield IDENTITY_NAME, signed
        for path in step_folders(self.out / STATE_FOLDER):
            if state := _values(path):
                yield path.name, state.get("identity")
        if isinstance(result := _json(self.out / RESULT_NAME), dict):
            yield RESULT_NAME, result.get("identity")

    def _holds_work(self) -> bool:
        """Whether there is something here that took long to make."""
        made = (RESULT_NAME, EXPORT_NAME)
        return bool(step_folders(self.out / STATE_FOLDER)) or any(
            (self.out / n).exists() for n in made
        )

    def _refusal(
        self,
        foreign: Mapping[str, Identity | None],
        signed: Mapping[str, Identity | None],
        identity: Identity,
    ) -> str:
        """Why what lies here is not gone on with, and what a person can do."""
        if not foreign:
            names = ", ".join(name for name, theirs in signed.items() if theirs is None)
            return (
                f"{self.out}: {names} does not say of which run it is (an earlier release wrote "
                "it). If it is of this one, set on_other_state to 'adopt'; to start at step 0 and "
                "keep it under another name, set it to 'set_aside'"
            )
        name, theirs = next(iter(foreign.items()))
        told = "; ".join(differences(theirs or {}, identity))
        return (
            f"{self.out}: {name} is of another run: {told}. Nothing was changed. Use the earlier "
            "values, choose another folder, or set on_other_state to 'set_aside', which keeps what "
            "is there under another name and starts at step 0"
        )

    def _start_again_at_the_end(self, fault: str) -> None:
        """Set the end of the run aside, so that it is made once more from the last checkpoint."""
        if not step_folders(self.out / STATE_FOLDER):
            raise ValueError(
                f"{self.out}: the run was finished, but {fault}; and there is no checkpoint in "
                f"{STATE_FOLDER}/ to make it from. Nothing was changed. Restore {RESULT_NAME} and "
                f"{EXPORT_NAME}/ from a backup, or rename {self.out.name} to train from step 0"
            )
        names = [name for name in (RESULT_NAME, EXPORT_NAME) if (self.out / name).exists()]
        moved = ", ".join(set_aside(self.storage, name) for name in names)
        self.note(
            f"{self.out}: the run was finished, but {fault}; set aside as {moved}, and made again "
            "from the last checkpoint"
        )

    def _set_aside_all(self) -> None:
        place = self._earlier()
        names = [path.name for path in self.out.iterdir()]
        for name in sorted(names):
            if name in RUN_FILES:
                self._move(name, place)
        self.note(f"{self.out}: what was there is of another run and was moved to {place.name}/")

    def _earlier(self) -> Path:
        number = 1
        while (place := self.out / f"{EARLIER}{number}").exists():
            number += 1
        return place

    def _move(self, name: str, place: Path) -> None:
        if (self.out / name).exists():
            self.storage.move(name, f"{place.name}/{name}")


def _json(path: Path) -> Any:
    """The JSON value of a file; None where it is not there or cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _values(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's plain values; none where they cannot be read."""
    try:
        return read_state(checkpoint)
    except (OSError, ValueError, TypeError):
        return {}
