"""Peak memory of a process. Not getrusage's: that one begins with the peak of the process that
started this one.
"""

import re
from pathlib import Path


def peak_mib() -> float:
    """Most memory that this process has held at once, in MiB, since it started or since
    `forget_peak`.
    """
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
