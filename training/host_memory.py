"""How much of this machine's memory is free. No torch here."""

from __future__ import annotations

from pathlib import Path


def free_memory_of_host() -> float | None:
    """Bytes: what the kernel calls available, or the container's limit leaves, whichever is less.
    None where the kernel does not say.
    """
    found = [size for size in (_available(), _left_in_container()) if size is not None]
    return min(found, default=None)


def _available() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kibibytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024.0 * int(kibibytes[0]) if kibibytes else None


def _left_in_container() -> float | None:
    """Of the limit of control group version 2."""
    try:
        limit, used = (
            Path("/sys/fs/cgroup", name).read_text().strip()
            for name in ("memory.max", "memory.current")
        )
    except OSError:
        return None
    return None if limit == "max" else float(int(limit) - int(used))
