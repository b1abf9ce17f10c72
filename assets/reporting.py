"""From a step's report to what a person sees in the Dagster UI, and errors a person can act on."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg

from assets.lineage import Lineage, product
from assets.resources import Deployment

CODE_VERSION = "1"
OWNERS = ["team:hour-llava"]


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Errors that a retry cannot mend become a ``dagster.Failure`` that is not retried and says what to do."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error


def publish(
    context: dg.AssetExecutionContext,
    deployment: Deployment,
    *,
    version: str,
    inputs: Mapping[str, str],
    counts: Mapping[str, int],
    folder: str = "",
    config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dg.MaterializeResult:
    """Record the lineage of a finished product and describe it as a materialization.

    Args:
        version: content hash of the product; becomes Dagster's data version.
        inputs: input products and the versions that were read.
        counts: rows in, rows out, drops by reason.
        folder: where the product lies below the storage root, when it is one folder.
        config: the settings that shaped it.
        metadata: what else is worth a look.
    """
    partition = context.partition_key if context.has_partition_key else None
    name = product(context.asset_key.to_user_string(), partition)
    record = Lineage(
        product=name,
        version=version,
        folder=folder,
        inputs=dict(inputs),
        config=dict(config or {}),
        counts=dict(counts),
        code_version=CODE_VERSION,
        run_id=context.run_id,
    )
    record.write(deployment.storage())
    described: dict[str, Any] = dict(metadata or {})
    if folder:
        described["dagster/uri"] = deployment.storage().path(folder)
    described["counts"] = table([{"what": what, "count": count} for what, count in counts.items()])
    described["lineage"] = dg.MetadataValue.json(
        {"inputs": record.inputs, "config": record.config, "version": version, "code_version": CODE_VERSION}
    )
    return dg.MaterializeResult(metadata=described, data_version=dg.DataVersion(version))


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Rows as a table in the UI; a cell that a row lacks is empty, and no rows give an empty table."""
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["what"]
    schema = dg.TableSchema(columns=[dg.TableColumn(name, _column_type(rows, name)) for name in columns])
    records = [dg.TableRecord({name: _cell(row.get(name)) for name in columns}) for row in rows]
    return dg.MetadataValue.table(records=records, schema=schema)


def _cell(value: Any) -> str | int | float | bool:
    if value is None:
        return ""
    return value if isinstance(value, str | int | float | bool) else str(value)


def picture(png: bytes, title: str) -> dg.MarkdownMetadataValue:
    """A small PNG, shown inline. It lives in the event log, so keep it under about 100 kB."""
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})")


def _column_type(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    kinds = {type(row.get(name)) for row in rows}
    if kinds <= {int}:
        return "int"
    if kinds <= {int, float}:
        return "float"
    return "string"
