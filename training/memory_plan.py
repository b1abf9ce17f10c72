"""What a run does to fit into its devices, chosen before anything is loaded: of all ways that fit,
the fastest; a run that cannot fit is refused with what would.

The bytes are in `training/footprint.py`. Time is estimated from the model's operations and from
what has to pass between device and host, at rates that are written here.
"""

from __future__ import annotations

import itertools
import sys
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from model.config import HourLlavaConfig
from training.data.packing import Budget
from training.flops import Sizes, flops, forward_flops, video_sizes
from training.footprint import HALF, SINGLE, Footprint, Load, weights_of
from training.parallel import Savings
from training.rates import GIB
from training.recipes import STAGES, Lora
from training.run_config import RunConfig

PICTURES = 128  # in a pack, where the model sets no limit of its own
FULL_PACK = 8192  # tokens from which on a longer pack is no faster
SMALLEST_BUDGET = 2048
TEXT = 1024  # tokens of a sample's text that a pack has room for: five questions with options
# Of what a device has free: what the allocator cannot use, and kernels' workspaces and buffers of
# collectives besides.
MARGIN = 1.04
RUNTIME = 1.0 * GIB
KEPT_SHARE = 0.92  # of a device, up to which activations of pictures are kept
# For comparing ways with each other: operations a second that training reaches, bytes a second
# between device and host, and bytes a second that the host's optimizer goes through.
RATE = 450e12
LINK = 40e9
HOST_RATE = 60e9


@dataclass(frozen=True, slots=True)
class Room:
    """What one device has for a pack, `available` bytes."""

    load: Load
    available: float

    def holds(self, sizes: Sizes, savings: Savings, layers: int, vision: int) -> bool:
        """Whether a pack fits in which so many layers of the language model and of the vision
        encoder recompute. Some stays free: packs follow each other in many sizes, and what is kept
        of pictures are the largest pieces.
        """
        needed = self.load.footprint(sizes, savings, layers, vision).total
        return needed * MARGIN + RUNTIME <= KEPT_SHARE * self.available


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a run may put on a device, and what it does for it.

    Attributes:
        budget: of a pack.
        steps: (tokens, layers), rising: in a pack of at most so many tokens, so many of the
            language model's layers recompute their activations. A sample longer than the last
            is a pack that recomputes as many as the last says.
        layers: that do in a pack as long as the budget; of `total_layers`.
        savings: what is done besides.
        needed: estimate for the largest pack, if a tuned vision encoder recomputes all its layers.
        slower: share of the time of a step that all this costs, by the estimate.
        room: of a device, where somebody counts it.
        keeps_gradients: ranks keep gathered copies and their gradients between the packs of a
            step, see `training.parallel.keep_gradients`. That is so where there is room for them
            and nothing has to be given for it.
    """

    budget: Budget
    steps: tuple[tuple[int, int], ...]
    layers: int
    total_layers: int
    savings: Savings
    needed: Footprint
    slower: float
    room: Room | None = None
    keeps_gradients: bool = False

    def recomputed(self, tokens: int) -> int:
        """Layers of the language model that recompute their activations in a pack."""
        enough = (layers for longest, layers in self.steps if tokens <= longest)
        return next(enough, self.steps[-1][1])

    def vision_recomputed(self, sizes: Sizes) -> int:
        """Layers of a tuned vision encoder that recompute their activations in a pack: with
        `savings.chunks`, as many as it takes; without, none.
        """
        if not self.savings.chunks:
            return 0
        if self.room is None:
            return sys.maxsize
        layers = range(self.room.load.config.vision.num_layers)
        llm = self.recomputed(sizes.tokens)
        enough = (n for n in layers if self.room.holds(sizes, self.savings, llm, n))
        return next(enough, len(layers))

    def __str__(self) -> str:
        done = [text for name, text in _TOLD.items() if getattr(self.savings, name)]
        if self.layers:
            done.append(f"{self.layers} of {self.total_layers} layers of the LLM recomputed")
        cost = f"; that costs about {100 * self.slower:.0f} % of the speed" if done else ""
        tuned = self.room is not None and "vision" in self.room.load.tuned
        more = "; the vision encoder keeps what there is room for besides" if tuned else ""
        return (
            f"packs of at most {self.budget.tokens} tokens, estimated need {self.needed}; "
            f"{', '.join(done) or 'nothing is recomputed'}{cost}{more}"
        )


_TOLD = {
    "chunks": "projector and memory in chunks",
    "memaug": "MemAug recomputed",
    "inputs_on_host": "the recomputed layers' inputs on the host",
    "gathered_again": "bfloat16 copies made anew for each pass",
    "optimizer_on_host": "the optimizer on the host",
    "parameters_on_host": "parameters and optimizer on the host",
}


def plan_memory(
    run: RunConfig,
    config: HourLlavaConfig,
    world: int,
    available: float | None,
    checkpointing: bool,
    host: float | None = None,
    compiled: bool = True,
) -> MemoryPlan:
    """The fastest plan that fits, with packs of `run.micro_tokens`, or as long as a sample about
    the longest video: longer packs would gain nothing.

    Args:
        available: bytes of one device; None where nobody counts them (CPU).
        checkpointing: whether activations may be recomputed at all.
        host: bytes of the host's memory that one rank may take; None: any.
        compiled: whether blocks are compiled, which keeps less.

    Raises:
        ValueError: nothing fits; the message says what would.
    """
    config = replace(config, max_length=min(config.max_length, run.recipe.max_length))
    trial = _Trial(run, config, world, available, checkpointing, host, compiled)
    if (plan := trial.best()) is not None:
        return trial.with_gradients_kept(plan)
    assert available is not None
    smallest = min(trial.ways(), key=lambda way: trial.least(way).total)
    hints = list(_hints(trial))
    raise ValueError(
        f"{run.variant}, stage {run.stage}, on {world} device(s) of {available / GIB:.0f} GiB does "
        f"not fit: each needs about {trial.least(smallest)} at least; "
        + ("; or ".join(hints) if hints else "no number of such devices fits")
    )


def _hints(trial: _Trial) -> Iterator[str]:
    """What a person can change so that the run fits."""
    run = trial.run

    def fits(**changes: object) -> bool:
        return replace(trial, **changes).best() is not None  # type: ignore[arg-type]

    if not trial.checkpointing and fits(checkpointing=True):
        yield "set checkpointing to true"
    if run.savings is not None and fits(run=replace(run, savings=None)):
        yield "leave out what 'savings' forbids"
    if trial.host is not None and fits(host=None):
        yield "give the host more memory"
    if run.lora is None and "llm" in run.modules and fits(run=replace(run, lora=Lora())):
        yield "tune the language model through adapters (lora)"
    tokens = trial.tokens
    if tokens < trial.config.max_length and fits(config=replace(trial.config, max_length=tokens)):
        yield f"set max_length to {tokens}, so that longer samples are left out"
    more = [n for n in range(trial.world + 1, 513) if run.recipe.global_batch % n == 0]
    if (enough := next((n for n in more if fits(world=n)), None)) is not None:
        yield f"use {enough} devices of this size"
    if run.micro_tokens is not None:
        halves = (run.micro_tokens >> n for n in range(1, 20))
        for fewer in itertools.takewhile(lambda half: half >= SMALLEST_BUDGET, halves):
            if fits(run=replace(run, micro_tokens=fewer)):
                yield f"set micro_tokens to {fewer}"
                return


@dataclass(frozen=True, slots=True)
class _Trial:
    """One answer to: would it fit, and how?"""

    run: RunConfig
    config: HourLlavaConfig
    world: int
    available: float | None
    checkpointing: bool
    host: float | None
    compiled: bool

    def best(self) -> MemoryPlan | None:
        """The fastest plan that fits."""
        if self.available is None:
            return self._without_a_count()
        found = ((way, self._enough(way)) for way in self.ways())
        fitting = [(way, layers) for way, layers in found if layers is not None]
        if not fitting:
            return None
        way, layers = min(fitting, key=lambda choice: self._seconds(*choice))
        cost = self._seconds(way, layers)
        return MemoryPlan(
            self.budget(self.tokens),
            self._steps(way),
            layers,
            self.config.llm.num_layers,
            way,
            self._needed(self.tokens, way, layers),
            cost / (self._base + cost),
            Room(self._load, self.available),
        )

    def with_gradients_kept(self, plan: MemoryPlan) -> MemoryPlan:
        """The same plan with them, where it stays what it is with so much less memory."""
        if plan.savings.gathered_again or plan.savings.parameters_on_host:
            return plan
        if self.available is None:
            return replace(plan, keeps_gradients=True)
        weights = weights_of(self.config, self.run.modules, self.run.lora)
        # In place of sharded gradients, which are made as the last pack gives these back. A single
        # rank keeps its copies anyway, and its shard is all of a gradient.
        kept = SINGLE * weights.trained * (1 - 1 / self.world)
        if self.world > 1:
            kept += HALF * (weights.trained + weights.frozen - weights.vision_frozen)
        less = replace(self, available=self.available - MARGIN * kept).best()
        if less is None or (less.savings, less.layers) != (plan.savings, plan.layers):
            return plan
        needed = replace(less.needed, gathered=less.needed.gathered + kept)
        return replace(less, keeps_gradients=True, needed=needed)

    def ways(self) -> Iterator[Savings]:
        """All savings that the run's settings allow, the fewest first."""
        choices = {name: self._choices(name) for name in _TOLD}
        for values in sorted(itertools.product(*choices.values()), key=sum):
            way = Savings(**dict(zip(choices, values, strict=True)))
            if way.parameters_on_host and (way.optimizer_on_host or way.gathered_again):
                continue  # it does both anyway
            yield way

    def _choices(self, name: str) -> tuple[bool, ...]:
        forced = getattr(self.run.savings, name, None)
        if forced is not None:
            return (forced,)
        if name == "chunks":
            return (self.checkpointing,)
        if self.available is None:
            return (False,)
        if name in ("memaug", "inputs_on_host") and not self.checkpointing:
            return (False,)
        if name == "gathered_again" and self.world > 1:
            return (False,)  # they always do
        return (False, True)

    def _enough(self, way: Savings) -> int | None:
        """The fewest layers that have to be recomputed in a pack as long as the budget; None: the
        way does not fit.
        """
        if not self._fits(self._longest_pack, way, self._layers()[-1]):
            return None
        return next((n for n in self._layers() if self._fits(self.tokens, way, n)), None)

    def _steps(self, way: Savings) -> tuple[tuple[int, int], ...]:
        """How many layers packs of any length recompute."""

        def is_too_long(layers: int, tokens: int) -> bool:
            return not self._fits(tokens, way, layers)

        lengths = range(self._longest_pack + 1)
        steps: list[tuple[int, int]] = []
        for layers in self._layers():
            longest = bisect_left(lengths, True, key=partial(is_too_long, layers)) - 1
            if longest > (steps[-1][0] if steps else 0):
                steps.append((longest, layers))
        return tuple(steps)

    @property
    def _longest_pack(self) -> int:
        """A single sample that is longer than the budget is a pack of its own, so the longest one
        that the run takes has to fit, too.
        """
        return max(self.tokens, self.config.max_length) if self.checkpointing else self.tokens

    def _without_a_count(self) -> MemoryPlan:
        limit = self.run.micro_tokens or self.config.max_length
        way = next(self.ways())
        layers = max(self._layers())
        needed = self._needed(limit, way, layers)
        every = self.config.llm.num_layers
        return MemoryPlan(self.budget(limit), ((limit, layers),), layers, every, way, needed, 0.0)

    def _layers(self) -> list[int]:
        """Numbers of layers that may recompute their activations."""
        forced = self.run.savings.layers if self.run.savings is not None else None
        every = self.config.llm.num_layers
        if forced is not None:
            return [min(forced, every)]
        return [*range(every + 1)] if self.checkpointing else [0]

    @property
    def tokens(self) -> int:
        """Of the largest pack."""
        if self.run.micro_tokens is not None:
            return self.run.micro_tokens
        return min(max(self.longest.tokens, FULL_PACK), self.config.max_length)

    @property
    def longest(self) -> Sizes:
        """A sample about the longest video that the run has."""
        frames = self.run.longest_frames or STAGES[self.run.stage].longest_frames
        return video_sizes(frames, TEXT, TEXT // 2, self.config)

    def budget(self, tokens: int) -> Budget:
        return Budget(
            tokens,
            max(self.longest.memory, 8 * tokens),
            self.config.vision_gradient_frames or PICTURES,
        )

    def least(self, way: Savings) -> Footprint:
        """The smallest footprint of one way."""
        return self._needed(self.tokens, way, max(self._layers()))

    def _needed(self, tokens: int, way: Savings, layers: int) -> Footprint:
        budget = self.budget(self.tokens)
        largest = Sizes(pictures=budget.pictures, memory=budget.memory, queries=tokens)
        return self._load.footprint(largest, way, layers)

    @property
    def _load(self) -> Load:
        return Load(self.config, self.run.modules, self.run.lora, self.world, self.compiled)

    def _fits(self, tokens: int, way: Savings, layers: int) -> bool:
        assert self.available is not None
        needed = self._needed(tokens, way, layers)
        if self.host is not None and needed.host > self.host:
            return False
        return needed.total * MARGIN + RUNTIME <= self.available

    @property
    def _samples(self) -> float:
        """Samples about the longest video in a pack."""
        return max(1.0, self.tokens / self.longest.tokens)

    @property
    def _base(self) -> float:
        """Seconds of a pack without any saving."""
        return self._samples * flops(self.longest, self.config, self.run.modules) / RATE

    def _seconds(self, way: Savings, layers: int) -> float:
        """What a way costs in each pack."""
        sizes, config = self.longest, self.config
        forward = forward_flops(sizes, config)
        trained = weights_of(config, self.run.modules, self.run.lora).trained / self.world
        recomputed = forward["llm"] * layers / config.llm.num_layers
        recomputed += forward["memaug"] * way.memaug + forward["projector"] * way.chunks
        seconds = self._samples * recomputed / RATE
        if way.inputs_on_host:
            seconds += 2 * layers * self.tokens * config.llm.hidden_size * HALF / LINK
        if way.gathered_again:
            seconds += 0.01 * self._base
        packs = max(1.0, self.run.recipe.global_batch / self.world / self._samples)
        on_host = 7 * SINGLE * trained / HOST_RATE  # of moments, parameter and gradient
        if way.optimizer_on_host:
            seconds += (3 * SINGLE * trained / LINK + on_host) / packs
        if way.parameters_on_host:
            # Parameters to the device twice, gradients back and added up there.
            seconds += 3 * SINGLE * trained / LINK + 3 * SINGLE * trained / HOST_RATE
            seconds += on_host / packs
        return seconds
