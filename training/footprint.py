"""Bytes that a run needs on one device, and on its host, by arithmetic over shapes.

What stands throughout is exact: parameters, gradients, moments, and the bfloat16 copies that units
compute with. Activations are those of the largest pack, at the four moments at which memory can be
at its highest; what a kernel keeps for the backward pass is counted in widths of a token. How near
the estimate comes to measured peaks is in `docs/memory.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.config import HourLlavaConfig
from model.loss import CHUNK as HEAD_ROWS
from model.vision import CHUNK as PICTURES
from model.vision_encoders import picture_cost
from training.flops import Sizes, adapter_parameters, parameters
from training.parallel import MEMORY_CHUNK, Savings
from training.rates import GIB
from training.recipes import MODULES, Lora

HALF, SINGLE = 2, 4  # bytes of a bfloat16 and of a float32 number
# Numbers that a layer of the language model keeps of a token: so many of its width and of its
# intermediate width. Compiled, fewer tensors lie between its kernels.
LAYER_WIDTHS = {True: (6, 3), False: (10, 4)}
MEMAUG_WIDTHS = {True: 20, False: 22}  # the same of a MemAug block and a query


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of one rank.

    Attributes:
        states: parameters, gradients and moments of what is tuned; frozen parameters.
        gathered: bfloat16 copies that units compute with, gradients on their way.
        activations: at the highest moment.
        host: what lies in the host's memory in place of the device's.
    """

    states: float
    gathered: float
    activations: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """What the device's allocator holds at the highest moment."""
        return self.states + self.gathered + self.activations

    def __str__(self) -> str:
        parts = {
            "parameters and optimizer": self.states,
            "gathered": self.gathered,
            "activations": self.activations,
        }
        shown = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
        host = f", and {self.host / GIB:.0f} GiB of the host" if self.host else ""
        return f"{self.total / GIB:.1f} GiB ({shown}){host}"


@dataclass(frozen=True, slots=True)
class Weights:
    """Numbers of parameters: of the modules, and of what is gathered together.

    Attributes:
        trained, frozen: of all modules; `vision_frozen`: those of the latter in the vision encoder.
        unit_trained, unit_frozen: of the largest unit, a layer or a block.
        rest_trained, rest_frozen: of the embeddings and the projector.
        vision_trained: of the vision encoder.
    """

    trained: int
    frozen: int
    vision_frozen: int
    unit_trained: float
    unit_frozen: float
    rest_trained: int
    rest_frozen: int
    vision_trained: int


def weights_of(
    config: HourLlavaConfig, tuned: tuple[str, ...], lora: Lora | None = None
) -> Weights:
    """What of a model a run trains."""
    counts = parameters(config)
    adapters = adapter_parameters(config, lora)
    whole = [module for module in tuned if module not in adapters]
    trained = {m: counts[m] if m in whole else adapters.get(m, 0) for m in MODULES}
    frozen = {m: 0 if m in whole else counts[m] for m in MODULES}
    repeated = {
        "llm": (counts["llm"] - counts["embeddings"], config.llm.num_layers),
        "memaug": (counts["memaug"], config.memaug_depth),
    }
    units = [
        (
            (size if module in whole else adapters.get(module, 0)) / layers,
            (0 if module in whole else size) / layers,
        )
        for module, (size, layers) in repeated.items()
        if layers
    ]
    embeddings = counts["embeddings"]
    return Weights(
        trained=sum(trained.values()),
        frozen=sum(frozen.values()),
        vision_frozen=frozen["vision"],
        unit_trained=max(unit[0] for unit in units),
        unit_frozen=max(unit[1] for unit in units),
        rest_trained=trained["projector"] + (embeddings if "llm" in whole else 0),
        rest_frozen=frozen["projector"] + (0 if "llm" in whole else embeddings),
        vision_trained=trained["vision"],
    )


@dataclass(frozen=True, slots=True)
class Load:
    """A run's share of memory on one of `world` devices.

    Attributes:
        tuned, lora: what is trained.
        compiled: whether the blocks are.
    """

    config: HourLlavaConfig
    tuned: tuple[str, ...]
    lora: Lora | None
    world: int
    compiled: bool

    def footprint(
        self, largest: Sizes, savings: Savings, recomputed: int, vision: int | None = None
    ) -> Footprint:
        """Memory of one rank.

        Args:
            largest: sizes of the largest pack.
            recomputed: layers of the language model that recompute their activations.
            vision: the same of the vision encoder, where `savings.chunks` allows it; None: all.
        """
        weights = weights_of(self.config, self.tuned, self.lora)
        states, host = self._states(weights, savings)
        gathered = self._gathered(weights, savings)
        layers = self.config.vision.num_layers
        of_vision = 0 if not savings.chunks else layers if vision is None else vision
        activations = self._activations(weights, largest, savings, recomputed, of_vision)
        if savings.inputs_on_host:
            host += recomputed * largest.tokens * self.config.llm.hidden_size * HALF
        return Footprint(states, gathered, activations, host)

    def _states(self, weights: Weights, savings: Savings) -> tuple[float, float]:
        """Bytes on the device, and on the host."""
        moments, rest = 2 * SINGLE, 2 * SINGLE  # parameter and gradient
        trained = weights.trained / self.world
        if self.world == 1:
            frozen: float = HALF * weights.frozen
        else:
            shared = weights.frozen - weights.vision_frozen
            frozen = HALF * (weights.vision_frozen + shared / self.world)
        if savings.parameters_on_host:
            moved = (moments + rest) * trained
            if self.world > 1:
                whole = HALF * weights.vision_frozen
                frozen, moved = whole, moved + frozen - whole
            return frozen, moved
        if savings.optimizer_on_host:
            return rest * trained + frozen, moments * trained
        return (moments + rest) * trained + frozen, 0.0

    def _gathered(self, weights: Weights, savings: Savings) -> float:
        """Copies to compute with, and a unit's gradients while they are reduced in float32."""
        alone = self.world == 1
        reduced = weights.unit_trained * (HALF + SINGLE + SINGLE / self.world)
        if alone and not savings.gathered_again and not savings.parameters_on_host:
            return HALF * weights.trained + reduced
        unit = weights.unit_trained + (0 if alone else weights.unit_frozen)
        rest = weights.rest_trained + (0 if alone else weights.rest_frozen)
        staged = SINGLE * (weights.unit_trained + weights.rest_trained) / self.world
        return (
            HALF * (rest + weights.vision_trained + 2 * unit)
            + reduced
            + (staged if savings.parameters_on_host else 0)
        )

    def _activations(
        self, weights: Weights, sizes: Sizes, savings: Savings, recomputed: int, of_vision: int
    ) -> float:
        """The highest of four moments: the language model's backward pass, MemAug's, the reduction
        of the rest's gradients at the end, and the vision encoder.
        """
        config, llm = self.config, self.config.llm
        d, kv = llm.hidden_size, llm.kv_width
        memory = sizes.memory * d * HALF
        queries = (sizes.queries + sizes.prompt) * d * HALF
        # This pack's features, and the next one's on their way.
        held: float = 2 * sizes.memory * config.vision.hidden_size * HALF + memory
        between = 0 if savings.chunks else 2 * memory
        held += self._vision(sizes, of_vision)[0] + between
        block = sizes.memory * 1.5 * kv * HALF + MEMAUG_WIDTHS[self.compiled] * queries
        depth = config.memaug_depth
        memaug: float = depth * (queries if savings.memaug else block)
        waiting = HALF * weights.rest_trained
        in_llm = held + memaug + waiting + self._llm(sizes, savings, recomputed)
        # The memory's gradient and the part of one block, of its keys and values as well.
        in_memaug = held + memaug + waiting + 2 * memory + sizes.memory * 2.5 * kv * HALF
        if savings.memaug:
            in_memaug += block
        end = weights.rest_trained * (HALF + SINGLE + SINGLE / self.world)
        at_end = held + memory + end
        if savings.chunks:  # a chunk's rows between the two products, and their gradients
            rows = min(sizes.memory, MEMORY_CHUNK * (config.memory.frame_tokens + 1))
            at_end = max(at_end, held + memory + waiting + 6 * rows * d * HALF)
        return max(in_llm, in_memaug, at_end, sum(self._vision(sizes, of_vision)))

    def _llm(self, sizes: Sizes, savings: Savings, recomputed: int) -> float:
        """The language model at the start of its backward pass, with the head's logits."""
        llm, tokens = self.config.llm, sizes.tokens
        widths, intermediate = LAYER_WIDTHS[self.compiled]
        layer = tokens * (widths * llm.hidden_size + intermediate * llm.intermediate_size) * HALF
        if self.lora is not None and "llm" in self.lora.modules:
            layer += 7 * tokens * self.lora.rank * HALF
        one_input = tokens * llm.hidden_size * HALF
        inputs = one_input * (min(2, recomputed) if savings.inputs_on_host else recomputed)
        kept = llm.num_layers - recomputed
        gradients: float = tokens * (2 * llm.hidden_size + 2 * llm.intermediate_size) * HALF
        head: float = min(tokens, HEAD_ROWS) * llm.vocab_size * 2 * (HALF + SINGLE)
        live = max(gradients + (layer if recomputed else 0), head)
        return kept * layer + inputs + live

    def _vision(self, sizes: Sizes, recomputed: int) -> tuple[float, float]:
        """What the vision encoder keeps until its backward pass, and what it needs besides while it
        runs.
        """
        picture = picture_cost(self.config.vision)
        if "vision" not in self.tuned:  # chunks of pictures without gradient
            return 0.0, (float(PICTURES * picture.passing * HALF) if sizes.pictures else 0.0)
        of_layer = picture.kept_compiled if self.compiled else picture.kept
        kept = sum(picture.inputs[:recomputed]) + sum(of_layer[recomputed:])
        kept += picture.kept_outside
        inside = picture.backward + max(of_layer[:recomputed], default=0)
        return float(sizes.pictures * kept * HALF), float(sizes.pictures * inside * HALF)
