"""Checkpoints by name: the deployment's own as `stage3[lectures]`, the released ones as
`3b-tuning`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from assets.checkpoints.base import fetch_model
from assets.checkpoints.on_hub import OnHub, find_model, look_at, models_of
from assets.deployment.settings import Settings, load_settings
from assets.deployment.variants import HUB_NAME, checkpoints_of
from assets.fetching.errors import OperatorError
from assets.fetching.hub import Hub, HubRepo
from assets.records.lineage import Lineage, is_recorded, product
from model.config import PRESETS
from model.weights.kinds import Kind
from model.weights.released import AUTHOR, RELEASED, STAGE_NAMES, stage_by_name
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


def released_rows(found: Iterable[OnHub]) -> Iterator[dict[str, str]]:
    """What the hub has, a row each, with what to write for it in the settings."""
    for model in found:
        stage = "N" if model.stage is None else f"{model.stage}"
        start = f"{{repo: {model.repo}, stage: {stage}}}"
        named = f"stage {stage}, {STAGE_NAMES[model.stage]}" if model.stage else f"stage {stage}"
        yield {
            "repository": model.repo,
            "what": model.kind or model.why_not,
            "finished": named if model.kind else "",
            "size": f"{model.size / 1e9:.1f} GB",
            "as a variant": (
                f"NAME: {{preset: {model.preset}, start: {start}}}" if model.can_start else ""
            ),
        }


def guessed_rows() -> Iterator[dict[str, str]]:
    """The released checkpoints as this project expects them, where the hub cannot be asked; the
    size is that of bfloat16 weights.
    """
    for repo, known in RELEASED.items():
        of_modules = parameters(PRESETS[known.preset])
        size = BFLOAT16 * sum(of_modules[name] for name in MODULES)
        kind: Kind = "released Hour-LLaVA"
        guess = OnHub(repo, "", kind, known.preset, known.stage, size)
        yield {"name": known.name, **next(released_rows([guess]))}


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
        OperatorError: the hub does not have it, or asks for a token; says what it has.
        TransferError: the hub does not answer.
    """
    hub = Hub(settings.hub_endpoint, settings.download, log)
    repo = _released(hub, name, log) if "/" not in name else None
    if repo is None:
        text, _, revision = name.partition("@")
        if not re.fullmatch(HUB_NAME, text):
            known = ", ".join(known.name for known in RELEASED.values())
            raise ValueError(
                f"no released checkpoint {name!r}; they are {known}, or name any repository as "
                "namespace/name[@revision]"
            )
        repo = find_model(hub, text, revision or "main")
    target = folder or Path("checkpoints") / f"{repo.repo.replace('/', '--')}@{repo.commit[:12]}"
    fetch_model(repo, target, log)
    return target, stage_by_name(repo.repo)


def _released(hub: Hub, name: str, log: Callable[[str], None]) -> HubRepo | None:
    """The repository of a released checkpoint: the one that is expected, else the only one of the
    author's that holds it. None: there is no such name.

    Raises:
        OperatorError: the hub has none that is it, or not one alone; says what it has.
    """
    expected = {known.name: (repo, known) for repo, known in RELEASED.items()}
    if name not in expected:
        return None
    guess, known = expected[name]
    there = models_of(hub, AUTHOR)
    if guess in there:
        return hub.repo(guess, kind="model")
    looked = [look_at(hub, repo) for repo in there]
    wanted = ("released Hour-LLaVA", known.preset, known.stage)
    fitting = [one for one in looked if (one.kind, one.preset, one.stage) == wanted]
    if len(fitting) == 1:
        log(f"{name} is {fitting[0].repo} on the hub")
        return hub.repo(fitting[0].repo, kind="model")
    which = "several that may be it" if fitting else "nothing that is known to be it"
    raise OperatorError(
        f"{name}: the hub has no {guess}, and {which}. Of {AUTHOR} it has "
        f"{', '.join(there) or 'no model'}; name one as namespace/name"
    )
