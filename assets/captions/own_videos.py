"""The videos that lie in a drop source's folder, under the ids by which the source will find them
again once rows ask for them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from assets.annotations.video_names import RejectedRow, VideoNames
from assets.deployment.settings import Settings
from assets.fetching.errors import OperatorError
from assets.sources.base import VideoFiles, composed
from assets.sources.drop import DropSource, video_files
from training.formats.hashing import hash_file


@dataclass(frozen=True, slots=True)
class OwnVideo:
    """A file of the folder.

    Attributes:
        video: `source/id`.
        path: of the file.
        name: of the file below the folder.
        reason: why nothing can be asked about it; empty where something can.
    """

    video: str
    path: Path
    name: str
    reason: str = ""

    @property
    def id(self) -> str:
        return self.video.partition("/")[2]


@dataclass(frozen=True, slots=True)
class Content:
    """What was found in a file, and how the file looked then.

    Attributes:
        size: bytes.
        changed_ns: time of its last change.
        sha256: of the file.
        duration: seconds.
    """

    size: int
    changed_ns: int
    sha256: str
    duration: float


def drop_source(settings: Settings, name: str) -> DropSource:
    """A source whose files lie in a folder of the operator.

    Raises:
        OperatorError: there is none of that name, or it is of another kind; its folder is missing.
    """
    source = settings.sources.get(name)
    if not isinstance(source, DropSource):
        said = "there is no such source" if source is None else "it is of another kind"
        raise OperatorError(
            f"questions.sources: {name}: {said}; only videos of sources of the kind drop can be "
            "described before any row asks for them"
        )
    if not source.folder.is_dir():
        raise OperatorError(f"{source.folder}: no such folder (sources.{name}.folder)")
    return source


def own_videos(
    settings: Settings, name: str, withdrawn: Container[str], log: Callable[[str], None]
) -> list[OwnVideo]:
    """The videos of a source's folder by their ids, without those that were withdrawn.

    Raises:
        OperatorError: as `drop_source`.
    """
    folder = drop_source(settings, name).folder
    paths = {path.relative_to(folder).as_posix(): path for path in video_files(folder, log)}
    files, names = VideoFiles(paths), VideoNames(settings.sources)
    found = []
    for below, path in sorted(paths.items()):
        identifier = composed(below).rsplit(".", 1)[0]
        video = f"{name}/{identifier}"
        if video not in withdrawn:
            reason = _fault(files.that_may_be(identifier), names, name, identifier)
            found.append(OwnVideo(video, path, below, reason))
    return sorted(found, key=lambda one: (one.video, one.name))


def content_of(
    one: OwnVideo, known: Mapping[str, Content], duration: Callable[[Path], float]
) -> Content:
    """What is in a file; it is read only where it does not look as it did before.

    Args:
        known: by `source/id`, from before.
        duration: reads it from a file.

    Raises:
        InvalidVideo: it is no readable video.
    """
    stat, before = one.path.stat(), known.get(one.video)
    if before and (before.size, before.changed_ns) == (stat.st_size, stat.st_mtime_ns):
        return before
    return Content(stat.st_size, stat.st_mtime_ns, hash_file(one.path), duration(one.path))


def _fault(candidates: Iterable[str], names: VideoNames, source: str, identifier: str) -> str:
    """Why rows with this id would not lead to this file; empty where they would."""
    if len(list(candidates)) > 1:
        return "ambiguous"
    try:
        found = names.find(identifier, source)
    except RejectedRow as error:
        return str(error)
    return "" if found == (source, identifier) else "name_not_usable"
