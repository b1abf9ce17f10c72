"""What others have to know to find something: where `hourllava serve` listens by default, as the
pages of the UI tell it, with which settings a command goes on, and what the job is called that the
command line launches.
"""

import os
import shlex
from pathlib import Path
from urllib.parse import quote, urlencode

from assets.deployment.settings import CONFIG_VARIABLE, DEFAULT_CONFIG

PORT = 8765
FINE_TUNE_JOB, FINE_TUNE_OP = "fine_tune", "fine_tune_variant"


def config_option(config: Path | None) -> str:
    """` --config FILE` for a command that a person is told to run; empty where it reads these
    settings without it.

    Args:
        config: the settings that were chosen; None: those that are read without a choice.
    """
    default = Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG)
    if config is None or config.resolve() == default.resolve():
        return ""
    return _option(config)


def ask_address(checkpoint: str) -> str:
    """How a person opens a checkpoint (`stage3[tiny]`) to ask it."""
    query = urlencode({"checkpoint": checkpoint})
    return f"{serve_command()}, then http://127.0.0.1:{PORT}/?{query}"


def serve_command() -> str:
    """The command that serves this process's deployment, for the page of an asset."""
    # The variable is this process's; the terminal in which the server is started may not have it.
    config = os.environ.get(CONFIG_VARIABLE)
    return f"`hourllava serve{_option(Path(config).resolve()) if config else ''}`"


def _option(config: Path) -> str:
    return f" --config {shlex.quote(str(config))}"


def gallery_address(variant: str) -> str:
    """Where the server shows a variant's gallery."""
    return f"http://127.0.0.1:{PORT}/gallery/{quote(variant)}"
