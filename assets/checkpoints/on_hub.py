"""Model repositories on the hub: those of an author, what each holds, and one that is named.

A repository is known by its configuration and the names of its tensors, of which only the headers
travel. Its name decides no more than the stage, which nothing else shows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.fetching.errors import AccessError, OperatorError, TransferError
from assets.fetching.hub import Hub, HubFile, HubRepo
from model.weights.kinds import Kind, kind_of, parsed_config, preset_of
from model.weights.released import stage_by_name
from model.weights.tensors import INDEX_NAME

MOST_HEADER = 64 << 20  # bytes of a safetensors header
MOST_TEXT = 64 << 20  # bytes of a config.json or an index


@dataclass(frozen=True, slots=True)
class OnHub:
    """A model repository.

    Attributes:
        kind: what it holds; None: nothing that training can start from.
        preset: whose sizes its configuration has; None: of no preset.
        stage: that it has finished, by its name; None where that does not say.
        size: bytes of its weights.
        why_not: why it is of no kind or cannot be looked into; empty where it is and can.
    """

    repo: str
    commit: str
    kind: Kind | None = None
    preset: str | None = None
    stage: int | None = None
    size: int = 0
    why_not: str = ""

    @property
    def can_start(self) -> bool:
        """Whether training can start from it."""
        return self.kind is not None and self.preset is not None


def models_of(hub: Hub, author: str) -> list[str]:
    """The model repositories of an author, by name.

    Raises:
        AccessError, TransferError: the hub does not say.
    """
    listed = hub.retrying(lambda: list(hub.api.list_models(author=author)), f"models of {author}")
    return sorted(model.id for model in listed)


def find_model(hub: Hub, name: str, revision: str = "main") -> HubRepo:
    """A model repository at a revision that is made definite.

    Raises:
        OperatorError, AccessError: the hub does not have it, or shows it to others alone; says
            which ones of the same author it has.
        TransferError: the hub does not answer.
    """
    try:
        return hub.repo(name, revision, kind="model")
    except (OperatorError, AccessError) as error:
        raise type(error)(
            f"the hub has no model {name} at {revision}, or shows it to others alone. "
            f"{_others(hub, name)} ({error})"
        ) from error


def _others(hub: Hub, name: str) -> str:
    author = name.partition("/")[0]
    try:
        there = models_of(hub, author)
    except (OperatorError, AccessError, TransferError) as error:
        return f"What {author} has there could not be asked: {error}"
    return f"Of {author} it has {', '.join(there) or 'no model'}"


def look_at(hub: Hub, name: str) -> OnHub:
    """What a repository holds. One that cannot be read is described so."""
    try:
        repo = hub.repo(name, kind="model")
        return describe(repo)
    except (OperatorError, AccessError, TransferError, ValueError) as error:
        return OnHub(name, "", why_not=str(error))


def describe(repo: HubRepo) -> OnHub:
    """What a repository holds.

    Raises:
        ValueError: its configuration, its index or a header is none.
        AccessError, OperatorError, TransferError: the hub does not give them.
    """
    wanted = ("*.safetensors", "config.json", INDEX_NAME)
    files = {file.path: file for file in repo.files(wanted) if "/" not in file.path}
    weights = [file for path, file in files.items() if path.endswith(".safetensors")]
    size = sum(file.size for file in weights)
    if "config.json" not in files or not weights:
        lacking = "config.json" if "config.json" not in files else "*.safetensors"
        return OnHub(repo.repo, repo.commit, size=size, why_not=f"it has no {lacking}")
    places = _index(repo, files[INDEX_NAME]) if INDEX_NAME in files else None
    if absent := sorted(set((places or {}).values()) - set(files)):
        why_not = f"{', '.join(absent[:3])} of its index is not there"
        return OnHub(repo.repo, repo.commit, size=size, why_not=why_not)
    config = _json(repo, files["config.json"])
    kind = kind_of(config, _names_in(repo, weights) if places is None else places)
    preset = preset_of(config)
    why_not = ""
    if kind is None:
        why_not = "its tensors are of no checkpoint that training starts from"
    elif preset is None:
        why_not = "its sizes are of no preset"
    stage = 0 if kind == "LLaVA-OneVision" else stage_by_name(repo.repo)
    return OnHub(repo.repo, repo.commit, kind, preset, stage, size, why_not)


def _index(repo: HubRepo, file: HubFile) -> dict[str, str]:
    """Tensor -> the file that holds it.

    Raises:
        ValueError: the index is none.
    """
    found = _json(repo, file).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ValueError(f"{repo}: {file.path} has no weight_map of file names")
    return found


def _names_in(repo: HubRepo, weights: Iterable[HubFile]) -> Iterator[str]:
    """Names of the tensors, from the files' headers."""
    for file in weights:
        with repo.open(file) as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > min(file.size, MOST_HEADER):
                raise ValueError(f"{repo}: {file.path} has no header of a safetensors file")
            header = opened.read(length) or b""
        yield from parsed_config(header, f"{repo}: {file.path}")


def _json(repo: HubRepo, file: HubFile) -> dict[str, Any]:
    """A small JSON file of a repository.

    Raises:
        ValueError: it is none, or not small.
    """
    if file.size > MOST_TEXT:
        raise ValueError(f"{repo}: {file.path} has {file.size:,} bytes")
    with tempfile.TemporaryDirectory() as scratch:
        path = repo.download(file, Path(scratch) / "fetched.json")
        return parsed_config(path.read_bytes(), f"{repo}: {file.path}")


def cached_models() -> list[dict[str, str]]:
    """The model repositories in this machine's cache of the hub: their folders can be a start."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return [
        {
            "repository": repo.repo_id,
            "size": f"{revision.size_on_disk / 1e9:.1f} GB",
            "as a start": f"{{folder: {revision.snapshot_path}, stage: N}}",
        }
        for repo in sorted(found, key=lambda repo: repo.repo_id)
        if repo.repo_type == "model"
        for revision in sorted(repo.revisions, key=lambda revision: revision.commit_hash)
    ]
