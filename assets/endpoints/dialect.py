"""In which parameters a model of an endpoint is asked: all that help, until it refuses one by name.

Hosted models differ in what they take: some want `max_completion_tokens`, some no temperature, some
know no JSON schema. Each refusal is learned once, and the next best way is taken from then on. What
is learned only ever shrinks, so this ends.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from assets.fetching.errors import OperatorError

# What a request says -> the ways to say it, the best one first. OMITTED is not to say it.
OMITTED = ""
WAYS: Mapping[str, tuple[str, ...]] = {
    "limit": ("max_tokens", "max_completion_tokens"),
    "temperature": ("temperature", OMITTED),
    "seed": ("seed", OMITTED),
    "form": ("json_schema", "json_object", OMITTED),
    "detail": ("detail", OMITTED),
}
# An endpoint that refuses a way may name it otherwise.
_ALSO_NAMED = {"json_schema": ("response_format",), "json_object": ("response_format",)}
_REFUSING = re.compile(
    r"unsupported|unknown|unrecogni[sz]ed|unexpected|unavailable|deprecated|forbidden|extra inputs"
    r"|cannot find|invalid (?:parameter|schema)|\bno such\b"
    r"|(?:\bnot|n't|\bnever) (?:be )?(?:support|permit|allow|implement|recogni|known|accept|valid)",
    re.IGNORECASE,
)
_REFUSING_CODES = ("unsupported_parameter", "unsupported_value", "unknown_parameter")
_ECHO = "input"  # where some servers repeat what they were sent, which is no word of theirs
_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an endpoint says of a request that it does not take.

    Attributes:
        parameter: that it names as the cause in a field of its own; empty where it names none.
        code: of the error; empty where there is none.
        texts: all that it says in words.
    """

    parameter: str
    code: str
    texts: str

    @classmethod
    def of(cls, body: object, secret: str | None = None) -> Refusal:
        """Read an error's body, whatever its shape: OpenAI's, FastAPI's, a list, plain text.

        Args:
            secret: is cut out of what it says: some repeat the key.
        """
        found = body if isinstance(body, dict) else {}
        texts = " ".join(" ".join(_texts(body)).split())
        texts = texts.replace(secret, "***") if secret else texts
        return cls(str(found.get("param") or ""), str(found.get("code") or ""), texts)


class Dialect:
    """What one model of one endpoint takes. Many threads may share it.

    Args:
        name: of the model, for the log.
        log: told of each refusal, once.
    """

    def __init__(self, name: str, log: Callable[[str], None]) -> None:
        self._name, self._log = name, log
        self._lock = threading.Lock()
        self.ways: Mapping[str, str] = {what: ways[0] for what, ways in WAYS.items()}

    def learn(self, sent: Mapping[str, str], refusal: Refusal) -> bool:
        """Whether a refused request is to be sent once more, in another way.

        Args:
            sent: the `ways` of the request, without what it did not say.

        Raises:
            OperatorError: nothing is left in which an answer could be bounded.
        """
        what = _named(sent, refusal)
        if not what:
            return False
        with self._lock:
            if self.ways[what] != sent[what]:
                return True  # another thread has learned it meanwhile
            left = WAYS[what][WAYS[what].index(sent[what]) + 1 :]
            if not left:
                raise OperatorError(
                    f"{self._name} takes none of {', '.join(WAYS[what])}: its answers cannot be "
                    f"bounded, so no budget would hold. It says: {refusal.texts[:300]}"
                )
            self.ways = {**self.ways, what: left[0]}
        self._log(
            f"{self._name} does not take {sent[what]}; from now on it is asked "
            f"{f'with {left[0]}' if left[0] else 'without'}. It says: {refusal.texts[:300]}"
        )
        return True


def _named(sent: Mapping[str, str], refusal: Refusal) -> str:
    """What of a request is refused; empty where it is refused for another reason."""
    refusing = refusal.code in _REFUSING_CODES or _REFUSING.search(refusal.texts)
    names = {name: what for what, way in sent.items() for name in (way, *_ALSO_NAMED.get(way, ()))}
    for part in reversed(re.split(r"[^\w]+", refusal.parameter)):
        if part in names and (refusing or names[part] == "form"):
            return names[part]
    places = {
        found.start(): what
        for name, what in names.items()
        if (found := re.search(rf"(?<!\w){re.escape(name)}(?!\w)", refusal.texts))
        if refusing or what == "form"  # no prompt is too long for a form
    }
    return places[min(places)] if places else ""


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    """All strings of a JSON value that are not keys."""
    if depth > _DEEPEST:
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            if key != _ECHO:
                yield from _texts(one, depth + 1)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one, depth + 1)
