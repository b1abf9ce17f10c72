"""Find and load a checkpoint that can be asked: an export of ours, or a released one under its
published names, which is converted once.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.formats.hashing import data_version, hash_file

if TYPE_CHECKING:
    from model.hf import HourLlavaForCausalLM
    from model.processor import Processor


def find_checkpoint(folder: Path, log: Callable[[str], None], cache: Path | None = None) -> Path:
    """The export folder that `load_checkpoint` takes.

    Args:
        folder: an export, the folder of a stage's run that holds one, or a released checkpoint.
        log: told when a conversion begins, which takes as long as copying the weights.
        cache: where converted checkpoints are kept; by default `hourllava/converted` in the
            user's cache folder. They are found again by the content of what they were made from.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder that is neither; it says what was looked for.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such checkpoint folder (one on the hub is downloaded to a folder first)"
        )
    if not (folder / "config.json").exists() and (folder / "export" / "config.json").exists():
        folder = folder / "export"
    written = _read_config(folder)
    if "hour_llava" in written:
        return folder
    from model.config import PRESETS
    from model.weights.convert import convert_released

    variant = _released_variant(written)
    if variant is None:
        raise ValueError(
            f"{folder}: neither an export of ours nor a released Hour-LLaVA checkpoint: its "
            f"config.json has hidden_size {written.get('hidden_size')}, num_hidden_layers "
            f"{written.get('num_hidden_layers')} and vocab_size {written.get('vocab_size')}, which "
            f"are those of no variant ({', '.join(PRESETS)})"
        )
    converted = (cache or _default_cache()) / checkpoint_hash(folder)
    if not converted.exists():
        log(f"{folder}: a released {variant} checkpoint, converted into {converted}")
        converted.parent.mkdir(parents=True, exist_ok=True)
        convert_released(folder, converted, PRESETS[variant])
    return converted


def load_checkpoint(export: Path, device: str = "auto") -> tuple[HourLlavaForCausalLM, Processor]:
    """A checkpoint ready to answer: bfloat16 on a GPU, float32 on a CPU.

    Args:
        export: a folder that `find_checkpoint` gave.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ValueError: there is no GPU where one is asked for.
    """
    import torch

    from model.processor import Processor
    from model.weights.loading import load_model, load_tokenizer

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device is 'cuda', but this machine has no usable GPU; set it to 'auto' or 'cpu'"
        )
    chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if chosen == "cuda" else torch.float32
    model = load_model(export, dtype).to(chosen).eval()  # type: ignore[arg-type]  # hidden by their decorator
    return model, Processor(model.config.model_config, load_tokenizer(export))


def log_to_terminal(line: str) -> None:
    """Tell the person at the terminal, beside the answers: on standard error."""
    print(line, file=sys.stderr, flush=True)


def checkpoint_hash(folder: Path) -> str:
    """Content hash of a checkpoint's weights, configuration and tokenizer.

    Raises:
        ValueError: there are no weights.
    """
    files = sorted(
        path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".txt")
    )
    if not any(path.suffix == ".safetensors" for path in files):
        raise ValueError(f"{folder}: no .safetensors file; this is not a checkpoint")
    return data_version({path.name: hash_file(path) for path in files})


def encoder_hash(export: Path) -> str:
    """Content hash of an export's vision encoder, as feature files name the one that they were made
    with.
    """
    from assets.features.extract import hash_encoder
    from training.export import export_vision_encoder

    with tempfile.TemporaryDirectory(prefix="hourllava-encoder-") as scratch:
        export_vision_encoder(export, Path(scratch))
        return hash_encoder(Path(scratch))


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        written = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder}: no config.json; this is not a checkpoint's folder") from None
    except ValueError as error:
        raise ValueError(f"{folder}/config.json: not valid JSON: {error}") from error
    if not isinstance(written, dict):
        raise ValueError(
            f"{folder}/config.json: expected an object, found {type(written).__name__}"
        )
    return written


def _released_variant(written: dict[str, Any]) -> str | None:
    """The variant whose language model a published config.json describes."""
    from model.config import PRESETS

    for name, preset in PRESETS.items():
        llm = preset.llm
        expected = {
            "hidden_size": llm.hidden_size,
            "num_hidden_layers": llm.num_layers,
            "num_attention_heads": llm.num_heads,
            "vocab_size": llm.vocab_size,
        }
        if all(written.get(key) == value for key, value in expected.items()):
            return name
    return None


def _default_cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "hourllava" / "converted"
