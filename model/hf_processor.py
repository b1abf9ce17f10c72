"""The processor for transformers: messages with pictures and videos in, what `generate` takes out.

    processor = AutoProcessor.from_pretrained(export)
    batch = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    answer = model.generate(**batch, max_new_tokens=64)[:, batch["input_ids"].shape[1] :]

A face of `model.processor.Processor`, which training uses: the same messages become the same
tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import BatchFeature, PretrainedConfig, ProcessorMixin

from model.config import HourLlavaConfig
from model.conversation import END, IMAGE, START, SYSTEM_MESSAGE
from model.hf_requests import (
    Request,
    pictures_for_each,
    refuse_special_tokens,
    request_of_messages,
    seconds_of,
    turns_of_text,
    videos_for_each,
)
from model.images import is_address
from model.inputs import IGNORE_INDEX, IMAGE_TOKEN_INDEX, SampleInputs, pad_left
from model.processor import Processor, ReadVideo

CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    f"{{{{- '{START}system\\n{SYSTEM_MESSAGE}{END}\\n' -}}}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    f"{{{{- '{START}' + message['role'] + '\\n' -}}}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{- part['text'] -}}"
    "{%- else -%}{{- '<image>' -}}{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
    f"{{{{- '{END}\\n' -}}}}"
    "{%- endfor -%}"
    f"{{%- if add_generation_prompt -%}}{{{{- '{START}assistant\\n' -}}}}{{%- endif -%}}"
)


class HourLlavaProcessor(ProcessorMixin):  # type: ignore[misc]  # transformers types it as Any
    """Messages, pictures and videos to a batch for `HourLlavaForCausalLM`, and tokens to text.

    A batch holds `samples`, which the model takes, and beside them `input_ids`, `attention_mask`
    and, where there are answers to learn from, `labels`, padded on the left. An id of -200 is the
    place of a visual; `decode` and `batch_decode` of the processor know it.

    A picture is a file, its bytes, a picture of Pillow or an array [H, W, 3] uint8. A video is a
    file, stored features, frames [T, H, W, 3] uint8 or a list of pictures; frames need their
    `duration` in seconds. An address is refused unless `fetch` is set.

    Attributes:
        fetch: takes an address and gives a file's path or, of a picture, bytes.
    """

    attributes = ["tokenizer"]  # noqa: RUF012  # version 4 reads it
    tokenizer_class: Any = "AutoTokenizer"
    tokenizer: Any
    fetch: Callable[[str], Any] | None = None

    def __init__(
        self,
        tokenizer: Any = None,
        hour_llava: dict[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> None:
        """`hour_llava` is `HourLlavaConfig.to_dict()`."""
        if hour_llava is None:
            raise ValueError("hour_llava: the model's configuration is needed")
        super().__init__(tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.hour_llava = HourLlavaConfig.from_dict(hour_llava).to_dict()

    @property
    def processor(self) -> Processor:
        """What training uses."""
        return Processor(HourLlavaConfig.from_dict(self.hour_llava), self.tokenizer)

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """What `from_pretrained` makes a processor of; older exports have it in config.json."""
        found, kwargs = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "hour_llava" not in found:
            config, _ = PretrainedConfig.get_config_dict(pretrained_model_name_or_path)
            if "hour_llava" not in config:
                raise ValueError(
                    f"{pretrained_model_name_or_path}: config.json has no 'hour_llava'; this is no "
                    "checkpoint of Hour-LLaVA"
                )
            found["hour_llava"] = config["hour_llava"]
        return found, kwargs

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "samples"]

    # -- to the model -----------------------------------------------------------------------------

    def __call__(  # type: ignore[override]  # the arguments that have a meaning here
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        *,
        duration: float | Sequence[float] | None = None,
        seed: int | None = None,
        padding: bool | str = True,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """A question, or several, and what each is about.

        Args:
            images: of one question a picture or a list; of several questions a list of these.
            text: a bare question, or what `apply_chat_template(tokenize=False)` gave. A bare one
                gets its `<image>` in front where it has none.
            videos: of one question a video; of several questions a list, or one for all of them.
            duration: seconds of a video that is given as frames.
            seed: decides random forgetting.

        Raises:
            ValueError: something cannot be used; it is named.
        """
        if text is None or not len(text):
            raise ValueError("text is missing: what is to be asked?")
        texts = [text] if isinstance(text, str) else list(text)
        pictures = pictures_for_each(texts, images, isinstance(text, str), "images")
        films = videos_for_each(texts, videos, isinstance(text, str))
        seconds = duration if isinstance(duration, Sequence) else [duration] * len(texts)
        requests = []
        for number, content in enumerate(texts):
            turns, prompted = turns_of_text(content)
            lasts = seconds_of(seconds[number])
            request = Request(turns, pictures[number], films[number], lasts, prompted)
            visuals = len(request.images) + len(request.videos)
            if visuals and not content.startswith(START) and IMAGE not in content:
                turns[0]["value"] = f"{IMAGE}\n" * visuals + content
            requests.append(request)
        return self._batch(requests, seed, padding, return_tensors)

    def apply_chat_template(  # type: ignore[override]  # the arguments that have a meaning here
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_dict: bool = True,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
        seed: int | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Messages (or a list of such) to a batch, or, without `tokenize`, to the prompt's text.

        A message is `{"role": "system" | "user" | "assistant", "content": ...}`, the content text
        or parts: `{"type": "text", "text": ...}`, `{"type": "image", "image": ...}` and
        `{"type": "video", "video": ..., "duration": seconds of frames}`. Without
        `add_generation_prompt` the batch has `labels`, as in training.

        Raises:
            ValueError: something cannot be used; it is named.
        """
        if continue_final_message:
            raise ValueError(
                "continue_final_message: an answer cannot be continued; end with a user's message"
            )
        if processor_kwargs:
            raise ValueError(f"processor_kwargs: not known here: {sorted(processor_kwargs)}")
        single = not conversation or isinstance(conversation[0], Mapping)
        chats = [conversation] if single else list(conversation)
        requests = [
            request_of_messages(chat, add_generation_prompt, with_sources=tokenize)
            for chat in chats
        ]
        if not tokenize:
            for request in requests:
                refuse_special_tokens(request.turns)
            return super().apply_chat_template(
                conversation,
                chat_template=chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        if chat_template is not None:
            raise ValueError("chat_template: the model knows only the one it was trained with")
        batch = self._batch(requests, seed, padding, return_tensors)
        return batch if return_dict else batch["input_ids"]

    def _batch(
        self,
        requests: Sequence[Request],
        seed: int | None,
        padding: bool | str,
        return_tensors: str | None,
    ) -> BatchFeature:
        if return_tensors not in (None, "pt"):
            raise ValueError(f"return_tensors is {return_tensors!r}; only 'pt' is known")
        read: dict[Any, ReadVideo] = {}
        samples = [
            self._sample(request, f"{number}", seed, read)
            for number, request in enumerate(requests)
        ]
        lengths = {len(sample.input_ids) for sample in samples}
        if padding is False and len(lengths) > 1:
            raise ValueError("padding is False, but the prompts have different lengths")
        pad = self.tokenizer.pad_token_id or 0
        input_ids, attention_mask = pad_left([sample.input_ids for sample in samples], pad)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "samples": samples}
        if not any(request.add_generation_prompt for request in requests):
            batch["labels"] = pad_left([sample.labels for sample in samples], IGNORE_INDEX)[0]
        return BatchFeature(batch)

    def _sample(
        self, request: Request, name: str, seed: int | None, read: dict[Any, ReadVideo]
    ) -> SampleInputs:
        named: Any = {
            "id": name,
            "seed": seed,
            "add_generation_prompt": request.add_generation_prompt,
        }
        if len(request.videos) > 1:
            raise ValueError(
                f"sample {name!r}: {len(request.videos)} videos; the model has no rule for "
                "several, ask about one at a time"
            )
        processor = self.processor
        if not request.videos:
            images = [self._fetched(image) for image in request.images]
            return processor.sample(request.turns, images=images, **named)
        if request.images:
            raise ValueError(
                f"sample {name!r}: a video and {len(request.images)} images; a sample is about one "
                "or the other"
            )
        video = request.videos[0]
        # What is asked about twice is read once, and the samples share its memory.
        key = (video if isinstance(video, str) else id(video)), request.duration
        if key not in read:
            frames = list(video) if isinstance(video, tuple) else self._fetched(video)
            read[key] = processor.read_video(frames, request.duration)
        return processor.about(read[key], request.turns, **named)

    def _fetched(self, source: Any) -> Any:
        return self.fetch(source) if self.fetch is not None and is_address(source) else source

    # -- from the model ---------------------------------------------------------------------------

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        """The text of tokens; where a visual stood, `<image>`, unless special tokens are left
        out.
        """
        ids = token_ids.tolist() if isinstance(token_ids, Tensor | np.ndarray) else token_ids
        pieces: list[list[int]] = [[]]
        for token in [ids] if isinstance(ids, int) else ids:
            if token == IMAGE_TOKEN_INDEX:
                pieces.append([])
            else:
                pieces[-1].append(token)
        texts = [
            self.tokenizer.decode(piece, skip_special_tokens=skip_special_tokens, **kwargs)
            for piece in pieces
        ]
        return ("" if skip_special_tokens else IMAGE).join(texts)

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        return [self.decode(ids, skip_special_tokens, **kwargs) for ids in sequences]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        return self.batch_decode(generated_outputs, skip_special_tokens, **kwargs)


def processor_files(config: HourLlavaConfig) -> dict[str, bytes]:
    """What a checkpoint's folder holds for `AutoProcessor`, beside the tokenizer's files."""
    described = {"hour_llava": config.to_dict(), "processor_class": HourLlavaProcessor.__name__}
    return {
        "processor_config.json": (json.dumps(described, indent=2, sort_keys=True) + "\n").encode(),
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
    }
