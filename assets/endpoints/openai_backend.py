"""An endpoint that speaks the OpenAI-compatible protocol, asked through the client library.

The library's own retries are off: waits, their bounds and what counts as the endpoint's fault are
decided here, in one place.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from assets.endpoints.dialect import Dialect, Refusal
from assets.endpoints.options import Address, Embedder, Endpoint
from assets.endpoints.protocol import (
    AskOtherwiseError,
    Patience,
    Prompt,
    RefusedPromptError,
    Reply,
)
from assets.fetching.errors import AccessError, MissingToolError, OperatorError, TransferError
from assets.fetching.retry import retry_after

if TYPE_CHECKING:
    import openai

NO_KEY = "none"  # servers that need no key want one all the same, and take any
CONNECT_S = 20.0
LISTING_S = 20.0
BUSY = (408, 409, 425, 429)
REFUSED = (400, 422)  # what an endpoint says of a parameter that it does not take
NO_CREDIT = "insufficient_quota"  # comes as a 429, and no wait helps
LONGEST_SAID = 300  # characters of an endpoint's error


class OpenAiBackend:
    """Asks an endpoint. Many threads may.

    Args:
        dialect: what the endpoint's model takes; shared by all who ask it.
        log: told of what is refused.

    Attributes:
        model: the name in the settings.
        identity: with what else decides what it sees.
        concurrency: prompts at a time.
        prices: for a million tokens read, and written.
        patience: when it does not answer.
    """

    def __init__(self, settings: Endpoint, dialect: Dialect, log: Callable[[str], None]) -> None:
        self.settings, self._dialect, self._log = settings, dialect, log
        self.model, self.concurrency = settings.model, settings.concurrency
        self.identity = f"{self.model}, detail {settings.detail}" if settings.detail else self.model
        self.prices = settings.input_price, settings.output_price
        self.patience = patience_of(settings)
        self._client = make_client(settings.url, settings.key_from, settings.timeout_s)
        self._count_scale = 1.0
        self._told: set[str] = set()

    def most_tokens(self, prompt: Prompt) -> tuple[int, int]:
        """Tokens that a prompt may cost at most: read, and written."""
        pictures = len(prompt.pictures.jpegs) if prompt.pictures else 0
        # No tokenizer makes more tokens than there are bytes, few more than one of two.
        texts = prompt.system, prompt.text, prompt.form_in_words
        read = sum(len(one.encode()) for one in texts) // 2 + 64
        read += pictures * self.settings.picture_tokens
        return int(read * self._count_scale), self.settings.longest_answer

    def answer(self, prompt: Prompt) -> Reply:
        """The answer to a prompt, asked for once.

        Raises:
            AskOtherwiseError: the endpoint refuses a parameter, and there is another way.
            RefusedPromptError: to this prompt, there is none.
            OperatorError: the key, the model's name or the address is wrong.
            TransferError: the endpoint is busy, failed, or did not answer in time.
        """
        import openai

        ways = self._ways(prompt)
        try:
            said = self._client.chat.completions.create(
                model=self.settings.model,
                messages=_messages(prompt, ways, self.settings.detail),
                **_parameters(prompt, ways, self.settings.longest_answer),
            )
        except openai.APIStatusError as error:
            if error.status_code in REFUSED:
                refusal = Refusal.of(error.body, os.environ.get(self.settings.key_from))
                if self._dialect.learn(ways, refusal):
                    raise AskOtherwiseError from error
            raise self._fault(error) from error
        except openai.OpenAIError as error:
            raise self._fault(error) from error
        return self._reply(prompt, said)

    def _ways(self, prompt: Prompt) -> dict[str, str]:
        """What a request says, and in which way."""
        ways = {what: way for what, way in self._dialect.ways.items() if way}
        if not self.settings.structured:
            ways.pop("form", None)
        if not (self.settings.detail and prompt.pictures):
            ways.pop("detail", None)
        return ways

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
        """Whose fault an error is: the endpoint's (wait), the operator's, or this prompt's. What
        is said of the first prompt that is refused is told: it may hold for all of them.
        """
        one = self.settings
        fault = fault_of(error, one.url, one.model, one.key_from)
        if isinstance(fault, RefusedPromptError) and str(fault) not in self._told:
            self._told.add(str(fault))
            said = said_of(error, one.key_from)
            self._log(f"{self.model} refuses a prompt, others may follow ({fault}): {said}")
        return fault


class OpenAiEmbedder:
    """Vectors of texts from an endpoint.

    Attributes:
        model: the name in the settings.
        prices, patience: see `Backend`.
    """

    def __init__(self, settings: Embedder) -> None:
        self.settings, self.model = settings, settings.model
        self.prices, self.patience = (settings.input_price, 0.0), patience_of(settings)
        self._client = make_client(settings.url, settings.key_from, settings.timeout_s)

    def vectors(self, texts: list[str]) -> tuple[list[list[float]], int | None]:
        """A vector for each text; and the tokens that were read, where the endpoint says so.

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
        usage = said.usage.prompt_tokens if said.usage else None
        return [item.embedding for item in found], usage


def patience_of(settings: Address) -> Patience:
    """How long an endpoint is waited for."""
    return Patience(settings.tries, settings.backoff_s, settings.longest_wait_s)


def listed_models(one: Endpoint | Embedder) -> list[str]:
    """The models that an endpoint lists, which costs nothing.

    Raises:
        OperatorError, TransferError, RefusedPromptError: as `OpenAiBackend.answer`.
    """
    import openai

    limit = min(one.timeout_s, LISTING_S)
    try:
        client = make_client(one.url, one.key_from, limit)
        return [str(model.id) for model in client.models.list().data]
    except openai.OpenAIError as error:
        raise fault_of(error, one.url, one.model, one.key_from) from error


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
    status, said = error.status_code, said_of(error, key_from)
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
    if status == 402 or error.code == NO_CREDIT:
        return AccessError(f"{url}: nothing is left to pay with (HTTP {status}: {said})")
    if status in BUSY or status >= 500:
        wait = retry_after(error.response.headers.get("Retry-After"))
        reason = "rate_limited" if status == 429 else f"http_{status}"
        return TransferError("transient", reason, f"{url}: HTTP {status}: {said}", wait)
    return RefusedPromptError(f"refused_with_{status}")


def said_of(error: openai.OpenAIError, key_from: str) -> str:
    """What an endpoint says of an error, in a line, without the key: some repeat it."""
    said, key = " ".join(str(error).split()), os.environ.get(key_from)
    return (said.replace(key, "***") if key else said)[:LONGEST_SAID]


def _parameters(prompt: Prompt, ways: Mapping[str, str], longest: int) -> dict[str, Any]:
    """Of a request, all but the messages."""
    values: dict[str, Any] = {
        "limit": longest,
        "temperature": 0.0 if prompt.turn == 0 else 0.7,
        "seed": prompt.turn,
    }
    found = {ways[what]: value for what, value in values.items() if what in ways}
    form = ways.get("form")
    if form == "json_schema":
        schema = {"name": prompt.shape, "schema": dict(prompt.schema), "strict": True}
        found["response_format"] = {"type": form, "json_schema": schema}
    elif form:
        found["response_format"] = {"type": form}
    return found


def _messages(prompt: Prompt, ways: Mapping[str, str], detail: str | None) -> Any:
    """The prompt as the protocol has it, pictures as data URLs. Where no schema goes with it, the
    form stands in the text.
    """
    text = prompt.text
    if ways.get("form") != "json_schema":
        text = f"{text}\n\n{prompt.form_in_words}"
    how = {"detail": detail} if "detail" in ways else {}
    content: list[dict[str, Any]] = [
        {
            "type": "image_url",
            "image_url": {
                "url": f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}",
                **how,
            },
        }
        for jpeg in (prompt.pictures.jpegs if prompt.pictures else ())
    ]
    content.append({"type": "text", "text": text})
    return [
        {"role": "system", "content": prompt.system},
        {"role": "user", "content": content if prompt.pictures else text},
    ]
