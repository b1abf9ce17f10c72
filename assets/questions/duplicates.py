"""Rows of one video that ask the same: by vectors of an embedding endpoint, or by their words.

Likeness of words finds what is copied and hardly changed. It does not know that two sentences of
other words mean the same; only vectors, within their limits, do. The asset says which was used.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial

from assets.endpoints.asker import patiently
from assets.endpoints.budget import Cost, Ledger
from assets.endpoints.openai_backend import OpenAiEmbedder
from assets.questions.rows import Row
from assets.questions.text_checks import words
from training.formats import layout
from training.formats.hashing import hash_value
from training.formats.storage import Storage

DUPLICATE = "duplicate"
AT_ONCE = 256  # texts of one request; hosted services take up to some thousands
Likeness = Callable[[int, int], float]


class WordLikeness:
    """Cosine of two texts as counts of their words."""

    name = "words"

    def of(self, texts: Sequence[str]) -> Likeness:
        """How alike two of the texts are, from 0 to 1."""
        return _cosine([Counter(words(text)) for text in texts])


class VectorLikeness:
    """Cosine of the vectors that an endpoint gives, which are kept."""

    def __init__(
        self,
        storage: Storage,
        embedder: OpenAiEmbedder,
        ledger: Ledger,
        log: Callable[[str], None],
    ) -> None:
        self._storage, self._embedder, self._ledger = storage, embedder, ledger
        self._log = log
        self.name = f"vectors of {embedder.model}"

    def of(self, texts: Sequence[str]) -> Likeness:
        """How alike two of the texts are, from -1 to 1."""
        batches = [list(texts[n : n + AT_ONCE]) for n in range(0, len(texts), AT_ONCE)]
        vectors = [vector for batch in batches for vector in self._vectors(batch)]
        return _cosine([Counter(dict(enumerate(vector))) for vector in vectors])

    def _vectors(self, texts: list[str]) -> list[list[float]]:
        """Vectors that are kept, or asked for once."""
        one = self._embedder
        rel = layout.model_answer(hash_value([one.model, "vectors", texts]))
        if not self._storage.exists(rel):

            def told(_: str, line: str) -> None:
                self._log(f"{one.model}: {line}")

            found = patiently(one.patience, "vectors", told, partial(self._ask, texts))
            self._storage.write_json(rel, {"vectors": found})
        return list(self._storage.read_json(rel)["vectors"])

    def _ask(self, texts: list[str]) -> list[list[float]]:
        # No tokenizer makes more tokens than there are bytes.
        most = Cost.of((sum(len(text.encode()) for text in texts), 0), self._embedder.prices)
        self._ledger.reserve(most)
        real = most
        try:
            vectors, read = self._embedder.vectors(texts)
            real = most if read is None else Cost.of((read, 0), self._embedder.prices)
        finally:
            self._ledger.settle(most, real)
        return vectors


def mark_duplicates(
    rows: Sequence[Row], measure: WordLikeness | VectorLikeness, similar: float
) -> None:
    """Give rows that ask the same as an earlier one of their video and form that reason."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if not row.reasons:
            groups[row.video, row.form].append(row)
    for group in groups.values():
        like = measure.of([f"{row.question} {row.answer}" for row in group])
        kept: list[int] = []
        for number, row in enumerate(group):
            if any(_same(group[k], row, like(k, number), similar) for k in kept):
                row.reasons.append(DUPLICATE)
            else:
                kept.append(number)


def _same(one: Row, other: Row, likeness: float, similar: float) -> bool:
    """Rows whose numbers differ ask about other moments or amounts, however alike their words."""
    return likeness >= similar and _numbers(one) == _numbers(other)


def _numbers(row: Row) -> list[str]:
    return sorted(word for word in words(row.question) if word.isdigit())


def _cosine(vectors: Sequence[Counter[object]]) -> Likeness:
    lengths = [math.sqrt(sum(v * v for v in vector.values())) for vector in vectors]

    def like(a: int, b: int) -> float:
        dot = sum(value * vectors[b][key] for key, value in vectors[a].items())
        return dot / max(lengths[a] * lengths[b], 1e-12)

    return like
