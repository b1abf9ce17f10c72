"""Checkpoints of a running stage on a remote root, so that a machine that is replaced costs the
steps since the last one, and not the stage.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from assets.checkpoints.runs import newest_uploaded, results
from training.checkpoint_folder import COMMITTED_NAME, committed
from training.formats.storage import Storage
from training.run_folder import STATE_FOLDER

Say = Callable[[str], None]


@contextmanager
def uploading(
    storage: Storage, folder: str, out: Path, every_s: float | None, say: Say
) -> Iterator[Callable[[], None]]:
    """Upload checkpoints while the block trains; it calls what it is given now and then.

    When the block ends with an error, as a training that was stopped does, the newest checkpoint
    follows. When it ends well, the results do that for all of them.

    Args:
        folder: of the run, below the root.
        out: of the run, on this machine.
        every_s: seconds between the beginnings of two uploads; None for none.
        say: is told what was uploaded, and what could not be.
    """
    if storage.is_local or every_s is None:
        yield lambda: None
        return
    uploads = _Uploads(storage, folder, out, every_s, say)
    try:
        yield uploads.look
    except BaseException:
        uploads.wait()
        uploads.upload()
        raise
    uploads.wait()


class _Uploads:
    """One upload at a time, beside the training."""

    def __init__(self, storage: Storage, folder: str, out: Path, every_s: float, say: Say) -> None:
        self.storage, self.folder, self.out = storage, folder, out
        self.every_s, self.say = every_s, say
        self._begun = time.monotonic()
        self._running: threading.Thread | None = None

    def look(self) -> None:
        """Begin an upload if it is time for one."""
        if time.monotonic() - self._begun < self.every_s:
            return
        if self._running is not None and self._running.is_alive():
            return
        self._begun = time.monotonic()
        self._running = threading.Thread(target=self.upload, daemon=True)
        self._running.start()

    def wait(self) -> None:
        if self._running is not None:
            self._running.join()

    def upload(self) -> None:
        """Upload the newest checkpoint, its marker last, and remove older ones. What goes wrong is
        told: the training needs none of it.
        """
        found = committed(self.out / STATE_FOLDER)
        if not found:
            return
        target = f"{self.folder}/{STATE_FOLDER}/{found[-1].name}"
        try:
            if newest_uploaded(self.storage, self.folder) == target:
                return
            marker = found[-1] / COMMITTED_NAME
            files = {
                f"{target}/{file.relative_to(found[-1]).as_posix()}": file
                for file in found[-1].rglob("*")
                if file.is_file() and file != marker
            }
            self.storage.upload(results(self.out, self.folder) | files)
            self.storage.upload({f"{target}/{COMMITTED_NAME}": marker})
            self._remove_older(target)
        except Exception as error:  # object stores raise whatever their client does
            self.say(
                f"{found[-1].name} could not be uploaded to {self.storage.path(target)}: "
                f"{type(error).__name__}: {error}; the next one is tried in {self.every_s:.0f} s"
            )
            return
        self.say(f"{found[-1].name} is on {self.storage.path(target)}, for another machine")

    def _remove_older(self, kept: str) -> None:
        """Markers first, so that none of them is taken for whole."""
        names = self.storage.list(f"{self.folder}/{STATE_FOLDER}")
        old = [name for name in names if not name.startswith(f"{kept}/")]
        for name in sorted(old, key=lambda name: not name.endswith(f"/{COMMITTED_NAME}")):
            self.storage.remove(name)
