"""Whether those who are to write captions and questions answer, and what they may still cost.

Nothing is asked that costs anything: an endpoint is asked for the list of its models alone.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

from assets.deployment.settings import Settings
from assets.endpoints.budget import Ledger
from assets.endpoints.openai_backend import listed_models
from assets.endpoints.options import Embedder, Endpoint, LocalModel, Questions
from assets.endpoints.protocol import RefusedPromptError
from assets.fetching.errors import AccessError, OperatorError, TransferError
from assets.sources.findings import Finding, missing, note, ok
from training.formats.storage import Storage

NAMED, LONGEST_NAME = 5, 60  # models that a line names, and characters of one


def check_questions(settings: Settings) -> Iterator[Finding]:
    """Whether the models that the settings name for captions and questions can be asked."""
    chosen = settings.questions
    if not chosen.sources:
        yield ok("questions", "no videos are to be asked about (questions.sources)")
        return
    yield ok("questions", f"videos of {', '.join(chosen.sources)} are described and asked about")
    asked = {name: getattr(chosen, name) for name in ("describer", "writer", "embedder")}
    if asked["writer"] == asked["describer"]:
        del asked["writer"]
    for name, one in asked.items():
        if isinstance(one, LocalModel):
            yield _check_checkpoint(name, one)
        elif one is not None:
            yield from _check_endpoint(name, one)
    for source in chosen.sources:
        yield _check_budget(settings, source)


def _check_checkpoint(name: str, one: LocalModel) -> Finding:
    if (one.checkpoint / "config.json").is_file():
        return ok(name, f"the checkpoint in {one.checkpoint}")
    advice = f"put the checkpoint there, or correct questions.{name}.checkpoint"
    return missing(name, f"no config.json in {one.checkpoint}", advice)


def _check_endpoint(name: str, one: Endpoint | Embedder) -> Iterator[Finding]:
    """Whether there is a key, and whether the endpoint lists the model."""
    if importlib.util.find_spec("openai") is None:
        advice = "pip install 'hour-llava[questions]'"
        yield missing(name, "the client library for endpoints is not installed", advice)
        return
    if os.environ.get(one.key_from):
        yield ok(f"key of {name}", f"{one.key_from} is set")
    else:
        advice = f"set {one.key_from} where the endpoint wants a key; many local ones need none"
        yield note(f"key of {name}", f"{one.key_from} is not set", advice)
    try:
        models = listed_models(one)
    except (AccessError, OperatorError) as error:
        yield missing(name, _plain(str(error)), f"correct questions.{name}, or its key")
    except TransferError as error:
        advice = f"start the endpoint, or correct questions.{name}.url"
        yield missing(name, _plain(str(error)), advice)
    except RefusedPromptError as error:
        advice = "it may answer all the same; the first captions will tell"
        yield note(name, f"{one.url} answers, and lists no models ({error})", advice)
    else:
        yield _check_model(name, one, models)


def _check_model(name: str, one: Endpoint | Embedder, models: list[str]) -> Finding:
    if one.model in models:
        return ok(name, f"{one.url} answers, and lists {one.model}")
    shown = ", ".join(_plain(model)[:LONGEST_NAME] for model in models[:NAMED]) or "none"
    more = f" and {len(models) - NAMED:,} more" if len(models) > NAMED else ""
    found = f"{one.url} answers, and does not list {one.model}; it lists {shown}{more}"
    return missing(name, found, f"correct questions.{name}.model, or load the model there")


def _check_budget(settings: Settings, source: str) -> Finding:
    """What was spent on a source, and what of its budget is left."""
    what, chosen = f"budget of {source}", settings.questions
    try:
        spent = Ledger(Storage(settings.root), source, chosen.budget).spent
    except (OSError, ValueError, TypeError, ImportError) as error:
        advice = "mend the storage root, or the file that the error names"
        return missing(what, f"what was spent cannot be read: {_plain(str(error))}", advice)
    limits = {name: limit for name, limit in chosen.budget if limit is not None}
    if not limits:
        found = f"none; {spent.sentence} are spent"
        if not _costs(chosen):
            return ok(what, found)
        return note(what, found, "set questions.budget: nothing bounds what the source may cost")
    left = {name: max(limit - getattr(spent, name), 0) for name, limit in limits.items()}
    said = ", ".join(
        f"{_number(left[name])} of {_number(limit)} {name}" for name, limit in limits.items()
    )
    found = f"{said} left"
    if all(left.values()):
        return ok(what, found)
    return note(what, found, "raise questions.budget where more is to be asked")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _costs(chosen: Questions) -> bool:
    """Whether anybody is asked who may cost something."""
    return any(isinstance(one, Endpoint) for one in (chosen.describer, chosen.writer))


def _plain(text: str) -> str:
    """What a stranger's server says, in one line and without what steers a terminal."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
