"""All checks in one table, and what they found as text.

Each check looks at one thing and says what it found. Nothing is changed, and no secret is ever
printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from assets.deployment.settings import Settings
from assets.sources.findings import Finding
from pipeline.doctor.cluster import check_jobs, check_nodes, check_scratch
from pipeline.doctor.endpoints import check_questions
from pipeline.doctor.fitting import check_estimate, check_fitting
from pipeline.doctor.gpus import check_gpus, check_optional
from pipeline.doctor.machine import (
    check_decoder_isolation,
    check_descriptors,
    check_memory,
    check_port,
    check_python,
    check_shared_memory,
)
from pipeline.doctor.material import check_benchmark, check_material
from pipeline.doctor.services import (
    check_hub,
    check_instance,
    check_storage,
)
from pipeline.doctor.starts import check_starts
from pipeline.estimate.installed import Gpu, installed_gpus


@dataclass(frozen=True, slots=True)
class Asked:
    """What the checks are asked about.

    Attributes:
        home: folder with the `dagster.yaml` of the instance.
        port: where the web UI is to listen.
        config: file of the settings, where one was chosen.
    """

    settings: Settings
    home: Path
    port: int
    config: Path | None

    @property
    def gpus(self) -> list[Gpu]:
        """Those of this machine; none on a login node, whose stages run elsewhere."""
        return [] if self.settings.compute.gpu.is_slurm else installed_gpus()


# In the order in which a person would mend things.
CHECKS: tuple[Callable[[Asked], Iterable[Finding]], ...] = (
    lambda asked: check_python(),
    lambda asked: check_storage(asked.settings),
    lambda asked: check_memory(asked.settings),
    lambda asked: check_shared_memory(),
    lambda asked: check_descriptors(),
    lambda asked: check_decoder_isolation(),
    lambda asked: check_material(asked.settings),
    lambda asked: check_benchmark(asked.settings),
    lambda asked: check_starts(asked.settings, asked.config),
    lambda asked: check_hub(asked.settings),
    lambda asked: check_questions(asked.settings),
    lambda asked: check_scratch(asked.settings),
    lambda asked: check_jobs(asked.settings),
    lambda asked: check_nodes(asked.settings),
    lambda asked: (
        () if asked.settings.compute.gpu.is_slurm else check_gpus(asked.settings, asked.gpus)
    ),
    lambda asked: check_fitting(asked.settings, asked.gpus),
    lambda asked: check_estimate(asked.settings, asked.gpus, asked.config),
    lambda asked: check_optional(asked.settings),
    lambda asked: check_instance(asked.home),
    lambda asked: check_port(asked.port),
)


def examine(asked: Asked) -> list[Finding]:
    """Run every check."""
    return [finding for check in CHECKS for finding in check(asked)]


def report(findings: list[Finding]) -> str:
    """The findings as a plain text table, and what there is to do below it."""
    titles = ("check", "state", "found")
    rows = [titles, *((item.what, item.state, item.found) for item in findings)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}" for row in rows]
    todo = [f"{item.state}: {item.what}: {item.advice}" for item in findings if item.advice]
    return "\n".join([*lines, "", *todo] if todo else lines)
