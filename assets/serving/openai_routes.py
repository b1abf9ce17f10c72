"""`/v1/models` and `/v1/chat/completions`: what other tools ask."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from assets.serving.engine import Asked, BusyError, Engine, FailedError, Outcome
from assets.serving.media import image_bytes, video_name
from assets.serving.openai_protocol import (
    ChatRequest,
    ImagePart,
    Message,
    ProtocolError,
    Reply,
    TextPart,
    VideoUrlPart,
    error_body,
    parse_request,
)

if TYPE_CHECKING:
    from assets.inference.prompts import Said


SYSTEM_ROLES = ("system", "developer")


def openai_routes(engine: Engine) -> list[Route]:
    """The endpoint's routes."""

    async def models(_: Request) -> Response:
        names = await run_in_threadpool(engine.library.checkpoints)
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "hourllava"} for name in names
        ]
        return JSONResponse({"object": "list", "data": data})

    async def completions(request: Request) -> Response:
        try:
            body = await _body(request, engine.library.upload_bytes * 3 // 2)
            return await _complete(engine, parse_request(body))
        except ProtocolError as error:
            return _error_response(error)
        except (ValueError, FileNotFoundError, BusyError, FailedError) as error:
            return _error_response(_as_protocol(error))

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/chat/completions", completions, methods=["POST"]),
    ]


async def _complete(engine: Engine, request: ChatRequest) -> Response:
    if request.model not in await run_in_threadpool(engine.library.checkpoints):
        message = f"no model {request.model!r}; GET /v1/models lists those that there are"
        raise ProtocolError(404, message, parameter="model", code="model_not_found")
    asked = await run_in_threadpool(to_asked, request, engine)
    reply = Reply(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), request.model)
    pieces = engine.stream(asked)
    if request.stream:
        first = await anext(pieces)  # what is wrong is told with a status of its own
        options = request.stream_options
        usage = options is not None and options.include_usage
        events = _events(reply, first, pieces, usage)
        return StreamingResponse(events, media_type="text/event-stream")
    text = ""
    async for piece in pieces:
        if isinstance(piece, Outcome):
            return JSONResponse(reply.whole(text, piece))
        text += piece
    raise AssertionError("an answer without an outcome")


def to_asked(request: ChatRequest, engine: Engine) -> Asked:
    """A request with its media fetched.

    Raises:
        ProtocolError: the messages are not a conversation that the model can continue.
        ValueError: a medium may not or cannot be had.
    """
    from assets.inference.subtitles import parse_subtitles

    said, media = _conversation(request.messages)
    system = [_text(message) for message in request.messages if message.role in SYSTEM_ROLES]
    images = [part.image_url.url for part in media if isinstance(part, ImagePart)]
    videos = [
        part.video_url.url if isinstance(part, VideoUrlPart) else part.video
        for part in media
        if not isinstance(part, ImagePart)
    ]
    if len(videos) > 1 or (videos and images):
        raise ProtocolError(
            400,
            f"{len(videos)} videos and {len(images)} images: the model takes one video, or images",
            parameter="messages",
        )
    subtitles = request.subtitles
    if subtitles is not None and not videos:
        raise ProtocolError(400, "subtitles: there is no video", parameter="subtitles")
    suffix = ".vtt" if (subtitles or "").lstrip("\ufeff").startswith("WEBVTT") else ".srt"
    return Asked(
        checkpoint=request.model,
        said=tuple(said),
        video=video_name(videos[0], engine.library) if videos else "",
        images=tuple(image_bytes(url, engine.library) for url in images),
        subtitles=tuple(parse_subtitles(subtitles.encode(), suffix)) if subtitles else (),
        system="\n".join(system),
        longest=request.longest,
        options=request.options,
    )


def _conversation(messages: Sequence[Message]) -> tuple[list[Said], list[Any]]:
    """Turns of a person and the model, and the media of all of them. Several turns of one side in a
    row are one.
    """
    from assets.inference.prompts import Said

    turns: list[tuple[str, Said]] = []
    media: list[Any] = []
    for message in messages:
        if message.role in SYSTEM_ROLES:
            continue
        parts = [] if isinstance(message.content, str) else message.content
        own = [part for part in parts if not isinstance(part, TextPart)]
        if own and message.role == "assistant":
            raise ProtocolError(400, "an assistant's message holds media", parameter="messages")
        images = sum(isinstance(part, ImagePart) for part in own)
        if turns and turns[-1][0] == message.role:
            _, before = turns.pop()
            joined = Said(f"{before.text}\n{_text(message)}", before.images + images)
            turns.append((message.role, joined))
        else:
            turns.append((message.role, Said(_text(message), images)))
        media += own
    roles = [role for role, _ in turns]
    if not roles or roles[0] != "user" or roles[-1] != "user":
        raise ProtocolError(
            400, "a conversation begins and ends with a user's message", parameter="messages"
        )
    return [turn for _, turn in turns], media


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if isinstance(part, TextPart))


async def _events(
    reply: Reply,
    first: str | Outcome,
    pieces: AsyncIterator[str | Outcome],
    include_usage: bool,
) -> AsyncIterator[str]:
    """Server-sent events of an answer. What goes wrong in the middle is the last of them."""
    yield _event(reply.chunk({"role": "assistant", "content": ""}))
    try:
        async for piece in _chained(first, pieces):
            if isinstance(piece, str):
                yield _event(reply.chunk({"content": piece}))
                continue
            yield _event(reply.chunk({}, piece))
            if include_usage:
                yield _event(reply.usage_chunk(piece))
    except (ValueError, FileNotFoundError, FailedError) as error:
        told = _as_protocol(error)
        yield f"data: {error_body(told.message, told.kind)}\n\n"
    yield "data: [DONE]\n\n"


async def _chained(
    first: str | Outcome, rest: AsyncIterator[str | Outcome]
) -> AsyncIterator[str | Outcome]:
    yield first
    async for piece in rest:
        yield piece


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def _body(request: Request, most: int) -> bytes:
    """A request's body, as far as it may be.

    Raises:
        ProtocolError: it is larger.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise ProtocolError(413, f"the request is larger than {most:,} bytes")
    return bytes(body)


def _as_protocol(error: Exception) -> ProtocolError:
    if isinstance(error, BusyError):
        return ProtocolError(503, str(error), "server_error", code="busy")
    if isinstance(error, FailedError):
        return ProtocolError(500, str(error), "server_error")
    return ProtocolError(400, str(error))


def _error_response(error: ProtocolError) -> Response:
    body = error_body(error.message, error.kind, error.parameter, error.code)
    # Clients of the protocol ask again by themselves after this time.
    headers = {"retry-after": "2"} if error.status == 503 else None
    return Response(body, error.status, headers, media_type="application/json")
