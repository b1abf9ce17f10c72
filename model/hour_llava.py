"""Hour-LLaVA from samples to loss: encode visuals, lay out memory, let MemAug read it, splice, run
the language model.

Several samples are one pack: their tokens lie one after another, and attention stays within each.
There is no padding.

Shapes: T frames or pictures, P tokens of one, C vision width, D width, L input ids, N memory
tokens, Q visual tokens, M MemAug queries, S language model tokens, R supervised rows, V vocabulary.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2Config, Qwen2ForCausalLM

from model.attention import LLM_ATTENTION, Packing, as_rows
from model.config import HourLlavaConfig, LLMConfig
from model.inputs import IGNORE_INDEX, SampleInputs, Visual, check
from model.loss import chunked_cross_entropy
from model.memaug import MemAug
from model.memory import Forgetting, build_memory
from model.packing import PackPlan, plan_pack
from model.vision import Projector, VisionEncoder, encode_frames, normalise, pool_frames


@dataclass(frozen=True, slots=True)
class Prepared:
    """A pack as the language model takes it; `plan` tells where its tokens come from and holds the
    labels.
    """

    plan: PackPlan
    embeds_SD: Tensor
    positions_S: Tensor
    packing: Packing


class Output(NamedTuple):  # a tuple, so that sharding finds the tensor in it
    """loss_sum: float32 scalar, summed over `supervised` tokens. lengths: language model tokens of
    each sample.
    """

    loss_sum: Tensor
    supervised: int
    lengths: tuple[int, ...]


class HourLlava(nn.Module):
    """The whole model. Its parts come without useful weights: load them, or see `model.initialise`."""

    def __init__(self, config: HourLlavaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        self.projector = Projector(config.vision.hidden_size, config.llm.hidden_size)
        self.image_newline = nn.Parameter(torch.zeros(config.llm.hidden_size))
        self.memaug = MemAug(config.llm, config.memaug_depth)
        self.llm = Qwen2ForCausalLM(qwen2_config(config.llm))

    def forward(
        self,
        samples: Sequence[SampleInputs],
        *,
        forgetting: Forgetting = "random",
        lockstep: bool = False,
    ) -> Output:
        """Loss of a pack of samples, summed: the caller divides by the supervised tokens of all
        ranks.

        lockstep: run every part of the model whatever the samples hold, even none, so that ranks
        which share sharded parameters stay in step. A part that has nothing to do sees one dummy
        token whose weight in the loss is zero. Raises ValueError that names the sample if one is
        malformed or too long.
        """
        prepared, idle = self._prepare(samples, forgetting, lockstep)
        hidden_SD = self.run_llm(prepared)
        rows_R, targets_R = (self._here(x) for x in prepared.plan.targets)
        loss = chunked_cross_entropy(hidden_SD[rows_R], targets_R, self.llm.lm_head)
        loss = loss + 0 * (
            hidden_SD[0].float().sum() + idle
        )  # a graph through all that ran, also without any target
        return Output(loss, len(rows_R), prepared.plan.lengths if samples else ())

    def prepare(
        self,
        samples: Sequence[SampleInputs],
        *,
        forgetting: Forgetting,
        memory_ND: Tensor | None = None,
    ) -> Prepared:
        """Everything before the language model. Raises ValueError that names the sample which
        cannot be used.

        memory_ND: the memories of the samples' visuals where `remember` has made them before.
        """
        if not samples:
            raise ValueError("no samples")
        return self._prepare(samples, forgetting, lockstep=False, memory_ND=memory_ND)[0]

    def remember(self, visual: Visual) -> Tensor:
        """The memory [N, D] of a visual, which `prepare` takes for any number of questions about
        it.
        """
        return self._remember([[self._arrive(visual)]], lockstep=False)[0]

    def run_llm(self, prepared: Prepared) -> Tensor:
        """Final hidden states [S, D] of a pack; `llm.lm_head` makes logits of them."""
        output = self.llm.model(
            inputs_embeds=as_rows(prepared.embeds_SD, (1, *prepared.embeds_SD.shape)),
            position_ids=prepared.positions_S[None],
            attention_mask={
                "full_attention": None
            },  # `packing` says it all: no dense mask is built
            packing=prepared.packing,
            use_cache=False,
        )
        return output.last_hidden_state[0]

    def encode_frames(self, pixels_T3SS: Tensor) -> Tensor:
        """Frames [T, 3, S, S] to what a feature file holds, [T, pooled_side^2, C], without
        gradient.
        """
        return encode_frames(self.vision, pixels_T3SS, self.config.memory.pooled_side)

    # -- from samples to the language model's input -----------------------------------------------

    def _prepare(
        self,
        samples: Sequence[SampleInputs],
        forgetting: Forgetting,
        lockstep: bool,
        memory_ND: Tensor | None = None,
    ) -> tuple[Prepared, Tensor | float]:
        """The second value is a number to weight with zero: the graph of what ran in lockstep only."""
        for sample in samples:
            check(sample, self.config)
        idle: Tensor | float = 0.0
        if memory_ND is None and (
            with_visuals := [sample.visuals for sample in samples if sample.visuals]
        ):
            visuals = [[self._arrive(visual) for visual in group] for group in with_visuals]
            memory_ND, idle = self._remember(visuals, lockstep)
        elif memory_ND is None and lockstep:
            idle = self._idle()
        # Planned only now: the device is busy with the memory meanwhile.
        plan = plan_pack(samples or [_nothing()], self.config, forgetting)
        text_LD = self.llm.model.embed_tokens(self._here(plan.ids_L))
        embeds_SD = text_LD
        if memory_ND is not None:
            embeds_SD = torch.cat([text_LD, self._augment(plan, text_LD, memory_ND)])
        packing = Packing.of(plan.lengths, text_LD.device)
        embeds_SD = embeds_SD.index_select(0, self._here(plan.sources_S))
        return Prepared(plan, embeds_SD, self._here(plan.positions_S), packing), idle

    def _remember(
        self, visuals: list[list[Visual]], lockstep: bool
    ) -> tuple[Tensor, Tensor | float]:
        """The memories [N, D] of all samples with visuals, and the number for lockstep."""
        flat = [visual for group in visuals for visual in group]
        features, idle = self._encode(flat, lockstep)
        rows_RC = [as_rows(x, (-1, x.shape[-1])) for x in features]
        tokens_RD = self.projector(rows_RC[0] if len(rows_RC) == 1 else torch.cat(rows_RC))
        parts = zip(flat, features, tokens_RD.split([len(x) for x in rows_RC]), strict=True)
        memories = [
            build_memory(visual, tokens.unflatten(0, x.shape[:2]), self.image_newline, self.config)
            for visual, x, tokens in parts
        ]
        return memories[0] if len(memories) == 1 else torch.cat(memories), idle

    def _encode(self, visuals: list[Visual], lockstep: bool) -> tuple[list[Tensor], Tensor | float]:
        """Features [T, P, C] of each visual: given, or from the vision encoder; frames pooled,
        other pictures not.
        """
        idle: Tensor | float = 0.0
        side = self.config.memory.pooled_side
        # All pictures that need a gradient pass together: one call, one backward, on every rank.
        together = [
            _tensor(visual)
            for visual in visuals
            if visual.kind != "features" and not self._long(visual)
        ]
        encoded: Iterator[Tensor] = iter(())
        if together:
            pixels = torch.cat([normalise(pixels, self.dtype) for pixels in together])
            encoded = iter(self.vision(pixels).split([len(pixels) for pixels in together]))
        elif lockstep:
            idle = self._blank().float().sum()
        features = []
        for visual in visuals:
            if visual.kind == "features":
                features.append(_tensor(visual).to(self.dtype))
            elif self._long(visual):
                features.append(encode_frames(self.vision, _tensor(visual), side))
            else:
                x_TPC = next(encoded)
                features.append(pool_frames(x_TPC, side) if visual.kind == "frames" else x_TPC)
        return features, idle

    def _augment(self, plan: PackPlan, text_LD: Tensor, memory_ND: Tensor) -> Tensor:
        """The visual tokens [Q, D]: what forgetting kept, after MemAug has looked the rest up for
        the prompt.
        """
        kept_QD = memory_ND.index_select(0, self._here(plan.memory_rows_Q))
        query_MD = torch.cat([text_LD, kept_QD]).index_select(0, self._here(plan.query_sources_M))
        augmented_MD = self.memaug(
            query_MD,
            memory_ND,
            self._here(plan.query_positions_M),
            self._here(plan.memory_positions_N),
            Packing.of(plan.query_lengths, text_LD.device),
            Packing.of(plan.memory_lengths, text_LD.device),
        )
        return augmented_MD.index_select(0, self._here(plan.visual_rows_Q))

    def _idle(self) -> Tensor:
        """Run vision encoder, projector, newline and MemAug on one token."""
        token_1D = self.projector(self._blank())
        memory_ND = torch.cat([token_1D, self.image_newline[None]])
        positions = torch.arange(2, device=token_1D.device)
        one, two = (Packing.of([count], token_1D.device) for count in (1, 2))
        return self.memaug(token_1D, memory_ND, positions[:1], positions, one, two).float().sum()

    def _blank(self) -> Tensor:
        """Features [1, C] of a picture of a single grey patch."""
        patch = self.config.vision.patch_size
        return self.vision(
            torch.zeros(1, 3, patch, patch, dtype=self.dtype, device=self.image_newline.device)
        )[0]

    def _long(self, visual: Visual) -> bool:
        """Long videos run through the vision encoder in chunks and without gradient, as in the
        published system.
        """
        limit = self.config.vision_gradient_frames
        return visual.kind == "frames" and limit is not None and len(_tensor(visual)) > limit

    def _arrive(self, visual: Visual) -> Visual:
        """Bring a visual to the model's device; long videos follow chunk by chunk when they are
        encoded.
        """
        if self._long(visual):
            return visual
        tensor = self._here(_tensor(visual))
        return (
            replace(visual, features=tensor)
            if visual.kind == "features"
            else replace(visual, pixels=tensor)
        )

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.image_newline.device, non_blocking=True)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the token embeddings, which all activations follow."""
        return self.llm.model.embed_tokens.weight.dtype

    # -- how it runs ------------------------------------------------------------------------------

    @property
    def units(self) -> list[nn.Module]:
        """Modules to shard one by one, in the order they run. What is left (embeddings, head, norm,
        projector, newline) is used outside any module's forward and belongs to the root.
        `forward(lockstep=True)` runs each of them, and backpropagates through each, exactly once;
        only long pixel videos call the vision encoder again, untracked.
        """
        return [self.vision, *self.memaug.blocks, *self.llm.model.layers]

    def optimise(
        self, *, checkpoint_parts: Collection[str] = (), compile_blocks: bool = False
    ) -> None:
        """Trade compute for memory, and compile. Call once, before sharding; names of parameters do
        not change.

        checkpoint_parts: of "vision", "projector", "memaug" and "llm", what recomputes its
        activations in backward, layer by layer. compile_blocks: compile the repeated blocks, each
        for itself; attention kernels stay outside. A kind of block is compiled for the first
        lengths it sees, and once more for any when they vary.
        """
        parts = {
            "vision": [*self.vision.layers],
            "projector": [self.projector],
            "memaug": [*self.memaug.blocks],
            "llm": [*self.llm.model.layers],
        }
        if unknown := set(checkpoint_parts) - set(parts):
            raise ValueError(f"cannot checkpoint {sorted(unknown)}; known parts: {list(parts)}")
        for part, modules in parts.items():
            for module in modules:
                if compile_blocks:
                    module.forward = _compiled(module, varying=1 if part == "llm" else 0)
                if part in checkpoint_parts:
                    module.forward = _recomputed(module.forward)

    def reset_buffers(self, device: torch.device | str) -> None:
        """Recompute what no checkpoint holds. For a model built on the meta device, after
        `to_empty(device=device)`.
        """
        self.llm.model.rotary_emb = type(self.llm.model.rotary_emb)(self.llm.config).to(device)


def qwen2_config(llm: LLMConfig) -> Qwen2Config:
    """The configuration of transformers' model; `rope_theta` is understood by versions 4 and 5
    alike.
    """
    config = Qwen2Config(
        vocab_size=llm.vocab_size,
        hidden_size=llm.hidden_size,
        intermediate_size=llm.intermediate_size,
        num_hidden_layers=llm.num_layers,
        num_attention_heads=llm.num_heads,
        num_key_value_heads=llm.num_kv_heads,
        max_position_embeddings=llm.max_position_embeddings,
        rms_norm_eps=llm.rms_norm_eps,
        rope_theta=llm.rope_theta,
        tie_word_embeddings=llm.tie_word_embeddings,
    )
    config._attn_implementation = LLM_ATTENTION
    return config


def _tensor(visual: Visual) -> Tensor:
    assert visual.tensor is not None  # `inputs.check` saw to it
    return visual.tensor


def _compiled(module: nn.Module, varying: int) -> Callable[..., Any]:
    """The module's forward, compiled unless its input's dimension `varying` has size one.

    TorchDynamo takes a size of one for a fact and would make graphs of their own for what is hardly
    any work: the dummy token of a rank that has nothing to do, a lone picture.
    """
    # Without transformers' decorators: they are one function around layers and attention alike, and
    # the number of graphs a function may have is limited.
    forward = types.MethodType(inspect.unwrap(type(module).forward), module)
    graph = torch.compile(forward)

    def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (graph if x.shape[varying] > 1 else forward)(x, *args, **kwargs)

    return run


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        # Nothing is random inside: the generators' state need not be kept.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run


def _nothing() -> SampleInputs:
    """One unsupervised token, for a rank that has no sample."""
    return SampleInputs("(none)", torch.zeros(1, dtype=torch.int64), torch.full((1,), IGNORE_INDEX))
