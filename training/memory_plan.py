"""Device memory that a run will need, estimated before anything is loaded; a run that cannot fit is
refused.

Static memory is exact arithmetic. Activations are those of the largest pack that the budget allows:
the tensors that the backward pass needs, counted by their shapes, with a margin for what the
allocator and the kernels take on top. `docs/performance.md` compares the estimate with measured
peaks.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from model.config import HourLlavaConfig
from training.data.packing import Budget
from training.flops import Sizes, parameters, video_sizes
from training.recipes import STAGES
from training.run_config import RunConfig

GIB = 2**30
PICTURES = 128  # in a pack, where the model sets no limit of its own
FULL_PACK = 8192  # tokens from which on a longer pack is no faster
USABLE = 0.95  # of a device's free memory
HALF = 2  # bytes of a bfloat16 number, in which activations are kept
MARGIN = 1.1
RUNTIME = 1.5 * GIB  # CUDA context, communication buffers, cuDNN workspaces
SMALLEST_BUDGET = 2048


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes on one device."""

    # Parameters, gradients and moments of what is tuned (float32); the rest (bfloat16).
    states: float
    gathered: float  # bfloat16 copies that units compute with
    activations: float

    @property
    def total(self) -> float:
        return (self.states + self.gathered + self.activations) * MARGIN + RUNTIME

    def __str__(self) -> str:
        parts = {
            "parameters and optimizer": self.states,
            "gathered": self.gathered,
            "activations": self.activations,
        }
        return (
            f"{self.total / GIB:.0f} GiB ("
            + ", ".join(f"{n} {b / GIB:.1f}" for n, b in parts.items())
            + ")"
        )


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a run may put on a device.

    Attributes:
        budget: of a pack.
        kept_tokens: packs of at most so many tokens keep the language model's activations; longer
            ones recompute them.
        needed: estimate for the largest pack.
    """

    budget: Budget
    kept_tokens: int
    needed: Footprint


def plan_memory(
    run: RunConfig,
    config: HourLlavaConfig,
    world: int,
    available: float | None,
    checkpointing: bool,
) -> MemoryPlan:
    """A budget of a pack that fits into a device: `run.micro_tokens`, or the length of the
    longest video's sample.

    Longer packs would gain nothing. The language model keeps its activations for packs where they
    fit.

    Args:
        available: bytes of one device; None where nobody counts them (CPU).
        checkpointing: whether activations may be recomputed at all.

    Raises:
        ValueError: nothing fits; the message says what would.
    """
    trial = _Trial(run, config, world, available, checkpointing)
    limit = run.micro_tokens or config.max_length
    if (plan := trial.plan(limit)) is not None:
        return plan
    assert available is not None
    hints = []
    if not checkpointing and replace(trial, checkpointing=True).plan(limit) is not None:
        hints.append("set checkpointing to true")
    more = [n for n in range(world + 1, 513) if run.recipe.global_batch % n == 0]
    enough = next((n for n in more if replace(trial, world=n).plan(limit) is not None), None)
    if enough is not None:
        hints.append(f"use {enough} devices of this size")
    halves = [limit >> n for n in range(1, 20) if limit >> n >= SMALLEST_BUDGET]
    smaller = [tokens for tokens in halves if trial.plan(tokens) is not None]
    if run.micro_tokens is not None and smaller:
        hints.append(f"set micro_tokens to {smaller[0]}")
    raise ValueError(
        f"{run.variant}, stage {run.stage}, on {world} device(s) of {available / GIB:.0f} GiB does "
        f"not fit: each needs about {trial.needed(limit)}; "
        + ("; or ".join(hints) if hints else "no number of such devices fits")
    )


@dataclass(frozen=True, slots=True)
class _Trial:
    """One answer to: would it fit?"""

    run: RunConfig
    config: HourLlavaConfig
    world: int
    available: float | None
    checkpointing: bool

    def plan(self, limit: int) -> MemoryPlan | None:
        """The best plan with packs of at most `limit` tokens."""
        if self.available is None:
            return MemoryPlan(
                self.budget(limit), 0 if self.checkpointing else limit, self.needed(limit)
            )
        full = min(max(self.longest.tokens, FULL_PACK), limit)
        kept = next((t for t in range(limit, 0, -256) if self.fits(t, recomputed=False)), 0)
        tokens = limit if self.run.micro_tokens is not None else full
        if tokens > kept and not (self.checkpointing and self.fits(tokens, recomputed=True)):
            return None
        # A single longer sample is a pack of its own, so the longest one has to fit, too.
        longest = max(tokens, self.config.max_length) if self.checkpointing else tokens
        if not self.fits(longest, recomputed=self.checkpointing, memory=self.longest.memory):
            return None
        return MemoryPlan(self.budget(tokens), kept, self.needed(tokens, recomputed=tokens > kept))

    @property
    def longest(self) -> Sizes:
        """A sample about the longest video that the stage has."""
        return video_sizes(STAGES[self.run.stage].longest_frames, 400, 256, self.config)

    def budget(self, tokens: int) -> Budget:
        return Budget(
            tokens,
            max(self.longest.memory, 8 * tokens),
            self.config.vision_gradient_frames or PICTURES,
        )

    def fits(self, tokens: int, recomputed: bool, memory: int | None = None) -> bool:
        return (
            self.available is None
            or self.needed(tokens, recomputed, memory).total <= USABLE * self.available
        )

    def needed(
        self, tokens: int, recomputed: bool | None = None, memory: int | None = None
    ) -> Footprint:
        budget = self.budget(tokens)
        largest = Sizes(pictures=budget.pictures, memory=memory or budget.memory, queries=tokens)
        recomputed = self.checkpointing if recomputed is None else recomputed
        return footprint(
            self.config,
            self.run.modules,
            self.world,
            largest,
            self.checkpointing,
            kept=not recomputed,
        )


def footprint(
    config: HourLlavaConfig,
    tuned: Collection[str],
    world: int,
    largest: Sizes,
    checkpointing: bool,
    kept: bool = False,
) -> Footprint:
    """Memory of one of `world` devices.

    Args:
        tuned: tuned modules.
        largest: sizes of the largest pack.
        checkpointing: whether projector and vision encoder recompute their activations.
        kept: whether the language model keeps its own.
    """
    count = parameters(config)
    unit = (count["llm"] - count["embeddings"]) / config.llm.num_layers
    trained = sum(count[module] for module in tuned)
    frozen = sum(
        count[module] for module in ("projector", "memaug", "llm", "vision") if module not in tuned
    )
    whole_vision = 0 if "vision" in tuned else count["vision"]
    states = 16 * trained / world + HALF * (whole_vision + (frozen - whole_vision) / world)
    rest = count["embeddings"] + count["projector"]
    if world == 1:
        gathered: float = HALF * trained
    else:
        # The rest, the vision encoder, this unit and the next, and the gradients of the one that is
        # being reduced.
        gathered = HALF * (rest + (count["vision"] - whole_vision) + 2 * unit)
    # Gradients of the rest wait for the end of the backward pass; a unit's are reduced in float32
    # at once.
    gathered += (HALF * rest if "llm" in tuned else 0) + (HALF + 4) * unit
    return Footprint(states, gathered, _activations(config, tuned, largest, checkpointing, kept))


def _activations(
    config: HourLlavaConfig, tuned: Collection[str], sizes: Sizes, checkpointing: bool, kept: bool
) -> float:
    d, intermediate = config.llm.hidden_size, config.llm.intermediate_size
    kv = config.llm.kv_width
    layers = config.llm.num_layers
    features = sizes.memory * config.vision.hidden_size * HALF
    memory = sizes.memory * d * HALF
    # Projected tokens, the memory they are laid into, its gradient; the projector's inside, kept or
    # formed again.
    remembering = features + 3 * memory + 2 * memory
    memaug = config.memaug_depth * (sizes.memory * 1.5 * kv + sizes.queries * 22 * d) * HALF
    live = sizes.tokens * (10 * d + 4 * intermediate) * HALF
    llm = layers * live if kept else layers * sizes.tokens * d * HALF + live
    head: float = min(sizes.tokens, 1024) * config.llm.vocab_size * 12
    if "vision" in tuned:
        patches = sizes.pictures * config.vision.patches
        c = config.vision.hidden_size
        inside = patches * (12 * c + 3 * config.vision.intermediate_size) * HALF
        inputs = config.vision.num_layers * patches * c * HALF
        vision = inputs + inside if checkpointing else config.vision.num_layers * inside
    else:  # chunks of 128 pictures without gradient
        vision = 128 * config.vision.patches * 8 * config.vision.hidden_size * HALF
    return remembering + memaug + llm + head + vision
