"""Whether another run may bring something of a source and part."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from assets.annotations.catalogue import SCHEMA, read_catalogue, snapshot_name
from assets.deployment.settings import Settings
from assets.records.withdrawals import Withdrawals
from assets.sources.base import NOT_ASKED, OK, FetchContext, VideoRow
from assets.sources.outcomes import Evidence, outcome_is_stale
from training.formats.storage import Storage


class DueDownloads:
    """What may be fetched now. What decides outcomes is looked up once for each source: a folder is
    walked, and a hub asked for its revision, at most once.
    """

    def __init__(self, storage: Storage, settings: Settings) -> None:
        self.storage, self.settings = storage, settings
        self._withdrawn = Withdrawals.read(storage).videos
        self._evidence: dict[str, Evidence] = {}

    def is_due(self, source: str, part: str) -> bool:
        """Whether a video is missing that was never tried, that failed in passing, or whose outcome
        was decided by something that has changed since.
        """
        if self.settings.sources[source].undecided() is not None:
            return False
        if not self.storage.exists(snapshot_name(source, part)):
            return False
        table = read_catalogue(self.storage, source, part)
        missing = table.filter(pc.invert(pc.is_in(table["status"], pa.array([OK, NOT_ASKED]))))
        return any(
            outcome_is_stale(VideoRow(**raw), self._of(source, part))
            for raw in missing.select(SCHEMA.names).to_pylist()
            if raw["video"] not in self._withdrawn
        )

    def _of(self, source: str, part: str) -> Evidence:
        if source not in self._evidence:
            # A hub that does not answer must not hold up who asks: one try.
            download = self.settings.download.model_copy(update={"attempts": 1})
            context = FetchContext(
                self.storage,
                source,
                part,
                download,
                self.settings.hub_endpoint,
                set,
                set,
                _say_nothing,
            )
            fetcher = self.settings.sources[source].fetcher(context)
            self._evidence[source] = Evidence(
                fetcher, self.settings.download, self.settings.features.limits.max_pixels
            )
        return self._evidence[source]


def _say_nothing(line: str) -> None:
    """The next run says it again."""
