"""How a person obtains the videos of a set that only they can get.

{folder} and {list} are filled in. A licence is granted per person; no credential of it ever passes
through us.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MANIFEST = "ego4d.json"  # the official client's own list of all videos
EGO4D = (
    "Ego4D needs a licence of your own (https://ego4ddataset.com, granted within about two "
    "days). Then:\n"
    "  pip install ego4d && aws configure --profile ego4d\n"
    "  ego4d --output_directory {folder} --datasets full_scale --video_uid_file {list} "
    "--aws_profile_name ego4d -y\n"
    "Run this asset again afterwards; it adopts what is there. {list} is one list for all parts."
)
UNCHECKED = (
    " The client ends at the first uid that it does not know. Fetch its own list of them first, by "
    "`ego4d --output_directory {folder} --datasets annotations --metadata --aws_profile_name ego4d "
    "-y`, and run this asset again: it then drops what that list has not."
)
OTHERS = "Put the files listed in {list} into {folder} as <id>.mp4, and run this asset again."


def listed_for_ego4d(missing: Iterable[str], folder: Path) -> tuple[list[str], str]:
    """The uids that the official client is to be given, and what to say of the others.

    Args:
        folder: where the client puts its files; its list of all videos is looked for there.
    """
    wanted = sorted(missing)
    uids = [uid for uid in wanted if UID.fullmatch(uid)]
    known = _known(folder)
    kept = [uid for uid in uids if known is None or uid in known]
    said = UNCHECKED if known is None else ""
    dropped = [uid for uid in wanted if uid not in set(kept)]
    if dropped:
        named = ", ".join(dropped[:5]) + (", ..." if len(dropped) > 5 else "")
        said += f" Left out of the list, because Ego4D has no such uid: {len(dropped)} ({named})."
    return kept, said


def _known(folder: Path) -> set[str] | None:
    """All uids, by the client's own list; None where that is not there or not understood."""
    for path in (folder / MANIFEST, *sorted(folder.glob(f"*/{MANIFEST}"))):
        try:
            return {str(video["video_uid"]) for video in json.loads(path.read_bytes())["videos"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
