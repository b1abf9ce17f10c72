"""`hourllava serve`: the page and the endpoint, for a deployment's checkpoints or for folders."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from assets.deployment.addresses import PORT
from pipeline.ask import add_fetching_options, at_least_one

if TYPE_CHECKING:
    from training.formats.storage import Storage


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `hourllava serve` takes."""
    parser.add_argument(
        "--checkpoint",
        action="append",
        type=Path,
        default=[],
        help="an export, a stage's run or a released checkpoint; may be given several times. "
        "Those of the deployment are there besides",
    )
    parser.add_argument(
        "--videos",
        action="append",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="a folder whose videos may be asked about; may be given several times",
    )
    parser.add_argument(
        "--no-deployment", action="store_true", help="leave the deployment's own out"
    )
    parser.add_argument("--host", default="127.0.0.1", help="another one needs a token")
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"where it listens (default: {PORT})"
    )
    parser.add_argument(
        "--upload-mib", type=at_least_one, default=2048, help="the largest upload (default: 2048)"
    )
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="auto: a GPU where there is one",
    )
    add_fetching_options(parser)


def serve(chosen: argparse.Namespace) -> int:
    """Run the server until Ctrl+C; returns the exit code."""
    if find_spec("nicegui") is None:
        raise ValueError("the page needs an extra: pip install 'hour-llava[serve]'")
    from assets.checkpoints.named import checkpoint_folder
    from assets.serving.access import TOKEN_VARIABLE, check_address

    token = os.environ.get(TOKEN_VARIABLE) or None
    check_address(chosen.host, token)
    folders = {_name(given): checkpoint_folder(given, chosen.config) for given in chosen.checkpoint}
    for folder in chosen.videos:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
    # Only now: what is wrong with the options is told at once.
    from assets.inference.checkpoint import log_to_terminal as log
    from assets.serving import server
    from assets.serving.engine import Engine
    from assets.serving.library import Fetching, Library

    roots = [folder.resolve() for folder in chosen.videos]
    rules = Fetching(tuple(chosen.allow_host), chosen.accept_youtube_terms)
    storage = None if chosen.no_deployment else _storage(chosen)
    with (
        tempfile.TemporaryDirectory(prefix="hourllava-serve-") as scratch,
        Library(
            folders,
            storage,
            roots,
            Path(scratch),
            fetching=rules,
            upload_bytes=chosen.upload_mib << 20,
        ) as library,
        Engine(library, chosen.device) as engine,
    ):
        if not (names := library.checkpoints()):
            raise ValueError("no checkpoint: give --checkpoint, or the settings of a deployment")
        log(f"{len(names)} checkpoints: {', '.join(names)}")
        log(f"http://{chosen.host}:{chosen.port}/ (a page), /v1 (for clients of OpenAI's protocol)")
        server.serve(engine, chosen.host, chosen.port, token)
    print("hourllava serve: stopped", file=sys.stderr)
    return 0


def _storage(chosen: argparse.Namespace) -> Storage:
    from assets.deployment.settings import load_settings
    from training.formats.storage import Storage

    return Storage(load_settings(chosen.config).root)


def _name(folder: Path) -> str:
    """A checkpoint's name in lists: its folder's, or of the folder of the run that holds it; a
    product's own.
    """
    folder = folder.resolve()
    return folder.parent.name if folder.name == "export" else folder.name
