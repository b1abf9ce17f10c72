"""The models that the settings name, ready to be asked."""

from __future__ import annotations

from collections.abc import Callable

from assets.deployment.settings import Settings
from assets.endpoints.asker import Asker
from assets.endpoints.budget import Ledger
from assets.endpoints.dialect import Dialect
from assets.endpoints.openai_backend import OpenAiBackend, OpenAiEmbedder
from assets.endpoints.options import Embedder, Endpoint, LocalModel
from assets.endpoints.protocol import Backend
from assets.fetching.errors import OperatorError
from training.formats.storage import Storage


def askers(
    storage: Storage, settings: Settings, source: str, log: Callable[[str], None]
) -> tuple[Asker, Asker]:
    """Who describes pictures, and who writes texts: one and the same where the settings name one.

    Raises:
        OperatorError: the source is not one of `questions.sources`.
    """
    chosen = settings.questions
    if source not in chosen.sources or chosen.describer is None:
        raise OperatorError(f"{source} is not one of questions.sources in the settings")
    ledger = Ledger(storage, source, chosen.budget)

    dialects: dict[tuple[str, str], Dialect] = {}

    def asker(who: Endpoint | LocalModel) -> Asker:
        return Asker(storage, make_backend(who, dialects, log), ledger, chosen.attempts, log)

    describer = asker(chosen.describer)
    if chosen.writer is None or chosen.writer == chosen.describer:
        return describer, describer
    return describer, asker(chosen.writer)


def make_backend(
    settings: Endpoint | LocalModel,
    dialects: dict[tuple[str, str], Dialect],
    log: Callable[[str], None],
) -> Backend:
    """The model behind one section of the settings.

    Args:
        dialects: what is known of models already, by address and name; a new one is added.
    """
    if isinstance(settings, Endpoint):
        name = settings.url, settings.model
        return OpenAiBackend(settings, dialects.setdefault(name, Dialect(settings.model, log)), log)
    from assets.captions.local import LocalBackend

    return LocalBackend(settings)


def make_embedder(settings: Embedder) -> OpenAiEmbedder:
    """The embedding model behind its section of the settings."""
    return OpenAiEmbedder(settings)
