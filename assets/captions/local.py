"""A checkpoint on this machine as an answerer: one of this project's, or any image-text-to-text
model of transformers. Greedy, so the same prompt always has the same answer.
"""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assets.endpoints.options import LocalModel
from assets.endpoints.protocol import Patience, Prompt, RefusedPromptError, Reply
from assets.fetching.errors import OperatorError
from assets.inference.checkpoint import checkpoint_hash
from model.conversation import IMAGE

LOG = logging.getLogger(__name__)
PICTURE_TOKENS = 729  # of a picture at most, for the budget: what SigLIP gives


class LocalBackend:
    """One loaded checkpoint. It answers one prompt at a time.

    Attributes:
        model: name of its folder, and a hash of its content.
        identity, concurrency, prices, patience: see `Backend`.

    Raises:
        OperatorError: the folder holds no checkpoint that can be loaded.
    """

    concurrency = 1
    prices = (0.0, 0.0)
    patience = Patience()

    def __init__(self, settings: LocalModel) -> None:
        folder = settings.checkpoint
        config = _config(folder)
        self.longest = settings.longest_answer
        self._lock = threading.Lock()
        self.model = self.identity = f"{folder.name}@{checkpoint_hash(folder)[:16]}"
        load = _hour_llava if "hour_llava" in config else _transformers
        self._write = load(folder, settings.device, self.longest)

    def most_tokens(self, prompt: Prompt) -> tuple[int, int]:
        """Tokens that a prompt may cost at most: read, and written."""
        pictures = len(prompt.pictures.jpegs) if prompt.pictures else 0
        texts = prompt.system, prompt.text, prompt.form_in_words
        text = sum(len(one.encode()) for one in texts) // 2
        return text + pictures * PICTURE_TOKENS, self.longest

    def answer(self, prompt: Prompt) -> Reply:
        """The answer to a prompt. The form is told in words: no decoder is bound to it here.

        Raises:
            RefusedPromptError: the checkpoint cannot take it; it is too long, for one.
        """
        text = f"{prompt.text}\n\n{prompt.form_in_words}"
        jpegs = prompt.pictures.jpegs if prompt.pictures else ()
        with self._lock:
            try:
                said, read, written = self._write(prompt.system, text, jpegs)
            except ValueError as error:
                LOG.warning("%s: a prompt of the form %s: %s", self.model, prompt.shape, error)
                raise RefusedPromptError("prompt_not_taken") from error
        return Reply(said, "length" if written >= self.longest else "stop", read, written)


# (system, text, JPEG files) -> (answer, tokens read, tokens written)
_Write = Callable[[str, str, tuple[bytes, ...]], tuple[str, int, int]]


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise OperatorError(
            f"{folder}: no config.json; this is no checkpoint's folder (questions.*.checkpoint)"
        )
    found = json.loads(path.read_text())
    return found if isinstance(found, dict) else {}


def _hour_llava(folder: Path, device: str, longest: int) -> _Write:
    """A checkpoint of this project: the pictures are one visual of several images."""
    from assets.inference.session import Session

    session = Session(folder, device)

    def write(system: str, text: str, jpegs: tuple[bytes, ...]) -> tuple[str, int, int]:
        # Its template has one system turn of its own, which training used.
        plain = f"{system}\n\n{text}".replace(IMAGE, "< image >")
        prompt = session.prompt("\n".join([*[IMAGE] * len(jpegs), plain]), images=jpegs)
        tokens = list(session.tokens(prompt, longest))
        return session.text(tokens), len(prompt.inputs.input_ids), len(tokens)

    return write


def _transformers(folder: Path, device: str, longest: int) -> _Write:
    """Any image-text-to-text model that transformers knows, without code of its own."""
    import torch
    from PIL import Image

    from model.weights.loading import load_image_text_model

    if device == "cuda" and not torch.cuda.is_available():
        raise OperatorError("device is 'cuda', but this machine has no usable GPU")
    chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if chosen == "cuda" else torch.float32
    try:
        model, processor = load_image_text_model(folder, dtype)
    except (OSError, ValueError) as error:
        raise OperatorError(
            f"{folder}: transformers loads no image-text-to-text model from it: {error}"
        ) from error
    model = model.to(chosen).eval()

    def write(system: str, text: str, jpegs: tuple[bytes, ...]) -> tuple[str, int, int]:
        images = [Image.open(io.BytesIO(jpeg), formats=["JPEG"]).convert("RGB") for jpeg in jpegs]
        content: list[dict[str, Any]] = [{"type": "image"} for _ in images]
        content.append({"type": "text", "text": f"{system}\n\n{text}"})
        shown = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = processor(text=[shown], images=images or None, return_tensors="pt").to(chosen)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        read = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=longest, do_sample=False)[0, read:]
        return processor.decode(ids, skip_special_tokens=True), read, len(ids)

    return write
