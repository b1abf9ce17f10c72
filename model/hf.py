"""Hour-LLaVA for the transformers ecosystem: Auto classes, `from_pretrained`, `save_pretrained`,
`generate`.

Importing this module registers the Auto classes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from model.generate import CACHE, greedy_tokens
from model.hf_config import HourLlavaHFConfig
from model.hf_generation import (
    MAX_NEW,
    behind,
    is_greedy,
    limited,
    longest_answer,
    refuse_drafts,
)
from model.hf_processor import HourLlavaProcessor
from model.hour_llava import HourLlava
from model.initialise import drawn
from model.inputs import (
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
    SampleInputs,
    pad_left,
    with_template_tokens,
)
from model.llm_attention import LLM_ATTENTION, refuse_attention

# Target to source, as version 5 wants it; version 4 knows only the targets. In force if the
# configuration ties.
_TIED = {"model.llm.lm_head.weight": "model.llm.model.embed_tokens.weight"}
_VERSION_4 = transformers.__version__.startswith("4.")


class HourLlavaForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # transformers' own bases disagree
    """`.model` is the `HourLlava` that training uses; tensors are named after it, with the prefix
    "model.".

    Attention is chosen by model/attention.py alone; asking for another one is an error.
    """

    config_class = HourLlavaHFConfig
    base_model_prefix = "model"
    _tied_weights_keys: Any = list(_TIED) if _VERSION_4 else _TIED
    _no_split_modules: Any = ["Qwen2DecoderLayer", "MemAugBlock"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True

    def __init__(self, config: HourLlavaHFConfig) -> None:
        refuse_attention(config._attn_implementation)
        config._attn_implementation = LLM_ATTENTION
        super().__init__(config)
        self.model = HourLlava(config.model_config)
        blocks = {type(block).__name__ for block in self.model.vision.layers}
        self._no_split_modules = [*type(self)._no_split_modules, *sorted(blocks)]
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        samples: Sequence[SampleInputs] | None = None,
        forgetting: str = "uniform",
    ) -> Any:
        """Samples to their mean loss and their logits [1, S, V], all of them one after another; or,
        as for any language model, text only.

        Args:
            samples: as `Processor` makes them. What its batches hold beside them (`input_ids`,
                `attention_mask`, `labels`) must say the same.
            forgetting: see `generate`.

        The loss is zero where nothing is supervised.

        Raises:
            ValueError: a sample cannot be used (it is named), or something that is not supported.
        """
        if output_attentions:
            raise ValueError("output_attentions: the kernels of Hour-LLaVA keep no attention maps")
        if samples is not None:
            return self._forward_samples(
                samples, input_ids, attention_mask, labels, forgetting, return_dict
            )
        refuse_attention(self.model.llm.config._attn_implementation)
        if past_key_values is not None and cache is not None:
            raise ValueError("past_key_values and cache are one thing; give one of them")
        cache = past_key_values if cache is None else cache
        if input_ids is not None and cache is None:
            self._check_ids(input_ids)
        given = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            CACHE: cache,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
            "cache_position": cache_position,
            "output_hidden_states": output_hidden_states,
        }
        given = {name: value for name, value in given.items() if value is not None}
        output = self.model.llm(input_ids=input_ids, logits_to_keep=logits_to_keep, **given)
        if labels is not None:
            targets = labels[:, 1:].flatten()
            rows = (targets != IGNORE_INDEX).nonzero().flatten()
            output.loss = _mean_loss(output.logits[:, :-1].flatten(0, 1), rows, targets[rows])
        return output if return_dict is not False else output.to_tuple()

    def _forward_samples(
        self,
        samples: Sequence[SampleInputs],
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        forgetting: str,
        return_dict: bool | None,
    ) -> Any:
        _check_batch(samples, input_ids, attention_mask, labels)
        llm_input = self.model.prepare(samples, forgetting=forgetting)
        logits_SV = self.model.llm.lm_head(self.model.run_llm(llm_input))
        rows_R, targets_R = (index.to(logits_SV.device) for index in llm_input.plan.targets)
        loss = _mean_loss(logits_SV, rows_R, targets_R)
        output = CausalLMOutputWithPast(loss=loss, logits=logits_SV[None])  # type: ignore[arg-type]  # transformers names CPU types
        return output if return_dict is not False else output.to_tuple()

    @torch.no_grad()
    def generate(  # type: ignore[override]  # a narrower signature: the rest passes through
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        samples: SampleInputs | Sequence[SampleInputs | Sequence[SampleInputs]] | None = None,
        forgetting: str = "uniform",
        template_tokens: str | None = None,
        memory_scale: float | None = None,
        kept_frames: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue each sample's text: new token ids [samples, at most max_new_tokens]; behind the
        `input_ids`, where these are given as well, as transformers does.

        Settings come from `kwargs`, `generation_config`, then the model's own `generation_config`.
        Without `max_new_tokens` or `max_length` an answer ends with its end token, or where the
        context does. Shorter prompts are padded on the left, answers on the right with
        `pad_token_id`. One sample is decoded greedily unless more is asked for; everything else is
        transformers' `generate`, which also takes plain `inputs` ids.

        Args:
            samples: of `Processor` with `add_generation_prompt=True`. Several that share a `Visual`
                share its memory. Lists of lists, as transformers' pipelines batch, are one list.
            forgetting: `uniform` is deterministic; `random` follows each sample's seed.
            template_tokens: whether MemAug sees the chat template's tokens: `hidden` as in the
                published training, `seen` as the published code has it where labels are missing;
                None: as the samples were made, by the checkpoint's configuration.
            memory_scale, kept_frames: see `HourLlava.prepare`.

        Raises:
            ValueError: a prompt cannot be used or leaves no room in the context, or a setting that
                nothing reads.
        """
        if samples is None:
            return self._generate_text(inputs, generation_config, kwargs)
        samples = _flat(samples)
        prompt = kwargs.pop("input_ids", inputs)
        _check_batch(
            samples, prompt, kwargs.pop("attention_mask", None), kwargs.pop("labels", None)
        )
        if template_tokens is not None:
            samples = [with_template_tokens(sample, template_tokens) for sample in samples]
        llm_input = self.model.prepare(
            samples, forgetting=forgetting, memory_scale=memory_scale, kept_frames=kept_frames
        )
        lengths = llm_input.plan.lengths
        longest, settings = self._settings(generation_config, kwargs, max(lengths))
        refuse_drafts(settings, kwargs)
        generation_config, kwargs = limited(longest, generation_config, kwargs)
        if longest == 0:
            new: Any = torch.empty(len(samples), 0, dtype=torch.int64, device=self.device)
        elif len(lengths) == 1 and is_greedy(settings, kwargs):
            new = self._greedy(llm_input.embeds_SD, longest, settings, kwargs.get("streamer"))
        else:
            embeds, mask = pad_left(llm_input.embeds_SD.split(lengths))
            new = super().generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                generation_config=generation_config,
                **kwargs,
            )
        return new if prompt is None else behind(prompt, new)

    def _generate_text(
        self,
        inputs: Tensor | None,
        generation_config: GenerationConfig | None,
        kwargs: dict[str, Any],
    ) -> Any:
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        embeds = kwargs.get("inputs_embeds")
        prompt = ids if embeds is None else embeds
        if prompt is None:
            raise ValueError("generate() needs samples, input_ids or inputs_embeds")
        if embeds is None:
            self._check_ids(prompt)
        longest, _ = self._settings(generation_config, kwargs, prompt.shape[1])
        generation_config, kwargs = limited(longest, generation_config, kwargs)
        if longest == 0:
            return prompt[:, :0] if ids is None else ids
        return super().generate(inputs, generation_config, **kwargs)

    def _greedy(
        self, embeds_SD: Tensor, longest: int, settings: GenerationConfig, streamer: Any
    ) -> Tensor:
        """The most likely tokens [1, n], told to the streamer as transformers does."""
        eos = settings.eos_token_id
        ends = frozenset(eos if isinstance(eos, list | tuple) else () if eos is None else (eos,))
        if streamer is not None:
            streamer.put(torch.empty(1, 0, dtype=torch.int64))  # where others put the prompt
        tokens = []
        for token in greedy_tokens(self.model.llm, embeds_SD, longest, ends):
            tokens.append(token)
            if streamer is not None:
                streamer.put(torch.tensor([token]))
        if streamer is not None:
            streamer.end()
        return torch.tensor([tokens], device=embeds_SD.device)

    def _settings(
        self, config: GenerationConfig | None, kwargs: dict[str, Any], prompt: int
    ) -> tuple[int, GenerationConfig]:
        """How many tokens an answer may have, and the settings that are in force."""
        nothing = kwargs.get(MAX_NEW) == 0  # which no GenerationConfig takes
        given = {key: value for key, value in kwargs.items() if not nothing or key != MAX_NEW}
        settings, _ = self._prepare_generation_config(config, **given)
        context = self.config.model_config.max_length
        if nothing:
            return 0, settings
        by_length = kwargs.get("max_length") is not None
        return longest_answer(settings, by_length, prompt, context), settings

    def _check_ids(self, ids: Tensor) -> None:
        low, high = (int(end) for end in ids.aminmax()) if ids.numel() else (0, 0)
        if low == IMAGE_TOKEN_INDEX:
            raise ValueError(
                f"input_ids hold {IMAGE_TOKEN_INDEX}, the place of a visual: give the whole batch "
                "that the processor made, with its samples"
            )
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(
                f"input_ids lie in {low} .. {high}; the vocabulary has {self.config.vocab_size}"
            )

    # -- what transformers asks of a model --------------------------------------------------------

    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)  # its arguments are looked at
    def prepare_inputs_for_generation(  # type: ignore[override]  # it takes two more
        self, *args: Any, tokenizer: Any = None, assistant_tokenizer: Any = None, **kwargs: Any
    ) -> Any:
        """As in transformers, which hands a tokenizer (of `stop_strings`) on to every step."""
        return super().prepare_inputs_for_generation(*args, **kwargs)

    def load_custom_generate(self, *_: Any, **__: Any) -> Any:
        """Never: version 4.57 asks this whenever it loads a local folder, and would run the file
        `custom_generate/generate.py` of it whatever `trust_remote_code` says.
        """
        raise OSError("Hour-LLaVA takes no generate() from a checkpoint's folder")

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        refuse_attention(attn_implementation)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.llm.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.llm.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.model.llm.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.llm.lm_head = new_embeddings

    def get_decoder(self, *_: Any, **__: Any) -> nn.Module:
        return self.model.llm.model

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:  # type: ignore[override]
        """As in transformers; the configuration follows, here and in what is saved."""
        embeddings: nn.Embedding = super().resize_token_embeddings(*args, **kwargs)
        config = self.config.model_config
        config = replace(config, llm=replace(config.llm, vocab_size=embeddings.num_embeddings))
        self.config.hour_llava = config.to_dict()
        self.config.vocab_size = self.model.llm.config.vocab_size = config.llm.vocab_size
        self.model.llm.vocab_size = config.llm.vocab_size
        self.model.config = config
        return embeddings

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what a checkpoint lacks, also transformers' own modules and their buffers."""
        super()._init_weights(module)
        if isinstance(module, HourLlava):
            module.image_newline.data.copy_(
                drawn("image_newline", tuple(module.image_newline.shape), "hour_llava")
            )


def _flat(samples: SampleInputs | Sequence[Any]) -> list[SampleInputs]:
    if isinstance(samples, SampleInputs):
        return [samples]
    return [sample for part in samples for sample in _flat(part)]


def _check_batch(
    samples: Sequence[SampleInputs],
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    labels: Tensor | None,
) -> None:
    """What stands beside the samples in a batch is for those who look at it: it must not say
    anything else.
    """
    if not samples:
        raise ValueError("no samples")
    masks = None if attention_mask is None else attention_mask.cpu().bool()
    for name, given in (("input_ids", input_ids), ("labels", labels)):
        if given is None:
            continue
        rows = (
            given.cpu()
            if masks is None
            else [r[m] for r, m in zip(given.cpu(), masks, strict=True)]
        )
        own = [getattr(sample, name).cpu() for sample in samples]
        if len(rows) != len(own) or not all(map(torch.equal, rows, own)):
            raise ValueError(
                f"{name} differ from those of the samples beside them; change the samples, or "
                "leave out one of both"
            )


def _mean_loss(logits_SV: Tensor, rows_R: Tensor, targets_R: Tensor) -> Tensor:
    if not len(rows_R):
        return logits_SV[:1].float().sum() * 0
    return nn.functional.cross_entropy(logits_SV[rows_R].float(), targets_R)


AutoConfig.register(HourLlavaHFConfig.model_type, HourLlavaHFConfig, exist_ok=True)
AutoModelForCausalLM.register(HourLlavaHFConfig, HourLlavaForCausalLM, exist_ok=True)
AutoModelForImageTextToText.register(HourLlavaHFConfig, HourLlavaForCausalLM, exist_ok=True)
AutoProcessor.register(HourLlavaHFConfig, HourLlavaProcessor, exist_ok=True)
