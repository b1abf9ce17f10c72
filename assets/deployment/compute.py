"""Where the steps of a pool run: on this machine, or as jobs of a Slurm cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from model.configuration import Section

# What a job is submitted with in any case; `extra` must not say otherwise.
OWN_FLAGS = (
    "--account", "--chdir", "--comment", "--cpus-per-task", "--error", "--gpus-per-node",
    "--job-name", "--no-requeue", "--nodes", "--ntasks-per-node", "--open-mode", "--output",
    "--parsable", "--partition", "--requeue", "--signal", "--time", "--wait", "--wrap",
)  # fmt: skip
TIME_LIMIT = r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}"


class Pool(Section):
    """How the work of a pool's steps is run. Without `engine: slurm` a child process of the step
    does it, on the machine of the UI, and nothing else here has a meaning.
    """

    engine: Literal["local", "slurm"] = Field(
        default="local", description="local: on this machine; slurm: as a job of a Slurm cluster"
    )
    partition: str | None = Field(default=None, description="default: the cluster's")
    account: str | None = Field(default=None, description="default: the user's")
    time_limit: str | None = Field(
        default=None,
        pattern=f"^({TIME_LIMIT})$",
        description="of one job, as Slurm writes it: 30, 4:00:00, 2-00:00:00; default: the "
        "partition's. A stage that takes longer goes on in the next job",
    )
    nodes: int = Field(default=1, ge=1, description="machines that train a stage together")
    least_nodes: int | None = Field(
        default=None,
        ge=1,
        description="after a job lost a node, the next one has fewer nodes, down to this number: "
        "the next lower number whose ranks share the global batch evenly; default: nodes",
    )
    gpus_per_node: int | None = Field(
        default=None,
        ge=1,
        description="asked for on each node; a stage has as many ranks there. Default: none is "
        "asked for, and training.processes is the number of ranks",
    )
    cpus_per_task: int | None = Field(
        default=None, ge=1, description="cores on each node; default: the partition's"
    )
    extra: list[str] = Field(
        default=[], description="further options of sbatch: ['--qos=high', '--exclusive']"
    )
    python: str | None = Field(
        default=None,
        description="the interpreter on the nodes, with this package installed; default: the one "
        "of the UI, under the same path, with its code",
    )
    setup: list[str] = Field(
        default=[], description="lines of shell before the work: ['module load cuda/12.8']"
    )
    stop_before_s: int = Field(
        default=300,
        ge=1,
        le=65535,
        description="seconds before the time limit at which a stage is asked for a checkpoint: "
        "at least what a step and a checkpoint take",
    )
    restarts: int = Field(
        default=3,
        ge=0,
        description="how many jobs in a row may be lost, to a dead node or otherwise, without "
        "getting further, before the step fails. Further is a new checkpoint of a stage, the "
        "features of another video, another answer, with a local root another shard; of other "
        "work every lost job counts",
    )

    @field_validator("extra")
    @classmethod
    def _only_options(cls, value: list[str]) -> list[str]:
        for flag in value:
            if not flag.startswith("-"):
                raise ValueError(f"{flag!r} is no option of sbatch; write --name=value")
            if flag.partition("=")[0] in OWN_FLAGS:
                raise ValueError(
                    f"{flag!r} is decided elsewhere; these are: {', '.join(OWN_FLAGS)}"
                )
        return value

    @model_validator(mode="after")
    def _fits(self) -> Pool:
        given = [
            name
            for name, item in type(self).model_fields.items()
            if getattr(self, name) != item.get_default(call_default_factory=True)
        ]
        if self.engine == "local" and given:
            raise ValueError(f"{', '.join(given)}: only jobs have these; add engine: slurm")
        if self.least_nodes is not None and self.least_nodes > self.nodes:
            raise ValueError("least_nodes is above nodes")
        return self

    @property
    def is_slurm(self) -> bool:
        """Whether the work is a job."""
        return self.engine == "slurm"


PoolName = Literal["gpu", "cpu"]


class Compute(Section):
    """Where steps run, by the pool that Dagster counts them in. Everything else runs beside the
    UI.
    """

    gpu: Pool = Field(default=Pool(), description="stages, features, evaluation")
    cpu: Pool = Field(
        default=Pool(), description="conversations, shards, the vision encoder's export"
    )
    folder: Path = Field(
        default=Path(".jobs"),
        description="of the jobs' scripts, logs and messages; the UI's host and all nodes see it "
        "under this path. One for each deployment",
    )
    poll_s: float = Field(
        default=5.0,
        gt=0,
        description="seconds between two looks at a job, by each step that has one",
    )

    def pool(self, name: PoolName) -> Pool:
        """The pool of that name."""
        return self.gpu if name == "gpu" else self.cpu
