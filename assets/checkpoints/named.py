"""Checkpoints by name: the deployment's own as `stage3[lectures]`, the released ones as
`3b-tuning`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from assets.checkpoints.base import fetch_model
from assets.deployment.settings import Settings, load_settings
from assets.deployment.variants import HUB_NAME, checkpoints_of
from assets.fetching.hub import Hub
from assets.records.lineage import Lineage, is_recorded, product
from model.config import PRESETS
from model.weights.released import RELEASED, STAGE_NAMES
from training.flops import parameters
from training.formats.storage import Storage
from training.recipes import MODULES

_PRODUCT = re.compile(r"(?:base_model|stage[1-9]|ablation)\[[^\[\]/]+\]")
BFLOAT16 = 2  # bytes of a parameter


@dataclass(frozen=True, slots=True)
class OwnCheckpoint:
    """A checkpoint of the deployment.

    Attributes:
        name: its product.
        made: whether it is there; `folder` is then its folder below the root.
        parameters: how many it has.
    """

    name: str
    made: bool
    folder: str = ""
    parameters: int = 0


def checkpoint_folder(given: Path, config: Path | None) -> Path:
    """The folder of a checkpoint that was named as a product, `stage3[lectures]`; any other path as
    it is.

    Args:
        config: the deployment's settings, as `load_settings` takes them.

    Raises:
        FileNotFoundError: it was not made yet.
    """
    if not _PRODUCT.fullmatch(str(given)) or given.exists():
        return given
    storage = Storage(load_settings(config).root)
    return storage.local_folder(f"{Lineage.read(storage, str(given)).folder}/export")


def released_rows() -> Iterator[dict[str, str]]:
    """The released checkpoints, a row each; the size is that of bfloat16 weights."""
    for repo, known in RELEASED.items():
        of_modules = parameters(PRESETS[known.preset])
        count = sum(of_modules[name] for name in MODULES)
        start = f"{{repo: {repo}, stage: {known.stage}}}"
        yield {
            "name": known.name,
            "finished": f"stage {known.stage}, {STAGE_NAMES[known.stage]}",
            "size": f"{BFLOAT16 * count / 1e9:.1f} GB",
            "as a variant": f"NAME: {{preset: {known.preset}, start: {start}}}",
        }


def own_checkpoints(settings: Settings) -> Iterator[OwnCheckpoint]:
    """Those that the settings' variants have or will have."""
    storage = Storage(settings.root)
    for variant, chosen in settings.variants.items():
        for asset in checkpoints_of(chosen):
            name = product(asset, variant)
            if is_recorded(storage, name):
                record = Lineage.read(storage, name)
                count = record.counts.get("parameters", 0)
                yield OwnCheckpoint(name, True, f"{record.folder}/export", count)
            else:
                yield OwnCheckpoint(name, False)


def fetch_released(
    settings: Settings, name: str, folder: Path | None, log: Callable[[str], None]
) -> tuple[Path, int | None]:
    """Fetch a model repository into a folder, verified and resumable.

    Args:
        name: of a released checkpoint, or `namespace/name[@revision]` on the hub.
        folder: where to; by default one below `checkpoints/` in the current folder, named after
            the repository and its commit.

    Returns:
        The folder, and the stage that the checkpoint has finished, where that is known.

    Raises:
        ValueError: there is no such name; the known ones are named.
        OperatorError: the hub does not have it, or asks for a token.
    """
    repos = {known.name: repo for repo, known in RELEASED.items()}
    text, _, revision = repos.get(name, name).partition("@")
    if not re.fullmatch(HUB_NAME, text):
        raise ValueError(
            f"no released checkpoint {name!r}; they are {', '.join(repos)}, or name any repository "
            "as namespace/name[@revision]"
        )
    hub = Hub(settings.hub_endpoint, settings.download, log)
    repo = hub.repo(text, revision or "main", kind="model")
    target = folder or Path("checkpoints") / f"{text.replace('/', '--')}@{repo.commit[:12]}"
    fetch_model(repo, target, log)
    known = RELEASED.get(text)
    return target, known.stage if known else None
