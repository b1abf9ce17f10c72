"""Where stage 1 starts: published LLaVA-OneVision weights, converted, or the project's own tiny
model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from assets.checkpoints.results import read_weights
from assets.deployment.settings import Settings
from assets.fetching.hub import Hub
from assets.records.lineage import origin_name
from model.config import PRESETS, VARIANTS
from training.formats import layout
from training.formats.storage import Storage

FILES = ("*.safetensors", "*.json", "merges.txt")


@dataclass(frozen=True, slots=True)
class BaseReport:
    """The starting point of a variant; `origins` names each source and its revision."""

    version: str
    folder: str
    origins: dict[str, str]
    tensors: int
    parameters: int


def prepare_base(
    storage: Storage, settings: Settings, variant: str, log: Callable[[str], None]
) -> BaseReport:
    """Make `checkpoints/<variant>/base/export`, a checkpoint that `from_pretrained` loads.

    Raises:
        ValueError: the weights do not fit the variant; the tensors are named.
        OperatorError: the hub does not have them, or asks for a token.
    """
    published = VARIANTS[variant].start
    if published is None:
        from model.weights.tiny import build_tiny

        return _publish(storage, variant, {"model/weights/tiny.py": "tiny"}, build_tiny)

    from model.weights.convert import convert_onevision

    chosen = settings.base_models.get(variant, published)
    if Path(chosen).is_dir():
        source, origins = (
            Path(chosen),
            {origin_name(storage, Path(chosen)): read_weights(Path(chosen)).version},
        )
    else:
        source, origins = _download(settings, chosen, log)
    report = _publish(
        storage,
        variant,
        origins,
        lambda export: convert_onevision(source, export, PRESETS[variant], seed=variant),
    )
    if not Path(chosen).is_dir():
        shutil.rmtree(source)
    return report


def _publish(
    storage: Storage, variant: str, origins: dict[str, str], make: Callable[[Path], None]
) -> BaseReport:
    folder = layout.base_checkpoint(variant)
    with storage.writing_folder(folder) as temporary:
        make(temporary / "export")
        weights = read_weights(temporary / "export")
    return BaseReport(weights.version, folder, origins, weights.tensors, weights.parameters)


def _download(
    settings: Settings, chosen: str, log: Callable[[str], None]
) -> tuple[Path, dict[str, str]]:
    """Fetch a model repository, `namespace/name` or `namespace/name@revision`, verified and
    resumable.
    """
    name, _, revision = chosen.partition("@")
    repo = Hub(settings.hub_endpoint, settings.download, log).repo(
        name, revision or "main", kind="model"
    )
    target = settings.training.scratch / "downloads" / f"{name.replace('/', '--')}@{repo.commit}"
    files = repo.files(FILES)
    for number, file in enumerate(files, 1):
        log(f"{name}: {file.path}, {file.size / 1e9:.2f} GB, file {number} of {len(files)}")
        repo.download(file, target / file.path)
    return target, {name: repo.commit}
