"""What a person may change for one run, in the launchpad. All other runs follow the settings.

Each class is the run configuration of one asset; its defaults change nothing. What was set for a
run is recorded in the lineage of its product. A product's version is a hash of its content, so it
is right whatever is set here.
"""

from typing import Any

import dagster as dg
from pydantic import Field

from assets.deployment.compute import Pool, PoolName
from assets.deployment.settings import Settings
from model.configuration import Section, parse


def _changed(section: Section, **values: Any) -> Any:
    """A section of the settings with those values in place of its own that are not None."""
    return section.model_copy(
        update={name: value for name, value in values.items() if value is not None}
    )


class _Launch(dg.Config):
    """What the run configurations have in common."""

    def chosen(self) -> dict[str, Any]:
        """The fields that were set for this run, for the lineage record."""
        defaults = type(self)().model_dump()
        return {name: value for name, value in self.model_dump().items() if value != defaults[name]}


class _JobLaunch(_Launch):
    """Of assets whose work may be a job of Slurm."""

    job: dict[str, Any] = Field(
        default={},
        description="How this run's jobs are submitted, over compute.gpu or compute.cpu of the "
        "settings: {partition: debug, time_limit: '30', nodes: 2, gpus_per_node: 4, extra: "
        "['--qos=high']}, or {engine: local} for none.",
    )

    def submitted(self, settings: Settings, pool: PoolName) -> Settings:
        """The settings with this run's jobs.

        Raises:
            ValueError: there is no such key, or a value does not fit.
        """
        if not self.job:
            return settings
        earlier = settings.compute.pool(pool).model_dump(exclude_unset=True)
        local = self.job.get("engine") == "local"
        try:
            chosen = parse(Pool, self.job if local else {**earlier, **self.job})
        except ValueError as error:
            raise ValueError(f"job: {error}") from None
        return _changed(settings, compute=_changed(settings.compute, **{pool: chosen}))


class VideosLaunch(_Launch):
    """How this run fetches videos."""

    retry: list[str] = Field(
        default=[],
        description="Reasons for which videos were given up for good and that are tried again "
        "now, besides those of download.retry: for example geo or age, after a proxy or cookies "
        "were set. The outcomes table of an earlier run names the reasons. Files that are there "
        "are never fetched again.",
    )
    coverage_threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Least share of the expected videos, in place of the settings': 0.3 accepts a "
        "part of which 30 % are there. Empty: as the settings say.",
    )
    workers: int | None = Field(
        default=None, ge=1, description="Downloads at the same time, in place of download.workers."
    )

    def applied(self, settings: Settings, source: str) -> Settings:
        """The settings of this run."""
        download = settings.download
        sources = {
            **settings.sources,
            source: _changed(settings.sources[source], coverage_threshold=self.coverage_threshold),
        }
        retry = [*download.retry, *self.retry]
        return _changed(
            settings,
            download=_changed(download, retry=retry, workers=self.workers),
            sources=sources,
        )


class FeaturesLaunch(_JobLaunch):
    """How this run makes features."""

    retry_quarantined: bool = Field(
        default=False,
        description="Try videos again that were set aside because they could not be decoded, for "
        "example after replacing a file or giving the machine more memory. Otherwise only passing "
        "reasons are tried again.",
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Frames in one forward pass of the encoder, in place of features.batch_size: "
        "less after the GPU's memory ran out. It decides how fast, not what.",
    )
    decode_workers: int | None = Field(
        default=None, ge=1, description="Decoding processes, in place of features.decode_workers."
    )

    def applied(self, settings: Settings) -> Settings:
        """The settings of this run."""
        features = _changed(
            settings.features, batch_size=self.batch_size, decode_workers=self.decode_workers
        )
        return self.submitted(_changed(settings, features=features), "gpu")


class ShardsLaunch(_JobLaunch):
    """How strict this run is."""

    max_drop_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of samples that may be lost before the part fails, in place of "
        "shards.max_drop_share: look at the reasons in the failed run first.",
    )

    def applied(self, settings: Settings) -> Settings:
        """The settings of this run."""
        shards = _changed(settings.shards, max_drop_share=self.max_drop_share)
        return self.submitted(_changed(settings, shards=shards), "cpu")


class StageLaunch(_JobLaunch):
    """How this training differs."""

    processes: int | None = Field(
        default=None,
        ge=1,
        description="Ranks on this machine, in place of training.processes. A run that was begun "
        "with another number goes on: the steps and their samples are the same.",
    )
    overrides: dict[str, Any] = Field(
        default={},
        description="Fields of training.run_config.RunConfig for this run, over "
        "training.overrides of the settings. What changes no step continues the run that was "
        "begun: {micro_tokens: 8192} after the memory ran out, workers, save_every, "
        "max_dropped_share. What changes the steps, as {max_steps: 20} to try the machine, is "
        "another run in a folder of its own. A later stage starts from whatever checkpoint was "
        "made last.",
    )

    def applied(self, settings: Settings, stage: int) -> Settings:
        """The settings of this run."""
        training, name = settings.training, f"stage{stage}"
        overrides = {
            **training.overrides,
            name: {**training.overrides.get(name, {}), **self.overrides},
        }
        training = _changed(training, processes=self.processes, overrides=overrides)
        return self.submitted(_changed(settings, training=training), "gpu")


class EvaluationLaunch(_JobLaunch):
    """How much this run asks."""

    limit: int | None = Field(
        default=None,
        ge=1,
        description="Ask only the first so many questions, in place of evaluation.limit. Answers "
        "that are there are not asked again.",
    )

    def applied(self, settings: Settings) -> Settings:
        """The settings of this run."""
        evaluation = _changed(settings.evaluation, limit=self.limit)
        return self.submitted(_changed(settings, evaluation=evaluation), "gpu")
