"""Dagster's own run launcher, safe in a copied history.

A run's record holds the address of the code server that runs it. Whoever copies a history while the
original runs, and ends a run in the copy, would end it in the original: the address is the same. So
each run also records the folder of its own instance, and an instance ends only its own runs. A run
of another one is marked as canceled here, and left alone there.
"""

from __future__ import annotations

import json
from pathlib import Path

from dagster import DefaultRunLauncher
from dagster._core.launcher.base import LaunchRunContext
from dagster._core.storage.tags import HIDDEN_TAG_PREFIX

INSTANCE_TAG = f"{HIDDEN_TAG_PREFIX}instance_folder"


class InstanceRunLauncher(DefaultRunLauncher):
    """Launches runs on this machine's code server, and ends those of its own instance alone."""

    def launch_run(self, context: LaunchRunContext) -> None:
        """Launch a run, after noting whose it is."""
        tag = json.dumps({"folder": str(self._folder()), "identity": self._identity()})
        self._instance.add_run_tags(context.dagster_run.run_id, {INSTANCE_TAG: tag})
        super().launch_run(context)

    def terminate(self, run_id: str) -> bool:
        """End a run of this instance; mark one of another instance as canceled in this history."""
        run = self._instance.get_run_by_id(run_id) if self.has_instance else None
        if run is None or run.is_finished or INSTANCE_TAG not in run.tags:
            return bool(super().terminate(run_id))
        owner = json.loads(run.tags[INSTANCE_TAG])
        if owner["identity"] == self._identity():
            return bool(super().terminate(run_id))
        self._instance.report_run_canceled(
            run,
            f"This history is a copy: the run belongs to the instance in {owner['folder']}. It is "
            "marked as canceled here, and was left alone there; end it there if it still runs.",
        )
        return True

    def _folder(self) -> Path:
        return Path(self._instance.root_directory).resolve()

    def _identity(self) -> str:
        """What tells this instance's folder from a copy of it, wherever either is moved to."""
        status = self._folder().stat()
        return f"{status.st_dev}:{status.st_ino}"
