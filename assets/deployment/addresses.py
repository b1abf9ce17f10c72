"""What others have to know to find something: where `hourllava serve` listens by default, as the
pages of the UI tell it, and what the job is called that the command line launches.
"""

from urllib.parse import quote, urlencode

PORT = 8765
FINE_TUNE_JOB, FINE_TUNE_OP = "fine_tune", "fine_tune_variant"


def ask_address(checkpoint: str) -> str:
    """How a person opens a checkpoint (`stage3[tiny]`) to ask it."""
    query = urlencode({"checkpoint": checkpoint})
    return f"`hourllava serve`, then http://127.0.0.1:{PORT}/?{query}"


def gallery_address(variant: str) -> str:
    """Where the server shows a variant's gallery."""
    return f"http://127.0.0.1:{PORT}/gallery/{quote(variant)}"
