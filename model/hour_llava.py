"""Hour-LLaVA from samples to loss: encode visuals, lay out memory, let MemAug read it, splice, run
the language model.

Several samples are one pack: their tokens lie one after another, and attention stays within each.
There is no padding.

Shapes: T frames or pictures, P tokens of one, C vision width, D width, L input ids, N memory
tokens, Q visual tokens, M MemAug queries, S language model tokens, R supervised rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from model.attention import SequenceLengths, as_rows
from model.choice import choose_frames, frame_means
from model.chunks import in_chunks
from model.config import HourLlavaConfig, LLMConfig
from model.frame_rules import find_frame_rule
from model.inputs import SampleInputs, Visual, check
from model.llm_attention import LLM_ATTENTION, refuse_attention
from model.loss import chunked_cross_entropy
from model.memaug import MemAug
from model.memory import build_memory, end_rows
from model.packing import PackPlan, plan_pack
from model.vision import Projector, encode_frames, pool_frames
from model.vision_encoders import build_encoder, normalise


@dataclass(frozen=True, slots=True)
class LLMInput:
    """A pack as the language model takes it.

    Attributes:
        plan: where its tokens come from; it also holds the labels.
        embeds_SD: embeddings of its tokens, text and visual.
        positions_S: of each token within its sample.
        lengths: of the samples in it, on host and device.
    """

    plan: PackPlan
    embeds_SD: Tensor
    positions_S: Tensor
    lengths: SequenceLengths


class Output(NamedTuple):  # a tuple, because FSDP looks for tensors in tuples
    """What a pass over a pack gives.

    Attributes:
        loss_sum: cross-entropy summed over the supervised tokens, a float32 scalar.
        supervised: how many these are.
        lengths: language model tokens of each sample.
    """

    loss_sum: Tensor
    supervised: int
    lengths: tuple[int, ...]


class HourLlava(nn.Module):
    """The whole model. Weights are arbitrary until they are loaded, or see `model.initialise`."""

    def __init__(self, config: HourLlavaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = build_encoder(config.vision)
        self.projector = Projector(config.vision.hidden_size, config.llm.hidden_size)
        self.image_newline = nn.Parameter(torch.zeros(config.llm.hidden_size))
        self.memaug = MemAug(config.llm, config.memaug_depth, config.memaug_positions)
        self.llm = Qwen2ForCausalLM(qwen2_config(config.llm))
        # Frames whose memory is made at a time, and made again in the backward pass; None: all are,
        # and what lies between features and memory is kept.
        self.memory_chunk: int | None = None

    def forward(self, samples: Sequence[SampleInputs], *, forgetting: str = "random") -> Output:
        """Loss of a pack of samples, summed: the caller divides by the supervised tokens of all
        packs of a step.

        Raises:
            ValueError: a sample is malformed or too long; it is named.
        """
        llm_input = self.prepare(samples, forgetting=forgetting)
        hidden_SD = self.run_llm(llm_input)
        rows_R, targets_R = (self._to_device(x) for x in llm_input.plan.targets)
        # Only supervised rows reach the output head: some hundred [R, D] of thousands [S, D].
        loss = chunked_cross_entropy(hidden_SD[rows_R], targets_R, self.llm.lm_head)
        # Adds zero, and a graph through the whole model also where no token is supervised.
        loss = loss + 0 * hidden_SD[0].float().sum()
        return Output(loss, len(rows_R), llm_input.plan.lengths)

    def prepare(
        self,
        samples: Sequence[SampleInputs],
        *,
        forgetting: str,
        memory_ND: Tensor | None = None,
        memory_scale: float | None = None,
        kept_frames: int | None = None,
    ) -> LLMInput:
        """Everything before the language model.

        Args:
            samples: at least one.
            forgetting: what is kept of the memories as queries.
            memory_scale: share of a video's memory that MemAug looks up, instead of what the
                configuration says; see `memory.looked_up`.
            kept_frames: how many of a video's frames stay as queries, instead of what the
                configuration says.
            memory_ND: the memories of the samples' visuals, where `remember` has made them before.

        Raises:
            ValueError: a sample cannot be used; it is named.
        """
        if not samples:
            raise ValueError("no samples")
        for sample in samples:
            check(sample, self.config)
        visuals = [visual for sample in samples for visual in sample.visuals]
        config = self.config
        if kept_frames is not None:
            config = replace(config, memory=config.memory.keeping(kept_frames))
        features: dict[int, Tensor] = {}
        if memory_ND is None and visuals:
            memory_ND, features = self._memories(visuals)
        # Planned only now, on the host: the device is busy with the memories meanwhile.
        embed = self.llm.model.embed_tokens
        frames = choose_frames(samples, config, memory_ND, features, embed)
        plan = plan_pack(samples, config, forgetting, memory_scale, frames)
        embeds_SD = text_LD = self.llm.model.embed_tokens(self._to_device(plan.ids_L))
        if memory_ND is not None:  # [text | visual tokens], L + Q rows
            embeds_SD = torch.cat([text_LD, self._augment(plan, text_LD, memory_ND)])
        lengths = SequenceLengths.of(plan.lengths, text_LD.device)
        embeds_SD = embeds_SD.index_select(0, self._to_device(plan.sources_S))
        return LLMInput(plan, embeds_SD, self._to_device(plan.positions_S), lengths)

    def remember(self, visual: Visual) -> Tensor:
        """The memory [N, D] of a visual. `prepare` takes it for any number of questions."""
        return self._memories([visual])[0]

    def run_llm(self, llm_input: LLMInput) -> Tensor:
        """Final hidden states [S, D] of a pack; `llm.lm_head` makes logits of them."""
        refuse_attention(self.llm.config._attn_implementation)
        output = self.llm.model(
            inputs_embeds=as_rows(llm_input.embeds_SD, (1, *llm_input.embeds_SD.shape)),
            position_ids=llm_input.positions_S[None],
            attention_mask={"full_attention": None},  # no dense mask: the lengths say it all
            sequence_lengths=llm_input.lengths,
            use_cache=False,
        )
        return output.last_hidden_state[0]

    def encode_frames(self, pixels_T3SS: Tensor) -> Tensor:
        """Frames [T, 3, S, S] to what a feature file holds, [T, pooled_side^2, C], without
        gradient.
        """
        return encode_frames(self.vision, pixels_T3SS, self.config.memory.pooled_side)

    def is_long(self, visual: Visual) -> bool:
        """Whether a visual is a video of so many frames that it passes the vision encoder in chunks
        and without gradient, as in the published system.
        """
        limit = self.config.vision_gradient_frames
        return visual.kind == "frames" and limit is not None and len(_tensor(visual)) > limit

    # -- the steps of `prepare` -------------------------------------------------------------------

    def _memories(self, visuals: list[Visual]) -> tuple[Tensor, dict[int, Tensor]]:
        """The memories [N, D] of the visuals, one after another, and, where frames are chosen by
        them, each frame's mean feature [T, C], by the visual's id. What several samples share is
        made once.
        """
        distinct = {id(visual): visual for visual in visuals}
        features = self._encode(moved := [self._visual_to_device(x) for x in distinct.values()])
        made = self._distinct_memories(moved, features)
        memories = dict(zip(distinct, made, strict=True))
        memory_ND = made[0] if len(visuals) == 1 else torch.cat([memories[id(x)] for x in visuals])
        rule = find_frame_rule(self.config.memory.temporal_forgetting)
        if rule.looks_at != "features":  # an hour's features are not held any longer
            return memory_ND, {}
        return memory_ND, dict(zip(distinct, map(frame_means, features), strict=True))

    def _distinct_memories(self, visuals: list[Visual], features: list[Tensor]) -> list[Tensor]:
        at_once = [
            not self._in_chunks(visual, x) for visual, x in zip(visuals, features, strict=True)
        ]
        tokens = self._project([x for x, whole in zip(features, at_once, strict=True) if whole])
        return [
            build_memory(visual, next(tokens), self.image_newline, self.config)
            if whole
            else self._memory_of_frames(x)
            for visual, x, whole in zip(visuals, features, at_once, strict=True)
        ]

    def _in_chunks(self, visual: Visual, x_TPC: Tensor) -> bool:
        """Whether the memory of a visual is made some frames at a time."""
        if self.memory_chunk is None or visual.kind not in ("frames", "features"):
            return False
        return len(x_TPC) > max(self.memory_chunk, self.config.memory.min_frames)

    def _project(self, features: list[Tensor]) -> Iterator[Tensor]:
        """Projected tokens [T, P, D] of each of the features, in one call for all, however many
        tokens each has.
        """
        if not features:
            return iter(())
        rows_RC = [as_rows(x, (-1, x.shape[-1])) for x in features]
        all_RC = rows_RC[0] if len(rows_RC) == 1 else torch.cat(rows_RC)
        if self.memory_chunk is None:
            tokens_RD = self.projector(all_RC)
        else:
            rows = self.memory_chunk * self.config.memory.frame_tokens
            tokens_RD = in_chunks(self.projector, all_RC, rows, tuple(self.projector.parameters()))
        parts = tokens_RD.split([len(x) for x in rows_RC])
        return (part.unflatten(0, x.shape[:2]) for part, x in zip(parts, features, strict=True))

    def _memory_of_frames(self, x_TPC: Tensor) -> Tensor:
        """The memory [N, D] of a long video's features, some frames at a time."""

        def memory(x_tPC: Tensor) -> Tensor:
            tokens_RD = self.projector(as_rows(x_tPC, (-1, x_tPC.shape[-1])))
            return end_rows(tokens_RD.unflatten(0, x_tPC.shape[:2]), self.image_newline)

        assert self.memory_chunk is not None
        weights = (self.image_newline, *self.projector.parameters())
        return in_chunks(memory, x_TPC, self.memory_chunk, weights)

    def _encode(self, visuals: list[Visual]) -> list[Tensor]:
        """Features [T, P, C] of each visual: given, or from the vision encoder. Frames are pooled,
        other pictures are not.
        """
        side = self.config.memory.pooled_side
        # All pictures that need a gradient pass together: one call, one backward.
        together = [
            _tensor(visual)
            for visual in visuals
            if visual.kind != "features" and not self.is_long(visual)
        ]
        encoded: Iterator[Tensor] = iter(())
        if together:
            pixels = torch.cat([normalise(pixels, self.dtype) for pixels in together])
            encoded = iter(self.vision(pixels).split([len(pixels) for pixels in together]))
        features = []
        for visual in visuals:
            if visual.kind == "features":
                features.append(_tensor(visual).to(self.dtype))
            elif self.is_long(visual):
                features.append(encode_frames(self.vision, _tensor(visual), side))
            else:
                x_TPC = next(encoded)
                features.append(pool_frames(x_TPC, side) if visual.kind == "frames" else x_TPC)
        return features

    def _augment(self, plan: PackPlan, text_LD: Tensor, memory_ND: Tensor) -> Tensor:
        """The visual tokens [Q, D]: what forgetting kept, after MemAug has looked the rest up for
        the prompt.
        """
        kept_QD = memory_ND.index_select(0, self._to_device(plan.memory_rows_Q))
        query_MD = torch.cat([text_LD, kept_QD]).index_select(
            0, self._to_device(plan.query_sources_M)
        )
        if plan.looked_up_N is not None:
            memory_ND = memory_ND.index_select(0, self._to_device(plan.looked_up_N))
        augmented_MD = self.memaug(
            query_MD,
            memory_ND,
            self._to_device(plan.query_positions_M),
            self._to_device(plan.memory_positions_N),
            SequenceLengths.of(plan.query_lengths, text_LD.device),
            SequenceLengths.of(plan.memory_lengths, text_LD.device),
        )
        return augmented_MD.index_select(0, self._to_device(plan.visual_rows_Q))

    def _visual_to_device(self, visual: Visual) -> Visual:
        """The visual on the model's device; a long video follows in chunks when it is encoded."""
        if self.is_long(visual):
            return visual
        tensor = self._to_device(_tensor(visual))
        if visual.kind == "features":
            return replace(visual, features=tensor)
        return replace(visual, pixels=tensor)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.image_newline.device, non_blocking=True)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the token embeddings, which all activations follow."""
        return self.llm.model.embed_tokens.weight.dtype


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
