"""Hour-LLaVA for the transformers ecosystem: Auto classes, `from_pretrained`, `save_pretrained`,
`generate`.

Importing this module registers the Auto classes. A checkpoint's config.json holds our own
configuration under the key "hour_llava", so that no version of transformers can lose part of it,
and beside it what other tools look for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from model.config import PRESETS, HourLlavaConfig
from model.generate import greedy
from model.hour_llava import HourLlava
from model.initialise import drawn
from model.inputs import SampleInputs


class HourLlavaHFConfig(PretrainedConfig):
    """`hour_llava` is `HourLlavaConfig.to_dict()`; `.model_config` is the configuration itself.

    `rope_theta` is written both as version 4 of transformers names it and inside `rope_parameters`
    as version 5 does: a reader that knows only the other one would silently fall back to 10,000.
    Ours come from "hour_llava" in any case.
    """

    model_type = "hour_llava"

    def __init__(self, hour_llava: dict[str, Any] | None = None, **kwargs: Any) -> None:
        config = HourLlavaConfig.from_dict(hour_llava) if hour_llava else PRESETS["tiny"]
        self.hour_llava = config.to_dict()
        llm = config.llm
        derived = {
            "vocab_size": llm.vocab_size,
            "hidden_size": llm.hidden_size,
            "num_hidden_layers": llm.num_layers,
            "num_attention_heads": llm.num_heads,
            "num_key_value_heads": llm.num_kv_heads,
            "max_position_embeddings": llm.max_position_embeddings,
            "tie_word_embeddings": llm.tie_word_embeddings,
        }
        theta = kwargs.pop("rope_theta", llm.rope_theta)
        parameters = kwargs.pop("rope_parameters", None) or {
            "rope_type": "default",
            "rope_theta": llm.rope_theta,
        }
        for name, value in {
            **derived,
            "rope_theta": theta,
            "rope_parameters.rope_theta": parameters["rope_theta"],
        }.items():
            expected = llm.rope_theta if "rope" in name else derived[name]
            if kwargs.get(name, value) != expected:
                raise ValueError(
                    f"config.json says {name} is {kwargs.get(name, value)}, but hour_llava.llm "
                    f"says {expected}"
                )
        super().__init__(**{**kwargs, **derived})
        self.rope_theta = llm.rope_theta
        self.rope_parameters = {"rope_type": "default", "rope_theta": llm.rope_theta}

    @property
    def model_config(self) -> HourLlavaConfig:
        return HourLlavaConfig.from_dict(self.hour_llava)

    @classmethod
    def of(cls, config: HourLlavaConfig, **kwargs: Any) -> HourLlavaHFConfig:
        return cls(hour_llava=config.to_dict(), architectures=["HourLlavaForCausalLM"], **kwargs)


# Target to source, as version 5 wants it; version 4 knows only the targets. In force if the
# configuration ties.
_TIED = {"model.llm.lm_head.weight": "model.llm.model.embed_tokens.weight"}
_VERSION_4 = transformers.__version__.startswith("4.")


class HourLlavaForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # transformers' own bases disagree
    """`.model` is the `HourLlava` that training uses; tensors are named after it, with the prefix
    "model.".
    """

    config_class = HourLlavaHFConfig
    base_model_prefix = "model"
    _tied_weights_keys: Any = list(_TIED) if _VERSION_4 else _TIED
    _no_split_modules: Any = ["Qwen2DecoderLayer", "MemAugBlock", "VisionLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: HourLlavaHFConfig) -> None:
        super().__init__(config)
        self.model = HourLlava(config.model_config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        samples: Sequence[SampleInputs] | None = None,
        forgetting: str = "uniform",
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Samples to their mean loss and their logits [1, S, V], all of them one after another; or,
        as for any language model, text only: `input_ids` or `inputs_embeds`, `attention_mask`,
        `past_key_values`, `labels`.
        """
        if samples is None:
            return self.model.llm(input_ids=input_ids, **kwargs)
        llm_input = self.model.prepare(samples, forgetting=forgetting)
        logits_SV = self.model.llm.lm_head(self.model.run_llm(llm_input))
        rows_R, targets_R = (index.to(logits_SV.device) for index in llm_input.plan.targets)
        loss: Any = (
            nn.functional.cross_entropy(logits_SV[rows_R].float(), targets_R)
            if len(rows_R)
            else None
        )
        return CausalLMOutputWithPast(loss=loss, logits=logits_SV[None])

    @torch.no_grad()
    def generate(  # type: ignore[override]  # a narrower signature: the rest passes through
        self,
        inputs: Tensor | None = None,
        *,
        samples: SampleInputs | Sequence[SampleInputs] | None = None,
        forgetting: str = "uniform",
        **kwargs: Any,
    ) -> Tensor:
        """Continue each sample's text: new token ids [samples, at most max_new_tokens], without the
        prompt.

        `samples` come from `Processor` with `add_generation_prompt=True`. Shorter prompts are
        padded on the left, answers on the right with `pad_token_id`. Forgetting is uniform, hence
        deterministic, unless asked to be random (by each sample's seed). One sample is decoded
        greedily unless more is asked for; everything else is transformers' `generate`, which also
        takes plain `inputs` ids.
        """
        kwargs.setdefault("eos_token_id", self.config.eos_token_id)
        kwargs.setdefault("pad_token_id", self.config.pad_token_id)
        if samples is None:
            return self.model.llm.generate(inputs, **kwargs)
        samples = [samples] if isinstance(samples, SampleInputs) else samples
        llm_input = self.model.prepare(samples, forgetting=forgetting)
        lengths = llm_input.plan.lengths
        if (
            len(lengths) == 1
            and set(kwargs) <= _GREEDY
            and "max_new_tokens" in kwargs
            and not kwargs.get("do_sample")
        ):
            eos = kwargs["eos_token_id"]
            ends = frozenset(
                eos if isinstance(eos, list | tuple) else () if eos is None else (eos,)
            )
            return greedy(self.model.llm, llm_input.embeds_SD, kwargs["max_new_tokens"], ends)[None]
        embeds = llm_input.embeds_SD.new_zeros(
            len(lengths), max(lengths), llm_input.embeds_SD.shape[-1]
        )
        mask = torch.zeros(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
        for row, embeds_SD in enumerate(llm_input.embeds_SD.split(lengths)):
            embeds[row, -len(embeds_SD) :], mask[row, -len(embeds_SD) :] = embeds_SD, 1
        return self.model.llm.generate(inputs_embeds=embeds, attention_mask=mask, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.llm.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.model.llm.lm_head

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what a checkpoint lacks, also transformers' own modules and their buffers."""
        super()._init_weights(module)
        if isinstance(module, HourLlava):
            module.image_newline.data.copy_(
                drawn("image_newline", tuple(module.image_newline.shape), "hour_llava")
            )


# With nothing but these, generating means taking the most likely token.
_GREEDY = {"max_new_tokens", "do_sample", "eos_token_id", "pad_token_id"}

AutoConfig.register(HourLlavaHFConfig.model_type, HourLlavaHFConfig, exist_ok=True)
AutoModelForCausalLM.register(HourLlavaHFConfig, HourLlavaForCausalLM, exist_ok=True)
