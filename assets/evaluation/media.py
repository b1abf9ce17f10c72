"""What is asked, told by the bytes of its media: a video that was replaced under its name is asked
about again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from assets.evaluation.questions import EvaluationQuestion
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.receipts import Stamps, describe_files
from training.formats.storage import Storage

STAMPS = f"{layout.STAMPS}/asked_media.json"  # of a deployment, below its root


def question_versions(
    questions: Sequence[EvaluationQuestion], media: Path, stamps_file: Path
) -> dict[str, str]:
    """Hashes of what questions are, with the bytes of their media, by id.

    Args:
        media: folder that the questions' paths count from.
        stamps_file: what is remembered of the media, so that each is read once: facts of this
            machine, which cost time only where they are lost.
    """
    named = {
        question.id: [media / rel for rel in (question.path, question.subtitles) if rel]
        for question in questions
    }
    hashes = _hashes({path for paths in named.values() for path in paths}, stamps_file)
    return {
        question.id: data_version([asdict(question), *map(hashes.__getitem__, named[question.id])])
        for question in questions
    }


def _hashes(paths: Iterable[Path], stamps_file: Path) -> dict[Path, str]:
    """SHA-256 of files; empty where there is none, or none that can be read."""
    machine = Storage("/")
    kept = Storage(str(stamps_file.parent.absolute()))
    stamps = Stamps.read(kept, stamps_file.name)
    before, hashes = dict(stamps.known), {}
    for path in sorted(paths):
        name = os.path.abspath(path).lstrip("/")
        hashes[path] = ""
        with suppress(OSError, ValueError):  # the question finds out, and it is its problem
            known, stamp = stamps.known.get(name, ("", ""))
            if not known or stamp != machine.stamp(name):
                [entry] = describe_files(machine, [name], stamps)
                known = entry.hash
            hashes[path] = known
    if stamps.known != before:
        stamps.write(kept, stamps_file.name)
    return hashes
