"""What there is to train on and to ask about: whether the rows that the settings name are there and
can be read, and whether the sources have the videos that rows ask for.

Of each file the first rows are read, by the readers of the collection. What lies at an address or
on the hub is not fetched.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from assets.annotations.catalogue import read_catalogue, snapshot_name
from assets.annotations.files import is_address, local_paths
from assets.annotations.landing import question_files
from assets.annotations.readings import refuse_file
from assets.annotations.rows import RejectedRow, RowParser
from assets.deployment.settings import Settings
from assets.evaluation.questions import read_questions
from assets.fetching.errors import AnnotationError
from assets.fetching.table_files import SUFFIXES, read_rows
from assets.records.sentences import listed
from assets.records.withdrawals import Withdrawals, catalogued_parts
from assets.sources.base import OK
from assets.sources.drop import DropSource, video_files
from assets.sources.findings import Finding, missing, note, ok
from training.formats.storage import Storage

FIRST_ROWS = 1000  # of a file
NAMED = 5  # reasons that a line names
PLACE = "put it there, or correct annotations.paths"

Named = defaultdict[str, set[str]]  # source -> ids of the videos that rows name


def check_material(settings: Settings) -> Iterator[Finding]:
    """Whether the rows can be read, and whether each source of videos can be asked for theirs."""
    named: Named = defaultdict(set)
    for path in settings.annotations.paths:
        yield from _check_path(settings, path, named)
    if settings.landing is not None:
        yield from _check_landing(settings, settings.landing, named)
    there: Named = defaultdict(set)
    try:
        _add_finished(settings, there)
    except Exception as error:  # object stores raise whatever their client does
        found = f"{settings.root}: {type(error).__name__}: {error}"
        yield note("videos below root", found, "until it can be read, all videos are looked for")
    for name, source in sorted(settings.sources.items()):
        least = source.coverage_threshold
        if least is None:
            least = settings.download.coverage_threshold
        asked = named[name] - there[name] if least else set[str]()
        yield from source.findings(name, asked)
        # Also where no row can be read yet: all rows are about the only source.
        is_only = len(settings.sources) == 1 and least and not there[name] and not named[name]
        if (is_only or name in settings.questions.sources) and isinstance(source, DropSource):
            yield from _check_any(name, source)


def check_benchmark(settings: Settings) -> Iterator[Finding]:
    """Whether the questions of a benchmark can be read."""
    path, what = settings.evaluation.questions, "evaluation questions"
    if path is None:
        return
    try:
        questions = read_questions(path)
    except FileNotFoundError:
        advice = "put it there, or correct evaluation.questions"
        yield missing(what, f"{path}: no such file", advice)
    except OSError as error:
        yield missing(what, f"{path}: {error.strerror}", "make it a file that this user can read")
    except ValueError as error:
        yield missing(what, _in_one_line(error), "mend the file")
    else:
        yield ok(what, f"{path}: {len(questions):,} questions")


def _check_path(settings: Settings, path: str, named: Named) -> Iterator[Finding]:
    """One of `annotations.paths`: each of its files."""
    what = f"rows {Path(path).name}"
    if is_address(path):
        yield ok(what, f"{path}: an address; it is looked at when annotations are collected")
        return
    try:
        files = local_paths(path)
    except AnnotationError as error:
        yield missing(what, str(error), PLACE)
        return
    except OSError as error:
        yield missing(what, f"{path}: {error.strerror}", "make the folder readable for this user")
        return
    if not files:
        yield missing(what, f"{path}: no file of this folder is {' or '.join(SUFFIXES)}", PLACE)
    for file in files:
        yield _check_rows(settings, f"rows {file.name}", file, named)


def _check_landing(settings: Settings, folder: Path, named: Named) -> Iterator[Finding]:
    """The landing folder, and each file that landed."""
    rows_come_from_elsewhere = bool(
        settings.annotations.repo or settings.annotations.paths or settings.questions.sources
    )
    files = question_files(settings)
    if files:
        yield ok("landing", f"{folder}: {len(files):,} files")
    elif rows_come_from_elsewhere and folder.is_dir():
        yield ok("landing", f"{folder}: no file yet")
    else:
        found = f"{folder}: no file yet" if folder.is_dir() else f"no folder {folder}"
        say = note if rows_come_from_elsewhere else missing
        advice = "make the folder" if rows_come_from_elsewhere else "put files of rows there"
        yield say("landing", found, f"{advice}, or correct landing")
    for name, file in files.items():
        yield _check_rows(settings, f"rows landing/{name}", file, named)


def _check_rows(settings: Settings, what: str, file: Path, named: Named) -> Finding:
    """The first rows of a file; the videos that they name are added to `named`."""
    reasons, read = Counter[str](), 0
    try:
        rows = read_rows(file, str(file))
        columns, same = settings.annotations.columns, rows.same_columns
        parser = RowParser(settings.sources, columns, same_columns=same)
        for row in islice(rows, FIRST_ROWS):
            read += 1
            try:
                for pair in parser.parse_raw(row, str(file)):
                    named[pair.source].add(pair.id)
            except RejectedRow as error:
                reasons[str(error)] += 1
        if read < FIRST_ROWS and reasons.total() == read > 0:
            refuse_file(str(file), reasons, parser)
    except AnnotationError as error:
        return missing(what, _in_one_line(error), "mend the file, or annotations in the settings")
    except OSError as error:
        return missing(what, f"{file}: {error.strerror}", "make it readable for this user")
    rows_said = f"its first {read:,} rows" if read == FIRST_ROWS else f"its {read:,} rows"
    why = listed([f"{number:,} {reason}" for reason, number in reasons.most_common()], NAMED)
    if not read:
        return missing(what, f"{file}: holds no rows", "write rows into it, or take it out")
    if reasons.total() == read:
        advice = f"mend the rows; the settings have the sources {', '.join(parser.videos.names)}"
        say = note if read == FIRST_ROWS else missing  # rows that follow may be better
        return say(what, f"{file}: none of {rows_said} can be used: {why}", advice)
    if reasons:
        found = f"{file}: of {rows_said} {reasons.total():,} are set aside: {why}"
        return note(what, found, "mend these rows where they are needed")
    return ok(what, f"{file}: {rows_said} can be read")


def _check_any(name: str, source: DropSource) -> Iterator[Finding]:
    """Whether there is any video of a source without which nothing can be done."""
    if source.folder.is_dir() and any(video_files(source.folder, lambda line: None)):
        return
    advice = f"put videos there, or correct sources.{name}.folder"
    yield missing(f"videos of {name}", f"none below {source.folder}", advice)


def _add_finished(settings: Settings, done: Named) -> None:
    """Add the videos that need no file of their source any more: they are there, or withdrawn."""
    storage = Storage(settings.root)
    for video in Withdrawals.read(storage).videos:
        source, _, identifier = video.partition("/")
        done[source].add(identifier)
    for part in catalogued_parts(storage):
        for source in settings.sources:
            if storage.exists(snapshot_name(source, part)):
                rows = read_catalogue(storage, source, part).select(["id", "status"])
                done[source] |= {row["id"] for row in rows.to_pylist() if row["status"] == OK}


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
