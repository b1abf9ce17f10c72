"""What is asked of a model, and what comes back: the small protocol behind which an endpoint and a
local checkpoint are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from training.formats.hashing import hash_value


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures of a prompt.

    Attributes:
        jpegs: the files, in order.
        identity: what they are made from and how, so that equal pictures have an equal one.
    """

    jpegs: tuple[bytes, ...]
    identity: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question to a model.

    Attributes:
        system: what the model is to be.
        text: what is asked.
        shape: name of the answer's form, and the JSON schema that it must have.
        schema: that schema.
        pictures: shown before the text; None for text alone.
        turn: tells askings of the same words apart.
    """

    system: str
    text: str
    shape: str
    schema: Mapping[str, Any] = field(hash=False)
    pictures: Pictures | None = None
    turn: int = 0

    def key(self, asked: str) -> str:
        """Identity of the prompt and of who is asked: the same prompt is never asked twice."""
        seen = self.pictures.identity if self.pictures else ""
        parts = [self.system, self.text, self.shape, dict(self.schema), seen, self.turn]
        return hash_value([asked, parts])

    @property
    def form_in_words(self) -> str:
        """The form, for a model that no decoder binds to it."""
        schema = json.dumps(self.schema, sort_keys=True)
        return f"Answer with one JSON object of this schema and nothing else: {schema}"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said.

    Attributes:
        text: the answer as it came.
        ended: `stop`, `length` (cut off) or `refused`.
        tokens_in: that were read.
        tokens_out: that were written.
    """

    text: str
    ended: str
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a backend is waited for.

    Attributes:
        tries: of one prompt.
        backoff_s: the first wait between two tries; it doubles.
        longest_wait_s: the longest wait; where the backend asks for more, the run ends.
    """

    tries: int = 1
    backoff_s: float = 0.0
    longest_wait_s: float = 0.0


class RefusedPromptError(Exception):
    """This one prompt is not answered, however often it is asked: it is too long, or not wanted.
    The text is the reason.
    """


class AskOtherwiseError(Exception):
    """The prompt was not taken in the way in which it was asked, and there is another: asked again,
    it goes that way. No way is taken twice, so this ends.
    """


class Backend(Protocol):
    """Somebody who answers.

    Attributes:
        model: its name, as lineage holds it.
        identity: whose answers are kept together: the model, and what else decides what it sees.
        concurrency: how many prompts it takes at a time.
        prices: money for a million tokens read, and written.
        patience: when it does not answer.
    """

    model: str
    identity: str
    concurrency: int
    prices: tuple[float, float]
    patience: Patience

    def most_tokens(self, prompt: Prompt) -> tuple[int, int]:
        """Tokens that a prompt may cost at most: read, and written."""

    def answer(self, prompt: Prompt) -> Reply:
        """The answer to a prompt, asked for once.

        Raises:
            AskOtherwiseError: asked again, it is asked in another way.
            RefusedPromptError: to this prompt, there is none.
            OperatorError: a person must act.
            TransferError: there is none now; another try may help.
        """
