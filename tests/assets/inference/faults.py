"""A decoder that misbehaves on videos whose name says so; used inside decoding processes."""

import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from assets.inference.stretches import open_stretch
from tests.assets.features.faults import Wrapped, harm


@contextmanager
def open_faulty(path: str, **options):
    """After five pictures of its stretch it hangs, crashes or ends, as `harm` has it."""
    with open_stretch(path, **options) as video:
        yield Wrapped(video, partial(harm, Path(path).stem))


@contextmanager
def open_disagreeing(path: str, **options):
    """All stretches but the first say that the video has another picture."""
    with open_stretch(path, **options) as video:
        video.facts["chosen"] += options["stretch"] > 0
        yield video


@contextmanager
def open_hanging_at_once(path: str, **options):
    """The first stretch hangs after five pictures, while the others have not begun."""
    if options["stretch"] > 0:
        time.sleep(3600)
    with open_stretch(path, **options) as video:
        yield Wrapped(video, partial(harm, "hang"))
