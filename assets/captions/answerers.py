"""The models that the settings name, ready to be asked."""

from __future__ import annotations

from collections.abc import Callable

from assets.deployment.settings import Settings
from assets.endpoints.asker import Asker
from assets.endpoints.budget import Ledger
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

    def asker(backend: Backend) -> Asker:
        return Asker(storage, backend, ledger, chosen.attempts, log)

    describer = asker(make_backend(chosen.describer, log))
    if chosen.writer is None or chosen.writer == chosen.describer:
        return describer, describer
    return describer, asker(make_backend(chosen.writer, log))


def make_backend(settings: Endpoint | LocalModel, log: Callable[[str], None]) -> Backend:
    """The model behind one section of the settings."""
    if isinstance(settings, Endpoint):
        return OpenAiBackend(settings, log)
    from assets.captions.local import LocalBackend

    return LocalBackend(settings)


def make_embedder(settings: Embedder) -> OpenAiEmbedder:
    """The embedding model behind its section of the settings."""
    return OpenAiEmbedder(settings)
