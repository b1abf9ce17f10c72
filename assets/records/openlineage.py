"""Lineage records as OpenLineage events, where `OPENLINEAGE_URL` names who collects them.

One event for each product that is published: the product with its version, made from its inputs
with theirs. Telling others is never a reason for a step to fail or to wait: an event has a few
seconds, and a target that does not take it is named once in a process's log.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from assets.records.lineage import Lineage

if TYPE_CHECKING:
    from openlineage.client.event_v2 import RunEvent
    from openlineage.client.facet_v2 import DatasetFacet
    from openlineage.client.transport.http import HttpTransport

URL, KEY, NAMESPACE = "OPENLINEAGE_URL", "OPENLINEAGE_API_KEY", "OPENLINEAGE_NAMESPACE"
DEFAULT_NAMESPACE = "hour-llava"
PRODUCER = "urn:hour-llava"
MOST_S = 5.0  # for one event, from the connection to the answer

_warned = False


def tell(record: Lineage, warn: Callable[[str], None]) -> bool:
    """Send the event of a product that was just published; whether it was taken.

    Nothing happens without `OPENLINEAGE_URL`.

    Args:
        warn: told once in a process that events are not taken, and why.
    """
    global _warned
    url = os.environ.get(URL)
    if not url:
        return False
    problem = _send(record, url)
    if problem and not _warned:
        _warned = True
        host = urlsplit(url).hostname or "the address"
        warn(f"OpenLineage: {host} does not take events ({problem}); the step goes on without")
    return not problem


def _send(record: Lineage, url: str) -> str:
    """Send one event; what went wrong, in words that hold no address and no key."""
    problems = [f"no answer within {MOST_S:g} s"]

    def send() -> None:
        try:
            _transport(url).emit(event(record))
            problems[0] = ""
        except ImportError:
            problems[0] = (
                "openlineage-python is not installed: pip install 'hour-llava[openlineage]'"
            )
        except Exception as error:  # whatever a stranger's server and its library come up with
            problems[0] = type(error).__name__

    # A thread of its own bounds the time also where a server sends a byte now and then.
    thread = threading.Thread(target=send, name="openlineage", daemon=True)
    thread.start()
    thread.join(MOST_S)
    return problems[0]


def event(record: Lineage) -> RunEvent:
    """The event of one product; its run id is the same for the same product of the same run."""
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent
    from openlineage.client.event_v2 import RunState as State
    from openlineage.client.facet_v2 import (
        dataset_version_dataset,
        output_statistics_output_dataset,
    )

    namespace = os.environ.get(NAMESPACE) or DEFAULT_NAMESPACE

    def version(text: str) -> dict[str, DatasetFacet]:
        return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=text)}

    rows = record.counts.get("samples", record.counts.get("rows", record.counts.get("videos")))
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        rowCount=rows, size=record.bytes or None, fileCount=record.files or None
    )
    key = f"{record.run_id}/{record.product}/{record.version}"
    return RunEvent(
        eventTime=datetime.now(UTC).isoformat(),
        producer=PRODUCER,
        eventType=State.COMPLETE,
        run=Run(str(uuid.uuid5(uuid.NAMESPACE_URL, key))),
        job=Job(namespace, record.asset),
        inputs=[
            InputDataset(namespace, name, facets=version(text))
            for name, text in sorted(record.inputs.items())
        ],
        outputs=[
            OutputDataset(
                namespace,
                record.product,
                outputFacets={"outputStatistics": statistics},
                facets=version(record.version),
            )
        ],
    )


def _transport(url: str) -> HttpTransport:
    from openlineage.client.transport.http import HttpConfig, HttpTransport

    key = os.environ.get(KEY)
    config = {
        "url": url,
        "timeout": MOST_S,
        "retry": {"total": 0},
        "auth": {"type": "api_key", "apiKey": key} if key else {},
    }
    return HttpTransport(HttpConfig.from_dict(config))
