"""Where a variant's training starts: a checkpoint from the hub or a folder, written as one of ours,
pretrained parts that installed packages hold, or the project's own tiny model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from assets.checkpoints.on_hub import find_model
from assets.checkpoints.results import read_weights
from assets.deployment.settings import Settings
from assets.deployment.variants import Start, start_of
from assets.fetching.hub import Hub, HubRepo
from assets.records.lineage import Lineage, is_recorded, origin_name, product
from model.config import PRESETS, VARIANTS
from training.formats import layout
from training.formats.storage import Storage

FILES = ("*.safetensors", "*.json", "merges.txt")


@dataclass(frozen=True, slots=True)
class BaseReport:
    """The starting point of a variant; `kind` says what it is, `origins` names each source and its
    revision.
    """

    version: str
    folder: str
    kind: str
    origins: dict[str, str]
    tensors: int
    parameters: int


def prepare_base(
    storage: Storage, settings: Settings, variant: str, log: Callable[[str], None]
) -> BaseReport:
    """Make `checkpoints/<variant>/base/export`, a checkpoint that `from_pretrained` loads.

    Raises:
        ValueError: the weights do not fit the variant, and the tensors are named; or a package is
            not installed, and it says how to install it.
        OperatorError: the hub does not have them, or asks for a token.
    """
    chosen = settings.variants[variant]
    start = start_of(chosen)
    if start is None and VARIANTS[chosen.preset].packaged:
        from model.weights.packaged import build_packaged, origins_of

        preset = PRESETS[chosen.preset]

        def assemble(export: Path) -> str:
            build_packaged(export, preset, seed=variant)
            return "parts out of installed packages"

        return _publish(storage, variant, origins_of(preset), assemble)
    if start is None:
        from model.weights.tiny import build_tiny

        def build(export: Path) -> str:
            build_tiny(export)
            return "built from a seed"

        return _publish(storage, variant, {"model/weights/tiny.py": "tiny"}, build)

    from model.weights.starts import write_start

    def write(export: Path) -> str:
        return write_start(source, export, chosen.preset, start.finished, seed=variant)

    if start.folder is not None:
        source = start.folder
        name = origin_name(storage, source)
        return _publish(storage, variant, {name: read_weights(source).version}, write)
    source, origins = _download(settings, start, log)
    report = _publish(storage, variant, origins, write)
    shutil.rmtree(source)
    return report


def base_is_made(settings: Settings, variant: str) -> bool:
    """Whether the starting point of a variant was made from the start that the settings have."""
    storage, name = Storage(settings.root), product("base_model", variant)
    if not is_recorded(storage, name):
        return False
    facts = settings.variants[variant].facts
    return bool(Lineage.read(storage, name).config.get("start") == facts)


def _publish(
    storage: Storage, variant: str, origins: dict[str, str], make: Callable[[Path], str]
) -> BaseReport:
    folder = layout.base_checkpoint(variant)
    with storage.writing_folder(folder) as temporary:
        kind = make(temporary / "export")
        weights = read_weights(temporary / "export")
    return BaseReport(weights.version, folder, kind, origins, weights.tensors, weights.parameters)


def _download(
    settings: Settings, start: Start, log: Callable[[str], None]
) -> tuple[Path, dict[str, str]]:
    """Fetch a model repository, verified and resumable."""
    hub = Hub(settings.hub_endpoint, settings.download, log)
    repo = find_model(hub, str(start.repo), start.revision)
    folder = f"{repo.repo.replace('/', '--')}@{repo.commit}"
    target = settings.training.scratch / "downloads" / folder
    fetch_model(repo, target, log)
    return target, {repo.repo: repo.commit}


def fetch_model(repo: HubRepo, target: Path, log: Callable[[str], None]) -> None:
    """Fetch the files of a model repository into a folder, going on where it was interrupted."""
    files = repo.files(FILES)
    for number, file in enumerate(files, 1):
        log(f"{repo.repo}: {file.path}, {file.size / 1e9:.2f} GB, {number} of {len(files)} files")
        repo.download(file, target / file.path)
