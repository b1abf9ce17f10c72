"""The long videos and questions of a deployment: as they were acquired, or as they lie in its
folders, or as a person says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from assets.annotations.catalogue import read_catalogue
from assets.annotations.files import is_address, local_paths
from assets.annotations.landing import question_files
from assets.deployment.settings import Settings
from assets.fetching.errors import AnnotationError
from assets.fetching.locked_children import InvalidVideo
from assets.fetching.probe import ProbePool
from assets.fetching.table_files import read_rows
from assets.records.withdrawals import Withdrawals, active_parts
from assets.sources.base import EXHAUSTED, PERMANENT
from assets.sources.drop import DropSource, video_files
from pipeline.estimate.arithmetic import BIT_RATE, HOUR
from training.formats.storage import Storage

LOOKED_INTO = 12  # files of a folder; the others are taken to be as long by their size


@dataclass(frozen=True, slots=True)
class Material:
    """What there is to train on and to ask about.

    Attributes:
        durations: seconds of each video.
        questions: rows about all of them.
        size: bytes of the videos.
        origins: where each of these numbers is from.
    """

    durations: tuple[float, ...]
    questions: int
    size: float
    origins: tuple[str, ...]

    @property
    def hours(self) -> float:
        return sum(self.durations) / HOUR

    @property
    def videos(self) -> int:
        return len(self.durations)


def given_material(hours: float, videos: int | None, questions: int) -> Material:
    """The material that a person describes; `videos` None: each of an hour.

    Raises:
        ValueError: there is none of it.
    """
    count = videos if videos is not None else max(1, round(hours))
    if hours <= 0 or count < 1 or questions < 1:
        raise ValueError(
            f"{hours:g} hours, {count} videos, {questions} questions: give more than 0 of each"
        )
    told = "as given" if videos is not None else "as given, taken to be an hour each"
    origins = (f"hours and questions {told}", f"size assumed, {BIT_RATE / 1e6:g} Mbit/s")
    return Material(
        (hours * HOUR / count,) * count, questions, hours * HOUR * BIT_RATE / 8, origins
    )


def measured_material(
    settings: Settings, questions: int | None, log: Callable[[str], None]
) -> Material:
    """The material of a deployment: what its catalogue says of videos that were looked into, else
    what lies in the folders of its `drop` sources.

    Args:
        questions: their number, where a person says it.

    Raises:
        ValueError: the videos or the questions cannot be counted; says what to give instead.
    """
    storage = Storage(settings.root)
    catalogued = _catalogued(storage, settings)
    found = catalogued if catalogued is not None and catalogued.videos else None
    if found is None:
        videos, size, origin = _in_folders(settings, log)
        counted = catalogued.questions if catalogued else 0
        if questions is None and not counted:
            counted = _rows_of_files(settings)
        found = Material(videos, counted, size, (origin,))
    if questions is not None:
        found = Material(
            found.durations, questions, found.size, (*found.origins, "questions as given")
        )
    if not found.questions:
        raise ValueError(
            "the rows cannot be counted before the annotations are collected: give --questions"
        )
    return found


def _catalogued(storage: Storage, settings: Settings) -> Material | None:
    """The videos of the catalogue whose length is known, with the questions about all that may
    come; None before there is a catalogue.
    """
    parts = active_parts(storage)
    if not parts:
        return None
    withdrawn = Withdrawals.read(storage).videos
    durations: list[float] = []
    size, questions, unknown = 0.0, 0, 0
    for part in parts:
        for source in sorted(settings.sources):
            for row in read_catalogue(storage, source, part).to_pylist():
                if row["video"] in withdrawn or row["status"] in (PERMANENT, EXHAUSTED):
                    continue
                questions += row["questions"] or 0
                seconds = row["duration"] or row["expected_duration"]
                unknown += not seconds
                if seconds:
                    durations.append(seconds)
                    size += row["size"] or seconds * BIT_RATE / 8
    if durations and unknown:  # taken to be like the others
        mean = sum(durations) / len(durations)
        size *= (len(durations) + unknown) / len(durations)
        durations += [mean] * unknown
    told = f"{unknown} of {len(durations)} videos taken to be like the others" if unknown else ""
    origins = ("by the catalogue", told) if told else ("by the catalogue",)
    return Material(tuple(durations), questions, size, origins)


def _in_folders(
    settings: Settings, log: Callable[[str], None]
) -> tuple[tuple[float, ...], float, str]:
    """Seconds of the videos in the folders of the settings, their bytes, and how they were
    measured.

    Raises:
        ValueError: there are none.
    """
    folders = [
        source.folder for source in settings.sources.values() if isinstance(source, DropSource)
    ]
    sizes = {
        path: path.stat().st_size
        for folder in folders
        if folder.is_dir()
        for path in video_files(folder, log)
    }
    seconds = _lengths(_spread(sorted(sizes, key=lambda path: (sizes[path], path))), log)
    if not seconds:
        where = ", ".join(
            str(folder) if folder.is_dir() else f"no folder {folder}" for folder in folders
        )
        where = where or "no source of the kind drop"
        raise ValueError(
            f"no video whose length is known yet ({where}): give --hours, --videos and --questions"
        )
    pace = sum(seconds.values()) / sum(sizes[path] for path in seconds)
    durations = tuple(seconds.get(path, pace * size) for path, size in sizes.items())
    origin = f"{len(seconds)} of {len(sizes)} files looked into"
    if len(seconds) < len(sizes):
        origin += ", the others by their size"
    return durations, float(sum(sizes.values())), origin


def _spread(paths: list[Path]) -> list[Path]:
    """At most `LOOKED_INTO` of them, evenly from the first to the last."""
    if len(paths) <= LOOKED_INTO:
        return paths
    return [paths[place * (len(paths) - 1) // (LOOKED_INTO - 1)] for place in range(LOOKED_INTO)]


def _lengths(paths: list[Path], log: Callable[[str], None]) -> dict[Path, float]:
    """Seconds of those that are readable videos."""
    found = {}
    with ProbePool() as pool:
        for path in paths:
            try:
                found[path] = pool.probe(path).duration
            except InvalidVideo as error:
                log(f"{path}: {error}; its length is taken from its size")
    return found


def _rows_of_files(settings: Settings) -> int:
    """The rows of local annotation files; 0 where they are elsewhere.

    Raises:
        ValueError: a file is not there, cannot be read, or all of them hold no rows.
    """
    paths = [path for path in settings.annotations.paths if not is_address(path)]
    try:
        files = [file for path in paths for file in local_paths(path)]
        files += question_files(settings).values()
        rows = sum(sum(1 for _ in read_rows(file, str(file))) for file in files)
    except (AnnotationError, OSError) as error:
        raise ValueError(f"{error}; mend that, or give --questions") from error
    if files and not rows:
        raise ValueError(f"{', '.join(map(str, files))}: no rows; write some, or give --questions")
    return rows
