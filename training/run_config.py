"""What one training run is: the JSON file that `training.train` takes. No torch here: the asset
graph writes it.

A run names its variant and stage, and with them its recipe (`training/recipes.py`). Some fields are
deviations from the recipe for this run; the others say where things are and how the machine is
used.
"""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from training.recipes import MODULES, Recipe, recipe

Loss = Literal["tokens", "micro_batch"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """One stream of samples; a batch never mixes streams.

    Attributes:
        name: shown in metrics.
        root: folder or fsspec URL that the indexes count from.
        indexes: paths of MDS ``index.json`` files below the root; the stream is their
            concatenation.
    """

    name: str
    root: str
    indexes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One stage of one variant on this machine.

    Attributes:
        variant, stage: choose the recipe.
        start: export folder (``from_pretrained``) that training starts from.
        out: local folder of the result: ``metrics.jsonl``, ``state/step-N``, ``export``,
            ``result.json``.
        streams: where the samples are.
        features_root: folder or URL that holds ``<source>/<id>.safetensors``; needed where samples
            name long videos.
        videos_root: folder or URL below which short videos are named.
        seed: name from which every seed of the run is derived.

        global_batch, micro_batch, max_length, epochs, rates, warmup, clip, save_every: instead of
            the recipe's.
        max_steps: stop after this many optimizer steps; the schedule ends there too.
        reference_effective: give every tuned module the one rate that the published run really
            applied.
        loss: "tokens" divides the summed loss by the supervised tokens of the whole batch;
            "micro_batch" averages the means of the micro-batches, as the published run does.

        device: "auto" takes CUDA where there is one.
        compile: compile each block; None means on CUDA only.
        checkpointing: recompute activations of vision encoder, projector and, where they would not
            fit, of the LLM in the backward pass; None means on CUDA only.
        micro_tokens: most LLM tokens that one rank packs into one forward pass; None: the length of
            a sample about the longest video of the stage.
        workers, prefetch: processes that prepare samples on each rank, and micro-batches prepared
            ahead by each.
        data_timeout_s: a loader that yields nothing for so long is broken.
        canonical_nodes, shuffle_block: shuffling of the streams, and rows of a stream that are
            shuffled together: more blend more videos in a batch and need a larger cache of feature
            files. Constant over the life of a run.
        features_cache, features_cache_bytes: where copies of remote feature files are kept, and how
            much of them.
        max_dropped_share: share of unusable samples above which the run fails.
        keep: committed checkpoints that are kept, the newest ones.
        nonfinite_limit: optimizer steps in a row with a loss or gradient that is not finite before
            the run fails.
        tensorboard: also write TensorBoard event files.
    """

    variant: str
    stage: int
    start: str
    out: str
    streams: tuple[StreamConfig, ...]
    features_root: str = ""
    videos_root: str = ""
    seed: str = "hour-llava"

    global_batch: int | None = None
    micro_batch: int | None = None
    max_length: int | None = None
    epochs: int | None = None
    rates: Mapping[str, float] | None = None
    warmup: float | None = None
    clip: float | None = None
    save_every: int | None = None
    max_steps: int | None = None
    reference_effective: bool = False
    loss: Loss = "tokens"

    device: Device = "auto"
    compile: bool | None = None
    checkpointing: bool | None = None
    micro_tokens: int | None = None
    workers: int = 2
    prefetch: int = 2
    data_timeout_s: float = 600.0
    canonical_nodes: int = 1
    shuffle_block: int = 8192
    features_cache: str | None = None
    features_cache_bytes: int = 200 << 30
    max_dropped_share: float = 0.01
    keep: int = 2
    nonfinite_limit: int = 3
    tensorboard: bool = True

    def __post_init__(self) -> None:
        chosen = self.recipe  # an unknown variant, stage or module is named here
        if not self.streams:
            raise ValueError(
                "run configuration: streams is empty; name at least one stream of samples"
            )
        if self.keep < 2:
            raise ValueError(
                f"run configuration: keep is {self.keep}; at least 2 checkpoints are kept"
            )
        for name in ("global_batch", "micro_batch", "max_length", "epochs", "save_every"):
            if getattr(chosen, name) < 1:
                raise ValueError(
                    f"run configuration: {name} is {getattr(chosen, name)}; it must be at least 1"
                )
        for name in (
            "max_steps",
            "micro_tokens",
            "prefetch",
            "canonical_nodes",
            "shuffle_block",
            "nonfinite_limit",
        ):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"run configuration: {name} is {value}; it must be at least 1")
        if self.workers < 0:
            raise ValueError(
                f"run configuration: workers is {self.workers}; it must be 0 (no processes) or more"
            )
        if not 0 <= chosen.warmup < 1:
            raise ValueError(
                f"run configuration: warmup is {chosen.warmup}; it is a share of the steps, in [0, "
                "1)"
            )
        if self.rates is not None and any(rate <= 0 for rate in self.rates.values()):
            raise ValueError(
                f"run configuration: rates are {dict(self.rates)}; leave a module out to freeze it"
            )

    @property
    def recipe(self) -> Recipe:
        """The stage's recipe with this run's deviations applied."""
        base = recipe(self.variant, self.stage)
        names = (
            "global_batch",
            "micro_batch",
            "max_length",
            "epochs",
            "rates",
            "warmup",
            "clip",
            "save_every",
        )
        chosen = replace(
            base, **{n: getattr(self, n) for n in names if getattr(self, n) is not None}
        )
        if self.reference_effective:
            chosen = replace(chosen, rates=dict.fromkeys(chosen.rates, chosen.reference_rate))
        return chosen

    @property
    def modules(self) -> tuple[str, ...]:
        """The tuned modules, in the model's order."""
        return tuple(name for name in MODULES if name in self.recipe.rates)

    def batches(self, world_size: int) -> tuple[int, int]:
        """(samples of one rank in a micro-batch, micro-batches of one rank in an optimizer step) on
        so many ranks.

        The global batch never depends on the number of ranks. The micro-batch is the largest
        divisor of a rank's share that the recipe allows.

        Raises:
            ValueError: the ranks cannot share the global batch evenly.
        """
        total = self.recipe.global_batch
        if total % world_size:
            fitting = [n for n in range(1, total + 1) if total % n == 0]
            raise ValueError(
                f"global batch {total} cannot be shared evenly by {world_size} ranks; numbers of "
                f"ranks that fit: {', '.join(map(str, fitting))}, or set global_batch"
            )
        share = total // world_size
        micro = max(n for n in range(1, min(share, self.recipe.micro_batch) + 1) if share % n == 0)
        return micro, share // micro

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True, default=dict) + "\n"

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json())


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
    return _build(RunConfig, values, "")


def _build(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{where or 'run configuration'}: expected an object, found {type(values).__name__}"
        )
    known = [item.name for item in fields(kind)]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"unknown key {where + str(key)!r}{hint} (known: {', '.join(sorted(known))})"
            )
    hints = typing.get_type_hints(kind)
    read = {key: _convert(hints[key], value, where + key) for key, value in values.items()}
    try:
        return kind(**read)
    except TypeError as error:
        missing = str(error).partition("argument")[2].strip("s: ")
        raise ValueError(f"{where or 'run configuration'}: missing {missing}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``hint`` says, or a ValueError that names ``where``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} is {value!r}; known: {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, found {type(value).__name__}")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected an object, found {type(value).__name__}")
        return {
            str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()
        }
    if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
        return _build(hint, value, f"{where}.")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value
