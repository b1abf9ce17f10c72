"""The part of OpenAI's chat protocol that is understood, as data: requests, answers, errors.

What cannot be done is refused by its name, not ignored: answers are greedy, so a temperature other
than 0, several choices, tools and the like are errors. `seed`, `user` and `top_p` change nothing of
a greedy answer and are taken.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.options import AskOptions

if TYPE_CHECKING:
    from assets.serving.engine import Outcome

MOST_MESSAGES = 200
MOST_TEXT = 400_000  # characters of one text
OPTIONS = tuple(option.name for option in fields(AskOptions))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Url(_Strict):
    url: str
    detail: str | None = None  # of images; there is one way to look at them


class TextPart(_Strict):
    type: Literal["text"]
    text: str = Field(max_length=MOST_TEXT)


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: Url


class VideoUrlPart(_Strict):
    type: Literal["video_url"]
    video_url: Url


class VideoPart(_Strict):
    """A video as a URL, or by the name that the server lists it under."""

    type: Literal["video"]
    video: str


Part = Annotated[TextPart | ImagePart | VideoUrlPart | VideoPart, Field(discriminator="type")]


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class StreamOptions(_Strict):
    include_usage: bool = False


class ChatRequest(_Strict):
    model: str
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Literal[0] | None = None
    n: Literal[1] = 1
    top_p: float | None = None
    seed: int | None = None
    user: str | None = None
    # What follows is not OpenAI's.
    subtitles: str | None = Field(default=None, description="of the video: SRT or WebVTT")
    memory_scale: float | None = None
    kept_frames: int | None = None
    template_tokens: str | None = None
    forgetting_seed: int | None = None

    @property
    def longest(self) -> int:
        """Tokens at which the answer is cut off."""
        return self.max_completion_tokens or self.max_tokens or 512

    @property
    def options(self) -> AskOptions:
        """Those that are given.

        Raises:
            ProtocolError: one has no meaning.
        """
        given = {name: getattr(self, name) for name in OPTIONS}
        try:
            return AskOptions(**{name: value for name, value in given.items() if value is not None})
        except ValueError as error:
            parameter = next(name for name in OPTIONS if str(error).startswith(name))
            raise ProtocolError(400, str(error), parameter=parameter) from error


@dataclass(frozen=True, slots=True)
class ProtocolError(Exception):
    """What is answered with an HTTP status and the protocol's form of an error."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    parameter: str | None = None
    code: str | None = None


def error_body(
    message: str, kind: str, parameter: str | None = None, code: str | None = None
) -> str:
    """An error as the protocol writes it."""
    return json.dumps(
        {"error": {"message": message, "type": kind, "param": parameter, "code": code}}
    )


def parse_request(body: bytes) -> ChatRequest:
    """A request.

    Raises:
        ProtocolError: it is not one; the first thing that is wrong is named.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = f"{where}: {first['msg']}" if where else first["msg"]
        if first["type"] == "extra_forbidden":
            known = ", ".join(("subtitles", *OPTIONS)) if len(first["loc"]) == 1 else ""
            message = f"{where}: this server does not know it"
            message += f"; besides OpenAI's it knows {known}" if known else ""
        if where == "temperature":
            message = "temperature: answers are greedy; leave it out, or give 0"
        raise ProtocolError(400, message, parameter=where or None) from error


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer in the protocol's forms."""

    id: str
    created: int
    model: str

    def whole(self, text: str, outcome: Outcome) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None}
        choices = [{**choice, "finish_reason": _reason(outcome)}]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage(outcome)}

    def chunk(self, delta: dict[str, str], outcome: Outcome | None = None) -> dict[str, Any]:
        """A piece of a streamed answer; the last one says why it ended."""
        reason = _reason(outcome) if outcome else None
        choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
        return {**self._head("chat.completion.chunk"), "choices": choices}

    def usage_chunk(self, outcome: Outcome) -> dict[str, Any]:
        """What `stream_options.include_usage` asks for, after the answer."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(outcome)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(outcome: Outcome) -> dict[str, int]:
    """Tokens that the language model read, text and visual, and wrote."""
    return {
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.tokens,
        "total_tokens": outcome.prompt_tokens + outcome.tokens,
    }


def _reason(outcome: Outcome) -> str:
    return "length" if outcome.cut_off else "stop"
