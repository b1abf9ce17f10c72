"""What the assets share: the deployment, that is its settings and its storage."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
from pydantic import Field

from assets.deployment.settings import Settings, load_settings
from training.formats.storage import Storage


class Deployment(dg.ConfigurableResource):
    """The settings of this deployment and the storage root they name."""

    config: str = Field(
        description="the deployment's settings file (YAML); see assets/deployment/settings.py for "
        "every key"
    )

    def settings(self) -> Settings:
        return load_settings(Path(self.config))

    def storage(self) -> Storage:
        return Storage(self.settings().root)
