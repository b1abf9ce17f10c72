"""Videos that a person obtains and drops into a folder: licensed sets such as Ego4D, or one's own."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from assets.annotations.catalogue import FOLDER, MANUAL_MISSING, PERMANENT, VideoRow
from assets.deployment.settings import DropSource
from assets.fetching.retry import raise_if_disk
from assets.sources.base import Fetched, Outcome, match_stems
from assets.sources.hub import SUFFIXES
from training.formats.storage import Storage

# {folder} and {list} are filled in. The licence is granted per person; no credential of it ever
# passes through us.
INSTRUCTIONS = {
    "ego4d": """Ego4D needs a licence of your own (https://ego4ddataset.com, granted within about two days). Then:
  pip install ego4d && aws configure --profile ego4d
  ego4d --output_directory {folder} --datasets full_scale --video_uid_file {list} --aws_profile_name ego4d -y
Run this asset again afterwards; it adopts what is there.""",
}
DEFAULT_INSTRUCTIONS = (
    "Put the files listed in {list} into {folder} as <id>.mp4, and run this asset again."
)


class DropFetcher:
    """Adopts files from a folder by their name. The folder itself is never changed."""

    min_interval_s = 0.0

    def __init__(
        self, storage: Storage, name: str, part: str, source: DropSource, log: Callable[[str], None]
    ) -> None:
        self.storage, self.name, self.part, self.source, self.log = storage, name, part, source, log
        self.found: dict[str, Path] = {}
        self._copies_noted = False

    def prepare(self, rows: list[VideoRow]) -> dict[str, Outcome]:
        stems: dict[str, list[str]] = defaultdict(list)
        folder = self.source.folder
        for parent, _, names in os.walk(folder):
            for name in names:
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    stems[name.rsplit(".", 1)[0]].append(
                        (Path(parent) / name).relative_to(folder).as_posix()
                    )
        outcomes = {}
        for identifier, paths in match_stems(rows, stems).items():
            if len(paths) > 1:
                several = f"several files could be it: {', '.join(sorted(paths))}"
                outcomes[identifier] = Outcome(PERMANENT, "ambiguous", several[:500])
            elif paths:
                self.found[identifier] = folder / paths[0]
            else:
                outcomes[identifier] = Outcome(MANUAL_MISSING, "not_dropped", f"not below {folder}")
        return outcomes

    def host(self, row: VideoRow) -> str:
        return "folder"

    def fetch(self, row: VideoRow, folder: Path, watch: Callable[[int], None]) -> Fetched:
        dropped, target = self.found[row.id], folder / "file"
        target.unlink(missing_ok=True)
        try:
            os.link(dropped, target)  # no second copy of terabytes where the disk is the same
        except OSError as error:
            if not self._copies_noted:
                self._copies_noted = True
                self.log(f"{self.source.folder}: files are copied, not linked ({error.strerror})")
            try:
                shutil.copyfile(dropped, target)
            except OSError as failure:
                raise_if_disk(failure)
                raise
        return Fetched(target, str(dropped), checked=True)

    def instructions(self, missing: list[str]) -> str:
        """What a person has to do, with the list of what is missing written below the root."""
        name = f"{FOLDER}/{self.name}/{self.part}.missing.txt"
        self.storage.write_bytes(
            name, "".join(f"{identifier}\n" for identifier in missing).encode()
        )
        text = self.source.instructions or INSTRUCTIONS.get(self.name, DEFAULT_INSTRUCTIONS)
        return text.replace("{folder}", str(self.source.folder)).replace(
            "{list}", self.storage.path(name)
        )
