"""An endpoint that speaks the OpenAI-compatible protocol, asked through the client library.

The library's own retries are off: waits, their bounds and what counts as the endpoint's fault are
decided here, in one place.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from assets.endpoints.options import Embedder, Endpoint
from assets.endpoints.protocol import Patience, Prompt, RefusedPromptError, Reply
from assets.fetching.errors import AccessError, MissingToolError, OperatorError, TransferError
from assets.fetching.retry import retry_after

if TYPE_CHECKING:
    import openai

NO_KEY = "none"  # servers that need no key want one all the same, and take any
CONNECT_S = 20.0
BUSY = (408, 409, 425, 429)
LONGEST_SAID = 300  # characters of an endpoint's error


class OpenAiBackend:
    """Asks an endpoint. Many threads may.

    Args:
        log: told of waits, and of what the endpoint cannot do.

    Attributes:
        model: the name in the settings.
        concurrency: prompts at a time.
        prices: for a million tokens read, and written.
        patience: when it does not answer.
    """

    def __init__(self, settings: Endpoint, log: Callable[[str], None]) -> None:
        self.settings, self._log = settings, log
        self.model, self.concurrency = settings.model, settings.concurrency
        self.prices = settings.input_price, settings.output_price
        self.patience = Patience(settings.tries, settings.backoff_s, settings.longest_wait_s)
        self._structured = settings.structured
        self._client = make_client(settings.url, settings.key_from, settings.timeout_s)
        self._count_scale = 1.0

    def most_tokens(self, prompt: Prompt) -> tuple[int, int]:
        """Tokens that a prompt may cost at most: read, and written."""
        pictures = len(prompt.pictures.jpegs) if prompt.pictures else 0
        # No tokenizer makes more tokens than there are bytes, few more than one of two.
        text = (len(prompt.system.encode()) + len(prompt.text.encode())) // 2 + 64
        read = text + pictures * self.settings.picture_tokens
        return int(read * self._count_scale), self.settings.longest_answer

    def answer(self, prompt: Prompt) -> Reply:
        """The answer to a prompt, asked for once.

        Raises:
            RefusedPromptError: to this prompt, there is none.
            OperatorError: the key, the model's name or the address is wrong.
            TransferError: the endpoint is busy, failed, or did not answer in time.
        """
        import openai

        structured = self._structured
        extra: dict[str, Any] = {}
        if structured:
            form = {"name": prompt.shape, "schema": dict(prompt.schema), "strict": True}
            extra["response_format"] = {"type": "json_schema", "json_schema": form}
        try:
            said = self._client.chat.completions.create(
                model=self.settings.model,
                messages=_messages(prompt),
                max_tokens=self.settings.longest_answer,
                temperature=0.0 if prompt.turn == 0 else 0.7,
                seed=prompt.turn,
                **extra,
            )
        except openai.BadRequestError as error:
            if structured and "response_format" in str(error):
                # The endpoint has no structured output: from now on answers are read from prose.
                self._log(f"{self.model} offers no structured output; answers are read without it")
                self._structured = False
                return self.answer(prompt)
            raise self._fault(error) from error
        except openai.OpenAIError as error:
            raise self._fault(error) from error
        return self._reply(prompt, said)

    def _reply(self, prompt: Prompt, said: openai.types.chat.ChatCompletion) -> Reply:
        most_in, most_out = self.most_tokens(prompt)
        if not getattr(said, "choices", None):
            raise TransferError("transient", "no_answer", "the endpoint's answer has no choices")
        choice, usage = said.choices[0], said.usage
        tokens_in = usage.prompt_tokens if usage else most_in
        tokens_out = usage.completion_tokens if usage else most_out
        # It counts more than was thought: later prompts are thought of so, too.
        self._count_scale *= max(1.0, tokens_in / max(most_in, 1))
        refused = choice.finish_reason == "content_filter" or choice.message.refusal
        ended = "refused" if refused else "length" if choice.finish_reason == "length" else "stop"
        return Reply(choice.message.content or "", ended, tokens_in, tokens_out)

    def _fault(self, error: openai.OpenAIError) -> Exception:
        """Whose fault an error is: the endpoint's (wait), the operator's, or this prompt's."""
        return fault_of(error, self.settings.url, self.settings.model, self.settings.key_from)


class OpenAiEmbedder:
    """Vectors of texts from an endpoint."""

    def __init__(self, settings: Embedder) -> None:
        self.settings, self.model = settings, settings.model
        self._client = make_client(settings.url, settings.key_from, settings.timeout_s)

    def vectors(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text.

        Raises:
            OperatorError, TransferError, RefusedPromptError: as `OpenAiBackend.answer`.
        """
        import openai

        one = self.settings
        try:
            said = self._client.embeddings.create(
                model=one.model, input=texts, encoding_format="float"
            )
        except openai.OpenAIError as error:
            raise fault_of(error, one.url, one.model, one.key_from) from error
        found = sorted(said.data, key=lambda item: item.index)
        if len(found) != len(texts):
            raise TransferError(
                "transient", "no_answer", f"{len(found)} vectors came for {len(texts)} texts"
            )
        return [item.embedding for item in found]


def make_client(url: str, key_from: str, timeout_s: float) -> openai.OpenAI:
    """The library's client. Redirects are not followed: pictures of private videos would go to
    somebody whom the settings do not name.

    Raises:
        MissingToolError: the library is not installed.
    """
    try:
        import openai
    except ImportError as error:
        raise MissingToolError(
            "asking an endpoint needs the client library; install hour-llava[questions]"
        ) from error
    limit = openai.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s))
    return openai.OpenAI(
        api_key=os.environ.get(key_from) or NO_KEY,
        base_url=url,
        timeout=limit,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(follow_redirects=False, timeout=limit),
    )


def fault_of(error: openai.OpenAIError, url: str, model: str, key_from: str) -> Exception:
    """What an error of the library means."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return TransferError("transient", "no_answer_in_time", f"{url}: no answer in time")
    if isinstance(error, openai.APIConnectionError):
        return TransferError("transient", "connection", f"{url}: {error.__cause__ or error}")
    if not isinstance(error, openai.APIStatusError):
        return TransferError("transient", "not_the_protocol", f"{url}: {type(error).__name__}")
    status, said = error.status_code, _said(error, os.environ.get(key_from))
    if status in (401, 403):
        return AccessError(
            f"{url} refuses the key (HTTP {status}); put a right one into the environment variable "
            f"{key_from} (key_from)"
        )
    if status == 404:
        return OperatorError(
            f"{url} has no model {model!r}, or is no address of the protocol (HTTP 404: {said})"
        )
    if 300 <= status < 400:
        return OperatorError(
            f"{url} sends us elsewhere (HTTP {status}), which is not followed; name the last "
            "address in the settings"
        )
    if status in BUSY or status >= 500:
        wait = retry_after(error.response.headers.get("Retry-After"))
        reason = "rate_limited" if status == 429 else f"http_{status}"
        return TransferError("transient", reason, f"{url}: HTTP {status}: {said}", wait)
    return RefusedPromptError(f"refused_with_{status}")


def _said(error: openai.APIStatusError, key: str | None) -> str:
    """What an endpoint says of an error, in a line, without the key: some repeat it."""
    said = " ".join(str(error.message).split())
    return (said.replace(key, "***") if key else said)[:LONGEST_SAID]


def _messages(prompt: Prompt) -> Any:
    """The prompt as the protocol has it, pictures as data URLs."""
    content: list[dict[str, Any]] = [
        {
            "type": "image_url",
            "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"},
        }
        for jpeg in (prompt.pictures.jpegs if prompt.pictures else ())
    ]
    content.append({"type": "text", "text": prompt.text})
    return [
        {"role": "system", "content": prompt.system},
        {"role": "user", "content": content if prompt.pictures else prompt.text},
    ]
