"""From a step's report to what a person sees in the Dagster UI, and errors a person can act on."""

from __future__ import annotations

import base64
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.deployment.resources import Deployment
from assets.records.code_version import code_version
from assets.records.lineage import Lineage, product
from assets.records.verdict import Verdict

if TYPE_CHECKING:
    import pyarrow as pa

CODE_VERSION = "1"
OWNERS = ["team:hour-llava"]
INLINE = 900  # characters of Markdown that the UI shows without a click

Published = Iterator[dg.MaterializeResult | dg.AssetCheckResult]


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Errors that a retry cannot mend become a ``dagster.Failure`` that is not retried and says
    what to do.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error


def check_spec(
    name: str,
    asset: str,
    description: str,
    partitions: dg.PartitionsDefinition | None = None,
    blocking: bool = True,
) -> dg.AssetCheckSpec:
    """A check that an asset makes of itself, once a materialization and partition.

    What it finds stops everything after it (``blocking``) or only warns, never now this and now
    that.

    Checks are made by the asset's own step and not by steps of their own: so they also run when
    automation materializes the asset, they know which partition they speak of, and a product that
    does not pass is never published. Dagster calls checks of partitions a preview; without that,
    the last partition speaks for all.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(
            name, asset=asset, description=description, blocking=blocking, partitions_def=partitions
        )


def publish(
    context: dg.AssetExecutionContext,
    deployment: Deployment,
    *,
    version: str,
    inputs: Mapping[str, str],
    counts: Mapping[str, int],
    checks: Sequence[Verdict] = (),
    folder: str = "",
    config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Published:
    """Record the lineage of a finished product, and describe it and its checks as a
    materialization.

    Args:
        version: content hash of the product; becomes Dagster's data version.
        inputs: input products and the versions that were read.
        counts: rows in, rows out, drops by reason; those that are zero are not shown.
        checks: what its checks found.
        folder: where the product lies below the storage root, when it is one folder.
        config: the settings that shaped it.
        metadata: what else is worth a look; what is empty is not shown.

    Raises:
        dagster.Failure: a check says that the product must not be used. Then there is no
            materialization, and the record in the lineage register keeps others from reading it.
    """
    # Dagster counts a warning of a blocking check as failed, and automation would wait for ever: so
    # none of them warns.
    blocking = {spec.name: spec.blocking for spec in context.assets_def.check_specs}
    assert {verdict.check: verdict.severe for verdict in checks} == blocking, (
        "a check is either severe or it warns"
    )
    partition = context.partition_key if context.has_partition_key else None
    stopping = {verdict.check: verdict.says for verdict in checks if verdict.stops}
    record = Lineage(
        product=product(context.asset_key.to_user_string(), partition),
        version=version,
        folder=folder,
        inputs=dict(inputs),
        config=dict(config or {}),
        counts=dict(counts),
        code_version=code_version(),
        run_id=context.run_id,
        failed=stopping,
    )
    record.write(deployment.storage())
    described = _described(
        record, metadata or {}, deployment.storage().path(folder) if folder else None
    )
    results = [_check_result(verdict) for verdict in checks]
    if stopping:
        yield from results
        found = "; ".join(f"{check}: {says}" for check, says in stopping.items())
        raise dg.Failure(
            f"{record.product} did not pass its checks. {found}", described, allow_retries=False
        )
    yield dg.MaterializeResult(
        metadata=described, data_version=dg.DataVersion(version), check_results=results
    )


def _described(record: Lineage, metadata: Mapping[str, Any], place: str | None) -> dict[str, Any]:
    """A materialization's entries in the order that the UI keeps: what fits a line, then tables and
    pictures.
    """
    told = {name: value for name, value in metadata.items() if not _is_empty(value)}
    short = {
        name: _rounded(value)
        for name, value in told.items()
        if isinstance(value, str | int | float)
    }
    return {
        **short,
        "version": record.version,
        **({"dagster/uri": place} if place else {}),
        "counts": table(
            [{"what": what, "count": count} for what, count in record.counts.items() if count]
        ),
        **{name: value for name, value in told.items() if name not in short},
        "lineage": dg.MetadataValue.json(
            {
                name: getattr(record, name)
                for name in ("inputs", "config", "version", "code_version")
            }
        ),
    }


def _rounded(value: str | int | float) -> str | int | float:
    """A number with the digits that a person reads."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    return float(f"{value:.4g}") if abs(value) < 1000 else round(value)


def _check_result(verdict: Verdict) -> dg.AssetCheckResult:
    facts = {
        name: table(value) if _is_rows(value) else value
        for name, value in verdict.facts.items()
        if value != []
    }
    return dg.AssetCheckResult(
        check_name=verdict.check,
        passed=verdict.passed,
        severity=dg.AssetCheckSeverity.ERROR if verdict.severe else dg.AssetCheckSeverity.WARN,
        description=verdict.says,
        metadata=facts,
    )


def _is_empty(value: Any) -> bool:
    if isinstance(value, dg.TableMetadataValue):
        return not value.records
    return value is None or (isinstance(value, str | list | dict) and not value)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, Mapping) for row in value)


def column_schema(schema: pa.Schema, told: Mapping[str, str]) -> dict[str, dg.TableSchema]:
    """The ``dagster/column_schema`` entry of a Parquet file.

    Args:
        told: what each column holds, for a person.

    Raises:
        ValueError: a column is not told, or a told one is not there.
    """
    if unknown := set(told) ^ set(schema.names):
        raise ValueError(
            f"columns that are either not told or not there: {', '.join(sorted(unknown))}"
        )
    columns = [dg.TableColumn(field.name, str(field.type), told[field.name]) for field in schema]
    return {"dagster/column_schema": dg.TableSchema(columns)}


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Rows as a table in the UI; a cell that a row lacks is empty, and no rows give an empty table."""
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["what"]
    schema = dg.TableSchema(
        columns=[dg.TableColumn(name, _column_type(rows, name)) for name in columns]
    )
    records = [dg.TableRecord({name: _cell(row.get(name)) for name in columns}) for row in rows]
    return dg.MetadataValue.table(records=records, schema=schema)


def samples(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Example rows as a person reads them: one of them turn by turn, and all of them as a table.

    Dagster shows Markdown at once where it is shorter than a thousand characters, else behind a
    click.
    """
    if not examples:
        return {}
    turns = re.sub(
        r"(?m)^(human|gpt): ", r"\n**\1:** ", examples[0]["conversation"].replace("<", "&lt;")
    )
    others = [
        {name: row[name] for name in ("id", *sorted(row)) if name != "conversation"}
        for row in examples
    ]
    return {"one sample": dg.MetadataValue.md(turns.strip()[:INLINE]), "examples": table(others)}


def drops(counts: Mapping[str, int]) -> dg.TableMetadataValue:
    """What was lost and why: the counts that are called ``dropped: <reason>``."""
    lost = {
        what.partition(": ")[2]: count
        for what, count in counts.items()
        if what.startswith("dropped: ")
    }
    return table(
        [
            {"reason": reason, "rows": count}
            for reason, count in sorted(lost.items(), key=lambda kv: -kv[1])
        ]
    )


def _cell(value: Any) -> str | int | float | bool:
    if value is None:
        return ""
    return value if isinstance(value, str | int | float | bool) else str(value)


def picture(png: bytes | None, title: str) -> dg.MarkdownMetadataValue | None:
    """A small PNG, shown inline, or nothing. It lives in the event log, so keep it under about 100
    kB.
    """
    if not png:
        return None
    return dg.MetadataValue.md(
        f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"
    )


def _column_type(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    kinds = {type(row.get(name)) for row in rows}
    if kinds <= {int}:
        return "int"
    if kinds <= {int, float}:
        return "float"
    return "string"
