"""Where `hourllava serve` is found by default, as the pages of the UI tell it."""

from urllib.parse import quote, urlencode

PORT = 8765


def ask_address(checkpoint: str) -> str:
    """How a person opens a checkpoint (`stage3[tiny]`) to ask it."""
    query = urlencode({"checkpoint": checkpoint})
    return f"`hourllava serve`, then http://127.0.0.1:{PORT}/?{query}"


def gallery_address(variant: str) -> str:
    """Where the server shows a variant's gallery."""
    return f"http://127.0.0.1:{PORT}/gallery/{quote(variant)}"
