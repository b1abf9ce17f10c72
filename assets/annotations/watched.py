"""Outside data that is watched: which version of it is there now. No run is spent on looking."""

from __future__ import annotations

import re
from collections.abc import Callable

from assets.annotations.landing import landing_fingerprint
from assets.deployment.graph import COLLECTIONS
from assets.deployment.settings import Settings

LANDING, HUB_ANNOTATIONS = "landing", "hub_annotations"
# Asset -> the repository (None where files are read instead) and its revision.
HUB_REPOS: dict[str, Callable[[Settings], tuple[str | None, str]]] = {
    HUB_ANNOTATIONS: lambda settings: (settings.annotations.repo, settings.annotations.revision),
    "hub_llava_onevision": lambda settings: (
        settings.collections.onevision_repo,
        settings.collections.onevision_revision,
    ),
    "hub_llava_video": lambda settings: (
        settings.collections.video_repo,
        settings.collections.video_revision,
    ),
}
WATCHED = (LANDING, HUB_ANNOTATIONS, *(f"hub_{collection}" for collection in COLLECTIONS))
NOTHING_THERE = "nothing there"


def watched_version(name: str, settings: Settings) -> str:
    """The version of one of `WATCHED`: a fingerprint of the landing folder, or the commit that a
    revision is now.

    `NOTHING_THERE` for an empty landing folder, and where files are read instead of a repository:
    that is a state like others, and nobody waits for it to change.

    Raises:
        OSError: the hub cannot be reached or does not answer.
    """
    if name == LANDING:
        return landing_fingerprint(settings) or NOTHING_THERE
    repo, revision = HUB_REPOS[name](settings)
    if repo is None:
        return NOTHING_THERE
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi

    # Its errors are OSErrors: requests' and httpx's connection errors, and HfHubHTTPError.
    info = HfApi(endpoint=settings.hub_endpoint).dataset_info(repo, revision=revision, timeout=20)
    return str(info.sha)
