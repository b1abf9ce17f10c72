"""Golden data: numbers recorded from the published system.

The repository holds a selection. `HOUR_LLAVA_GOLDEN=<folder>` runs the same tests on another one of
the same form.
"""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from model.config import HourLlavaConfig, LLMConfig, MemoryConfig, VisionConfig
from model.hour_llava import HourLlava
from model.inputs import SampleInputs, Visual
from model.weights.names import published_name, shapes

ROOT = Path(os.environ.get("HOUR_LLAVA_GOLDEN", Path(__file__).parents[1] / "golden"))


@cache
def tensors(item: str) -> dict[str, Tensor]:
    return load_file(ROOT / f"{item}.safetensors")


@cache
def facts(item: str) -> dict[str, Any]:
    return json.loads((ROOT / f"{item}.json").read_text())


def names(folder: str, pattern: str = "*") -> list[str]:
    return sorted(path.stem for path in (ROOT / folder).glob(f"{pattern}.safetensors"))


def config_of(recorded: dict[str, Any], variant: str = "golden") -> HourLlavaConfig:
    """A recorded configuration as ours. The recording counts the vision layer that is dropped."""
    return HourLlavaConfig(
        variant=variant,
        vision=VisionConfig(
            image_size=recorded["image_size"],
            patch_size=recorded["patch_size"],
            hidden_size=recorded["vit_hidden"],
            intermediate_size=recorded["vit_inter"],
            num_layers=recorded["vit_layers"] - 1,
            num_heads=recorded["vit_heads"],
        ),
        llm=LLMConfig(
            hidden_size=recorded["hidden_size"],
            num_layers=recorded["num_hidden_layers"],
            num_heads=recorded["num_attention_heads"],
            num_kv_heads=recorded["num_key_value_heads"],
            intermediate_size=recorded["intermediate_size"],
            vocab_size=recorded["vocab_size"],
            rope_theta=recorded["rope_theta"],
            rms_norm_eps=recorded["rms_norm_eps"],
            tie_word_embeddings=recorded["tie_word_embeddings"],
        ),
        memory=MemoryConfig(),
        memaug_depth=recorded["memaug_depth"],
        max_length=recorded["tokenizer_model_max_length"],
    )


def model_of(case: str) -> HourLlava:
    """The recorded model that a full_model case ran on, with fresh gradients."""
    recorded = facts(f"full_model/{case}")
    config = config_of(recorded["config"] | recorded["config_overrides"])
    model = HourLlava(config).eval()
    weights = tensors(f"full_model/{case.split('.')[0]}.weights")
    missing, unexpected = model.load_state_dict(
        {name: weights[published_name(name)] for name in shapes(config)}, strict=False
    )
    assert not unexpected
    assert missing == (["llm.lm_head.weight"] if config.llm.tie_word_embeddings else [])
    return model


def samples_of(case: str, seed: int | None = None) -> list[SampleInputs]:
    """The recorded batch as samples: padding cut off, images grouped by their sample."""
    recorded, data = facts(f"full_model/{case}"), tensors(f"full_model/{case}")
    kinds = {
        "video_pixels": "frames",
        "video_features": "features",
        "anyres": "anyres",
        "pad": "images",
    }
    images = iter(enumerate(recorded["images"]))
    samples = []
    for row, attended in enumerate(data["attention_mask"]):
        ids = data["input_ids"][row][attended]
        visuals = []
        for _ in range(
            max(1, int((ids == -200).sum()))
        ):  # text samples carry a dummy image, which is not ours
            number, image = next(images)
            if image["kind"] == "text_dummy":
                continue
            tensor = data[f"image_{number}"]
            if image["kind"] == "video_features":
                visuals.append(Visual("features", features=tensor.flatten(1, 2)))
            elif image["kind"] == "anyres":
                visuals.append(
                    Visual("anyres", pixels=tensor, image_size=tuple(image["image_size"]))
                )
            else:
                visuals.append(
                    Visual(
                        kinds[image["kind"]], pixels=tensor if tensor.ndim == 4 else tensor[None]
                    )
                )
        samples.append(
            SampleInputs(f"{case}/{row}", ids, data["labels"][row][attended], visuals, seed)
        )
    return samples


def mixed():
    """A model, and samples of every kind: a video, one image, several images, text."""
    case = "v9.r_random_sampling"
    return model_of(case), samples_of(case, seed=5)
