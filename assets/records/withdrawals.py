"""What a person took out of the deployment: parts that were given up, videos that were withdrawn.

Both stand in one small file (`layout.WITHDRAWALS`) with a reason and a time. It decides, and not
Dagster's list of partitions: anybody can type a partition into a dialog.
"""

from __future__ import annotations

import fcntl
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Self

from assets.deployment.parts import part_index
from assets.fetching.disk import scratch
from training.formats import layout
from training.formats.storage import Storage

LONGEST_REASON = 500  # characters
# Of the steps that change the file: one at a time, since no file lock holds between machines that
# share an object store.
POOL = "withdrawals"


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Why something was taken out, and when.

    Attributes:
        reason: in a person's words, one line.
        at: UTC, ISO 8601, to the second.
    """

    reason: str
    at: str

    @classmethod
    def now(cls, reason: str) -> Self:
        """A withdrawal of this moment.

        Raises:
            ValueError: the reason is empty or too long.
        """
        words = " ".join(
            "".join(" " if unicodedata.category(c)[0] == "C" else c for c in reason).split()
        )
        if not words:
            raise ValueError("give a reason: whoever finds it missing later has only that")
        if len(words) > LONGEST_REASON:
            raise ValueError(f"the reason has {len(words)} characters, at most {LONGEST_REASON}")
        return cls(words, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))


@dataclass(frozen=True, slots=True)
class Withdrawals:
    """Everything that was taken out.

    Attributes:
        parts: name -> withdrawal, of parts that were given up. Their files stay.
        videos: `source/id` -> withdrawal. Their files are gone, and they are never fetched again.
    """

    parts: Mapping[str, Withdrawal] = field(default_factory=dict)
    videos: Mapping[str, Withdrawal] = field(default_factory=dict)

    @classmethod
    def read(cls, storage: Storage) -> Self:
        """What is recorded; nothing where nothing was ever taken out.

        Raises:
            ValueError: the file is not what this module writes.
        """
        if not storage.exists(layout.WITHDRAWALS):
            return cls()
        try:
            raw = storage.read_json(layout.WITHDRAWALS)
            return cls(
                **{
                    kind: {name: Withdrawal(**entry) for name, entry in raw[kind].items()}
                    for kind in ("parts", "videos")
                }
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{storage.path(layout.WITHDRAWALS)}: not a record of withdrawals ({error}); "
                "restore it from a backup: without it, withdrawn videos would be fetched again"
            ) from error

    def write(self, storage: Storage) -> None:
        """Replace what is recorded."""
        storage.write_json(layout.WITHDRAWALS, asdict(self))


def change(storage: Storage, changed: Callable[[Withdrawals], Withdrawals]) -> Withdrawals:
    """Replace what is recorded by what `changed` makes of it, and return that. Whoever else changes
    it meanwhile waits: an entry that is overwritten is a video that is fetched again.

    On a remote root only this machine's processes wait.
    """
    with open(scratch(storage, "locks") / "withdrawals.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process, however that dies
        storage.forget_listings()  # another machine may have written the first record
        before = Withdrawals.read(storage)
        after = changed(before)
        if after != before:
            after.write(storage)
    return after


def record_withdrawn(storage: Storage, video: str, entry: Withdrawal) -> None:
    """Record that a video is withdrawn."""
    change(storage, lambda now: Withdrawals(now.parts, {**now.videos, video: entry}))


def catalogued_parts(storage: Storage) -> list[str]:
    """Every part that the catalogue knows, in order; none before there is a catalogue."""
    if not storage.exists(layout.PARTS):
        return []
    parts = storage.read_json(layout.PARTS)["parts"]
    return sorted((entry["name"] for entry in parts), key=part_index)


def active_parts(storage: Storage) -> list[str]:
    """The parts that the pipeline works on: those of the catalogue that were not given up."""
    given_up = Withdrawals.read(storage).parts
    return [part for part in catalogued_parts(storage) if part not in given_up]


def require_active(storage: Storage, part: str) -> None:
    """Stop a step for a part that nobody works on: anybody can type one into a dialog.

    Raises:
        ValueError: the part was given up, or the catalogue does not know it.
    """
    if given_up := Withdrawals.read(storage).parts.get(part):
        raise ValueError(
            f"{part} was given up on {given_up.at} ({given_up.reason}); take it back before "
            "anything is made of it"
        )
    if part not in (known := catalogued_parts(storage)):
        raise ValueError(
            f"there is no part {part!r}; the catalogue has {', '.join(known) or 'none yet'}. Parts "
            "come from new data alone, and the sensor watch_outside_data removes this one from the "
            "list"
        )


def give_up_part(storage: Storage, part: str, reason: str) -> Withdrawals:
    """Record that the pipeline goes on without a part. Its files stay where they are.

    A part that was given up already keeps its reason and time.

    Raises:
        ValueError: the part is not catalogued, is the only one left, or there is no reason.
    """
    given_up = Withdrawal.now(reason)

    def changed(now: Withdrawals) -> Withdrawals:
        known = catalogued_parts(storage)
        if part not in known:
            raise ValueError(
                f"there is no part {part!r}; the catalogue has {', '.join(known) or 'none'}"
            )
        if part in now.parts:
            return now
        if [name for name in known if name not in now.parts] == [part]:
            raise ValueError(f"{part} is the only part left: nothing could be trained without it")
        return Withdrawals({**now.parts, part: given_up}, now.videos)

    return change(storage, changed)


def take_back_part(storage: Storage, part: str) -> Withdrawals:
    """Record that the pipeline works on a part again.

    Raises:
        ValueError: the part was not given up.
    """

    def changed(now: Withdrawals) -> Withdrawals:
        if part not in now.parts:
            given_up = ", ".join(sorted(now.parts)) or "none"
            raise ValueError(f"{part!r} was not given up; parts that were: {given_up}")
        kept = {name: entry for name, entry in now.parts.items() if name != part}
        return Withdrawals(kept, now.videos)

    return change(storage, changed)
