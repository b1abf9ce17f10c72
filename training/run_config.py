"""What one training run is: the JSON file that `training.train` takes. No torch here: the asset
graph writes it.

A run names its variant and stage, and with them its recipe (`training/recipes.py`). Some fields are
deviations from the recipe for this run; the others say where things are and how the machine is
used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, field_validator
from pydantic.dataclasses import dataclass

from model.atomic import writing_file
from model.changes import ModelChanges
from model.configuration import parse
from training.formats.kinds import KINDS
from training.recipes import MODULES, Lora, Recipe, recipe

Loss = Literal["tokens", "micro_batch"]
Device = Literal["auto", "cpu", "cuda"]
OtherState = Literal["refuse", "set_aside", "adopt"]

# Unknown names are refused, and a value has its own type: "5" is no number, True is none either.
_PLAIN = ConfigDict(extra="forbid", strict=True)
RECIPE_FIELDS = (
    "global_batch", "micro_batch", "max_length", "epochs", "rates", "warmup", "clip", "save_every",
    "betas", "weight_decay",
)  # fmt: skip


@dataclass(frozen=True, slots=True, config=_PLAIN)
class StreamConfig:
    """One stream of samples; a batch never mixes streams.

    Attributes:
        name: shown in metrics.
        root: folder or fsspec URL that the indexes count from.
        indexes: paths of MDS `index.json` files below the root; the stream is their
            concatenation.
    """

    name: str
    root: str
    indexes: tuple[str, ...]


@dataclass(frozen=True, slots=True, config=_PLAIN)
class SavingsWanted:
    """What is done to save memory, or is not; None: the memory plan chooses what is fastest. None
    of it changes what a run computes; `docs/memory.md` says what each saves and costs.

    Attributes:
        chunks: the projector and the memory are formed a chunk of frames at a time, and again in
            the backward pass.
        memaug: MemAug's blocks recompute their activations.
        layers: so many layers of the language model recompute their activations, in packs whose
            activations do not fit.
        inputs_on_host: what a recomputed layer starts from waits in the host's memory.
        gathered_again: a single rank makes the bfloat16 copy of a layer anew for each pass.
        optimizer_on_host: the optimizer's moments lie on the host, which takes the step.
        parameters_on_host: float32 parameters, gradients and moments lie on the host (FSDP2's
            offload).
    """

    chunks: bool | None = None
    memaug: bool | None = None
    layers: NonNegativeInt | None = None
    inputs_on_host: bool | None = None
    gathered_again: bool | None = None
    optimizer_on_host: bool | None = None
    parameters_on_host: bool | None = None


@dataclass(frozen=True, slots=True, config=_PLAIN)
class RunConfig:
    """One stage of one variant on this machine.

    Attributes:
        variant, stage: choose the recipe.
        start: export folder (`from_pretrained`) that training starts from.
        out: local folder of the result: `metrics.jsonl`, `state/step-N`, `export`,
            `result.json`. A run goes on in whatever lies there if it is its own, see
            `training.run_identity`.
        start_version: content of the start where the caller knows it; other bytes are refused.
        streams: where the samples are.
        features_root: folder or URL that holds `<source>/<id>.safetensors`; needed where samples
            name long videos.
        features_version: content of the features where the caller knows it; part of the run's
            identity.
        videos_root: folder or URL below which short videos are named.
        short_video_features_root: folder or URL that holds `<path>.safetensors` of the short
            videos, in place of their pixels. Only for a frozen vision encoder, which has to be the
            one that made them. Empty: they are decoded and encoded for every sample.
        seed: name from which every seed of the run is derived.

        global_batch, micro_batch, max_length, epochs, rates, warmup, clip, save_every, betas,
            weight_decay: instead of the recipe's.
        lora: low-rank adapters for the language model, or for other tuned modules. None: every
            tuned module is trained whole.
        model: settings of the model in place of the start's. They go into the export.
        vision_start: folder of a vision encoder, as the pipeline exports it, whose weights stand in
            place of the start's: for features that another encoder made than that of the start.
        rows: how many rows of a kind of shards are read, from the beginning of each shard; of the
            kinds that are not named all are.
        held_out_share: share of the videos, and of the samples without one, that are never trained
            on; their loss is measured while the run goes on. 0: none.
        held_out_every: after how many steps it is measured.
        held_out_samples: on how many samples it is measured.
        stream_batch: samples that are of one stream, a divisor of the global batch; None: all of a
            global batch. The published 3B run accumulated two batches of 64, each of one stream.
        max_steps: stop after this many optimizer steps; the schedule ends there too.
        reference_effective: give every tuned module the one rate that the published run really
            applied.
        loss: "tokens" divides the summed loss by the supervised tokens of the whole batch;
            "micro_batch" averages the means of the micro-batches, as the published run does.

        device: "auto" takes CUDA where there is one.
        compile: compile each block; None means on CUDA only.
        checkpointing: activations may be computed again in the backward pass: those of vision
            encoder and projector always are, those of MemAug and LLM where they would not fit. None
            means on CUDA only.
        savings: what is done so that the run fits into its devices, instead of what the memory plan
            would choose.
        longest_frames: of a video that the run reads, for which memory is planned; None: what the
            stage's videos have.
        micro_tokens: most LLM tokens that one rank packs into one forward pass; None: the length of
            a sample about the longest video of the stage.
        workers: processes that prepare samples on each rank. None: as many as the rank's share of
            the host's cores feeds.
        prefetch: micro-batches that each of these prepares ahead.
        data_timeout_s: a loader that yields nothing for so long is broken.
        canonical_nodes: number of nodes that the streams are shuffled for. Constant over the life
            of a run.
        shuffle_block: rows of a stream that are shuffled together: more blend more videos in a
            batch and need a larger cache of feature files. Constant over the life of a run.
        features_cache: folder for copies of remote feature files. None: below the temporary folder.
        features_cache_bytes: most room that they take.
        shard_cache: folder for copies of remote shards and short videos. None: below the temporary
            folder.
        shard_cache_bytes: most room that they take.
        machine_wait_s: how long a fault of the machine (a full disk, too few descriptors, a store
            or mount that does not answer) is waited out before the run stops with a checkpoint; the
            other ranks wait as long.
        max_dropped_share: share of unusable samples above which the run fails.
        keep: committed checkpoints that are kept, the newest ones.
        milestone_every: a checkpoint every so many steps is written and kept for ever; None: none.
        continue_from: go back to the checkpoint of this step; later ones are moved to
            `earlier-N/`. It happens once: started again, the run goes on from its newest.
        on_other_state: what to do when the state in `out` is of another run. "refuse" says what
            differs; "set_aside" moves all of it to `earlier-N/` and starts at step 0; "adopt"
            takes state that does not say whose it is (of a release before identities) for its own.
        nonfinite_limit: optimizer steps in a row with a loss or gradient that is not finite before
            the run fails.
        tensorboard: also write TensorBoard event files.
        tracker: also record the run in MLflow or Weights & Biases.
    """

    variant: str
    stage: int
    start: str
    out: str
    streams: tuple[StreamConfig, ...] = Field(min_length=1)
    start_version: str | None = None
    features_root: str = ""
    features_version: str | None = None
    videos_root: str = ""
    short_video_features_root: str = ""
    seed: str = "hour-llava"

    global_batch: PositiveInt | None = None
    micro_batch: PositiveInt | None = None
    max_length: PositiveInt | None = None
    epochs: PositiveInt | None = None
    rates: Mapping[str, float] | None = None
    warmup: float | None = Field(default=None, ge=0, lt=1)
    clip: float | None = None
    save_every: PositiveInt | None = None
    betas: tuple[float, float] | None = None
    weight_decay: float | None = Field(default=None, ge=0)
    lora: Lora | None = None
    model: ModelChanges | None = None
    vision_start: str | None = None
    rows: Mapping[str, NonNegativeInt] | None = None
    stream_batch: PositiveInt | None = None
    held_out_share: float = Field(default=0.0, ge=0, lt=1)
    held_out_every: PositiveInt = 200
    held_out_samples: PositiveInt = 64
    max_steps: PositiveInt | None = None
    reference_effective: bool = False
    loss: Loss = "tokens"

    device: Device = "auto"
    compile: bool | None = None
    checkpointing: bool | None = None
    savings: SavingsWanted | None = None
    longest_frames: PositiveInt | None = None
    micro_tokens: PositiveInt | None = None
    workers: NonNegativeInt | None = None
    prefetch: PositiveInt = 2
    data_timeout_s: float = Field(default=600.0, gt=0)
    canonical_nodes: PositiveInt = 1
    shuffle_block: PositiveInt = 8192
    features_cache: str | None = None
    features_cache_bytes: PositiveInt = 200 << 30
    shard_cache: str | None = None
    shard_cache_bytes: PositiveInt = 50 << 30
    machine_wait_s: float = Field(default=600.0, ge=0)
    max_dropped_share: float = 0.01
    keep: int = Field(default=2, ge=2)
    milestone_every: PositiveInt | None = None
    continue_from: PositiveInt | None = None
    on_other_state: OtherState = "refuse"
    nonfinite_limit: PositiveInt = 3
    tensorboard: bool = True
    tracker: Literal["mlflow", "wandb"] | None = None

    def __post_init__(self) -> None:
        tuned = self.recipe.rates  # names an unknown variant, stage or module
        if self.short_video_features_root and "vision" in tuned:
            raise ValueError(
                "short_video_features_root: this run tunes the vision encoder, and kept features "
                "are not what the tuned one gives; leave it empty, or leave vision out of rates"
            )

    @field_validator("rates")
    @classmethod
    def _tuned_modules_move(cls, rates: Mapping[str, float] | None) -> Mapping[str, float] | None:
        if rates is not None and any(rate <= 0 for rate in rates.values()):
            raise ValueError(f"found {dict(rates)}; leave a module out to freeze it")
        return rates

    @field_validator("rows")
    @classmethod
    def _known_kinds(cls, rows: Mapping[str, int] | None) -> Mapping[str, int] | None:
        if unknown := sorted(set(rows or ()) - set(KINDS)):
            raise ValueError(f"unknown kinds {', '.join(unknown)}; known: {', '.join(KINDS)}")
        return rows

    @field_validator("betas")
    @classmethod
    def _betas_forget(cls, betas: tuple[float, float] | None) -> tuple[float, float] | None:
        if betas is not None and not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"found {list(betas)}; both are at least 0 and below 1")
        return betas

    @property
    def recipe(self) -> Recipe:
        """The stage's recipe with this run's deviations applied."""
        own = {name: getattr(self, name) for name in RECIPE_FIELDS}
        changes = {name: value for name, value in own.items() if value is not None}
        chosen = replace(recipe(self.variant, self.stage), **changes)
        if self.model is not None and self.model.memaug_blocks == 0:
            left = {name: rate for name, rate in chosen.rates.items() if name != "memaug"}
            chosen = replace(chosen, rates=left)
        if self.reference_effective:
            chosen = replace(chosen, rates=dict.fromkeys(chosen.rates, chosen.reference_rate))
        if self.lora is not None:
            if frozen := sorted(set(self.lora.modules) - set(chosen.rates)):
                raise ValueError(
                    f"lora.modules names {', '.join(frozen)}, and this run tunes "
                    f"{', '.join(chosen.rates)} only; name it in rates, too"
                )
            adapted = dict.fromkeys(self.lora.modules, self.lora.rate)
            chosen = replace(chosen, rates={**chosen.rates, **adapted})
        return chosen

    @property
    def modules(self) -> tuple[str, ...]:
        """The tuned modules, in the model's order."""
        return tuple(name for name in MODULES if name in self.recipe.rates)

    @property
    def adapted(self) -> tuple[str, ...]:
        """The tuned modules that are trained through adapters alone."""
        return self.lora.modules if self.lora is not None else ()

    def batches(self, world_size: int) -> tuple[int, int]:
        """(samples of one rank in a micro-batch, micro-batches of one rank in an optimizer step) on
        so many ranks.

        The global batch never depends on the number of ranks. The micro-batch is the largest
        divisor of a rank's share that the recipe allows.

        Raises:
            ValueError: the ranks cannot share the global batch evenly.
        """
        total = self.recipe.global_batch
        unit = self.stream_batch or total
        if total % unit or (total % world_size == 0 and unit % world_size):
            raise ValueError(
                f"stream_batch {unit} has to divide the global batch {total}, and be divided by "
                f"the {world_size} ranks"
            )
        if total % world_size:
            fitting = [n for n in range(1, total + 1) if total % n == 0]
            raise ValueError(
                f"global batch {total} cannot be shared evenly by {world_size} ranks; numbers of "
                f"ranks that fit: {', '.join(map(str, fitting))}, or set global_batch"
            )
        share, most = unit // world_size, self.recipe.micro_batch
        micro = max(n for n in range(1, min(share, most) + 1) if share % n == 0)
        return micro, total // world_size // micro

    def is_shared_by(self, world_size: int) -> bool:
        """Whether so many ranks can share the global batch evenly: `batches` takes them."""
        total = self.recipe.global_batch
        unit = self.stream_batch or total
        return total % unit == 0 and unit % world_size == 0

    def to_json(self) -> str:
        """The run as JSON; equal runs give equal text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, default=dict) + "\n"

    def write(self, path: Path) -> None:
        """Write the JSON file that `load_run` reads, whole at every moment."""
        with writing_file(path) as temporary:
            temporary.write_text(self.to_json())


def load_run(path: Path) -> RunConfig:
    """Read a run's JSON file.

    Raises:
        ValueError: not JSON, an unknown key (with the known ones), a missing one or a wrong type;
            it names the file.
    """
    try:
        values = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such run configuration") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    try:
        return parse_run(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_run(values: Any) -> RunConfig:
    """A run from plain JSON values; see `load_run`."""
    return parse(RunConfig, values, strict=True)
