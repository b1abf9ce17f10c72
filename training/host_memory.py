"""How much of this machine's memory is free. No torch here."""

from __future__ import annotations

from pathlib import Path

MEMINFO, CONTROL_GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def free_memory_of_host() -> float | None:
    """Bytes: what the kernel calls available, or the container's limit leaves, whichever is less.
    None where the kernel does not say.
    """
    found = [size for size in (_available(), _left_in_container()) if size is not None]
    return min(found, default=None)


def _available() -> float | None:
    try:
        kibibytes = _numbers(MEMINFO).get("MemAvailable:")
    except OSError:
        return None
    return None if kibibytes is None else 1024.0 * kibibytes


def _left_in_container() -> float | None:
    """Of the limit of control group version 2, with the files' pages that the kernel gives up for
    it.
    """
    try:
        limit, used = (
            (CONTROL_GROUP / name).read_text().strip() for name in ("memory.max", "memory.current")
        )
        held = _numbers(CONTROL_GROUP / "memory.stat")
    except OSError:
        return None
    if limit == "max":
        return None
    # What was used lately counts by half: for MemAvailable, too, the kernel counts that much of
    # pages and slabs at least. Files in memory (tmpfs) are in none of them.
    lately = held.get("active_file", 0) + held.get("slab_reclaimable", 0)
    return int(limit) - int(used) + held.get("inactive_file", 0) + lately / 2


def _numbers(path: Path) -> dict[str, int]:
    """The first number of each line, by the word before it."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines}
