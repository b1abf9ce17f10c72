"""Who is asked, what it may cost, and for which videos: the section `questions` of the deployment's
settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from model.configuration import Section

# Pools of steps, those of scarcer things first.
GPU, CPU, ENDPOINT = POOLS = "gpu", "cpu", "endpoint"
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"


class Address(Section):
    """Where a model answers, and how long it is waited for."""

    url: str = Field(description="base address of the protocol, such as http://localhost:8000/v1")
    model: str = Field(min_length=1, description="as the endpoint calls it")
    key_from: str = Field(
        default="HOURLLAVA_ENDPOINT_KEY",
        pattern=VARIABLE,
        description="environment variable with the key; many local servers need none",
    )
    timeout_s: float = Field(default=180.0, gt=0, description="seconds for one answer")
    tries: int = Field(
        default=6, ge=1, description="of one question when the endpoint is busy, fails or hangs"
    )
    backoff_s: float = Field(
        default=2.0, ge=0, description="first wait after such a failure; doubles, jittered"
    )
    longest_wait_s: float = Field(
        default=300.0,
        ge=0,
        description="most seconds between two tries; an endpoint that asks for more (Retry-After) "
        "stops the run, which goes on from there when it is started again",
    )
    input_price: float = Field(default=0.0, ge=0, description="money for a million tokens read")

    @field_validator("url")
    @classmethod
    def _web_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{value!r} is no address; it looks like http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "the address holds a password or a query; secrets stand in the environment "
                "(key_from), never in the settings"
            )
        return value


class Endpoint(Address):
    """A model behind the OpenAI-compatible protocol: vLLM, SGLang, Ollama, llama.cpp, or a hosted
    service.
    """

    kind: Literal["endpoint"]
    structured: bool = Field(
        default=True,
        description="ask for answers of a given JSON schema (response_format); where the endpoint "
        "refuses it, the form is told in words, with a line in the log",
    )
    concurrency: int = Field(default=4, ge=1, le=256, description="questions at a time")
    longest_answer: int = Field(default=2048, ge=16, description="tokens")
    detail: Literal["auto", "low", "high"] | None = Field(
        default=None,
        description="how closely a hosted model is to look at pictures; another one is another "
        "question",
    )
    output_price: float = Field(default=0.0, ge=0, description="money for a million tokens written")
    picture_tokens: int = Field(
        default=1200,
        ge=1,
        description="tokens that one picture may count as, for the budget before the endpoint has "
        "said what it counted",
    )

    @property
    def pool(self) -> str:
        """The pool of steps that ask it: of their own, so that days of asking hold up neither
        downloads nor training.
        """
        return ENDPOINT


class LocalModel(Section):
    """A checkpoint on this machine: one of this project's, or any image-text-to-text model of
    transformers.
    """

    kind: Literal["local"]
    checkpoint: Path = Field(description="folder of the checkpoint, in safetensors")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where it runs; auto: on a GPU where there is one"
    )
    longest_answer: int = Field(default=1024, ge=16, description="tokens")

    @property
    def pool(self) -> str:
        """The pool of steps that run it."""
        return CPU if self.device == "cpu" else GPU


Answerer = Annotated[Endpoint | LocalModel, Field(discriminator="kind")]


class Embedder(Address):
    """An embedding model behind the same protocol, for duplicates by meaning."""


class Budget(Section):
    """What captions and questions of one source may cost, over all runs. A run stops before one of
    these is passed. Empty: no limit.
    """

    requests: int | None = Field(default=None, ge=0, description="questions to an endpoint")
    tokens: int | None = Field(default=None, ge=0, description="read and written together")
    money: float | None = Field(
        default=None, ge=0, description="in the currency of the answerers' prices"
    )


class Checking(Section):
    """What a row has to pass."""

    blind_times: int = Field(
        default=3,
        ge=0,
        description="how often a row is asked without its video; right each time: set aside",
    )
    similar: float = Field(
        default=0.9, gt=0, le=1, description="likeness from which two rows are duplicates"
    )
    longest_right: float = Field(
        default=0.4,
        gt=0,
        le=1,
        description="most of the rows whose right option may be the longest one; more are set "
        "aside, the most conspicuous first",
    )


class Questions(Section):
    """Questions for own videos that have none. Nothing is asked before `sources` names a source."""

    sources: list[str] = Field(
        default=[], description="drop sources whose videos are described and asked about"
    )
    describer: Answerer | None = Field(default=None, description="sees pictures, writes captions")
    writer: Answerer | None = Field(
        default=None, description="reads and writes text alone; default: the describer"
    )
    embedder: Embedder | None = Field(
        default=None, description="for duplicates by meaning; default: likeness of the words"
    )
    prompts: Path | None = Field(
        default=None, description="folder with changed copies of files of assets/captions/prompts"
    )
    clip_s: float = Field(default=30.0, ge=1, description="about how long a clip is")
    frames: int = Field(default=8, ge=1, le=128, description="pictures of a clip")
    side: int = Field(default=448, ge=32, le=2048, description="longest side of a picture")
    window: int = Field(
        default=60, ge=2, description="clips whose captions one text prompt holds at most"
    )
    per_task: int = Field(
        default=1, ge=1, description="rows of each task and form, for each window of a video"
    )
    attempts: int = Field(
        default=3, ge=1, description="of an answer that is malformed, cut off or refused"
    )
    most_aside: float = Field(
        default=0.1, ge=0, le=1, description="share of clips without a caption that fails a source"
    )
    budget: Budget = Budget()
    checks: Checking = Checking()
    sheet_rows: int = Field(default=100, ge=1, description="of the sample for a person")
    judged: Path | None = Field(
        default=None, description="folder with sheets that a person filled in: SOURCE.csv"
    )

    @property
    def pools(self) -> tuple[str, str]:
        """The pools in which captions, and in which questions are made: those of the scarcest thing
        that is asked.
        """
        asked = [one.pool for one in (self.describer, self.writer) if one] or [ENDPOINT]
        return min(asked, key=POOLS.index), asked[-1]

    @model_validator(mode="after")
    def _complete(self) -> Questions:
        if self.sources and self.describer is None:
            raise ValueError("questions.sources needs a questions.describer")
        asked = (self.describer, self.writer, self.embedder)
        prices = [one.input_price for one in asked if isinstance(one, Address)]
        prices += [one.output_price for one in asked if isinstance(one, Endpoint)]
        if self.budget.money is not None and not any(prices):
            raise ValueError(
                "questions.budget.money needs prices: input_price and output_price of the describer"
                " or the writer"
            )
        return self
