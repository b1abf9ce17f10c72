"""What the variants start from: whether it is there, whole, and what the settings take it for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from assets.checkpoints.base import base_is_made
from assets.checkpoints.on_hub import OnHub, cached_models, describe, find_model
from assets.deployment.addresses import config_option
from assets.deployment.settings import Settings
from assets.deployment.variants import Start, start_of
from assets.fetching.errors import OperatorError, TransferError
from assets.fetching.hub import Hub
from assets.sources.findings import Finding, missing, note, ok
from model.weights.kinds import preset_of, read_config, recognise
from model.weights.tensors import checkpoint_files, length_fault


def check_starts(settings: Settings, config: Path | None = None) -> Iterator[Finding]:
    """Where the training of each variant begins.

    Args:
        config: file of the settings, where one was chosen.
    """
    listing = f"hourllava checkpoints{config_option(config)}"
    mend = f"correct its start; {listing} lists those there are"
    for name, variant in settings.variants.items():
        start, what = start_of(variant), f"start of {name}"
        if start is None:
            continue
        if start.folder is not None:
            yield _in_folder(what, start.folder, start, variant.preset, mend)
        elif base_is_made(settings, name):
            yield ok(what, f"{start.repo}, stage {start.finished}; it was fetched and converted")
        else:
            yield _on_hub(settings, what, start, variant.preset, mend)


def _in_folder(what: str, folder: Path, start: Start, preset: str, mend: str) -> Finding:
    if not (folder / "config.json").exists():
        advice = f"put the checkpoint there, or {mend}"
        return missing(what, f"no config.json in {folder}", advice)
    try:
        kind, found = recognise(folder), preset_of(read_config(folder))
        faults = [fault for file in checkpoint_files(folder) if (fault := length_fault(file))]
    except Exception as error:  # a damaged header raises whatever safetensors does
        return missing(what, f"{folder}: {error}", "put the checkpoint there again")
    if faults:
        return missing(what, f"{folder}: {'; '.join(faults)}", "put the checkpoint there again")
    if found != preset:
        return missing(what, f"{folder}: {kind} of {found or 'no known preset'}", mend)
    return ok(what, f"{folder}: {kind} of {preset}, whole, stage {start.finished}")


def _on_hub(settings: Settings, what: str, start: Start, preset: str, mend: str) -> Finding:
    """A repository, by what the hub says of it."""
    once = settings.download.model_copy(update={"attempts": 1})
    hub = Hub(settings.hub_endpoint, once, lambda line: None)
    try:
        found = describe(find_model(hub, str(start.repo), start.revision))
    except TransferError:
        here = [row["repository"] for row in cached_models()]
        found_here = "in its cache here: " + (", ".join(here) or "no model")
        advice = "connect, or name a folder as its start"
        return note(what, f"{start.repo}: {hub.api.endpoint} does not answer; {found_here}", advice)
    except (OperatorError, ValueError) as error:
        return missing(what, str(error), mend)
    return _as_expected(what, found, start, preset, mend)


def _as_expected(what: str, found: OnHub, start: Start, preset: str, mend: str) -> Finding:
    seen = f"{found.repo}@{found.commit[:12]}"
    if not found.can_start:
        return missing(what, f"{seen}: {found.why_not}", mend)
    if found.preset != preset:
        return missing(what, f"{seen}: {found.kind} of {found.preset}, not of {preset}", mend)
    stage = f"stage {start.finished}"
    if found.stage not in (None, start.finished):
        advice = "compare start.stage with the repository's page"
        return note(what, f"{seen}: {stage}, its name says stage {found.stage}", advice)
    return ok(what, f"{seen}: {found.kind} of {preset}, {found.size / 1e9:.1f} GB, {stage}")
