"""A checkpoint's config.json for transformers.

It holds our own configuration under the key "hour_llava", so that no version of transformers can
lose part of it, and beside it what other tools look for.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from model.config import PRESETS, HourLlavaConfig


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
