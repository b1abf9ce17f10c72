"""From what a step made to a lineage record, and to what Dagster records: a materialization, its
checks, or a failure that a person can act on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg

from assets.deployment.resources import Deployment
from assets.records.code_version import code_version
from assets.records.coverage import Coverage
from assets.records.lineage import Lineage, mend, product
from assets.records.openlineage import tell
from assets.records.rendering import description, product_links, table
from assets.records.verdict import Verdict
from training.formats import layout
from training.formats.receipts import Damage, FileEntry

CODE_VERSION = "1"
UP_TO_DATE = "up_to_date"
OWNERS = ["team:hour-llava"]

Published = Iterator[dg.MaterializeResult | dg.AssetCheckResult]


# Of a failed step: trying again cannot help. Automation does not, until something has changed.
FOR_A_PERSON = "tried again by itself"


def failure_for_a_person(description: str, metadata: Mapping[str, Any] | None = None) -> dg.Failure:
    """A failure that no retry can mend, neither the step's own nor automation's."""
    said = {**(metadata or {}), FOR_A_PERSON: "no: somebody has to act first"}
    return dg.Failure(description, said, allow_retries=False)


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Errors that a retry cannot mend become a `dagster.Failure` that is not retried and says
    what to do.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise failure_for_a_person(str(error)) from error
    except ImportError as error:
        raise failure_for_a_person(
            f"{error}: a package is missing or broken where this step ran; install it there, or "
            "hour-llava again with the extras that its settings need"
        ) from error


def check_spec(
    name: str,
    asset: str,
    description: str,
    partitions: dg.PartitionsDefinition | None = None,
    blocking: bool = True,
) -> dg.AssetCheckSpec:
    """A check that an asset makes of itself, once a materialization and partition.

    What it finds always stops everything after it (`blocking`), or always only warns.

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


def own_name(context: dg.AssetExecutionContext) -> str:
    """The product that a step makes."""
    partition = context.partition_key if context.has_partition_key else None
    return product(context.asset_key.to_user_string(), partition)


def mend_product(context: dg.AssetExecutionContext, deployment: Deployment) -> list[Damage]:
    """Set aside what is damaged of the product that a step is about to make, so that it is made
    again; returns it.

    Raises:
        FileNotFoundError: the product was made before, and the root is not there or holds no
            record at all: it was lost, and is not begun anew without a word.
    """
    storage = deployment.storage()
    made = context.instance.get_latest_materialization_event(context.asset_key)
    if made is not None and not storage.exists(layout.LINEAGE):
        is_there = storage.exists("")
        raise FileNotFoundError(
            f"the root {storage.root} is {'empty' if is_there else 'not there'}, and this Dagster "
            f"instance remembers that {context.asset_key.to_user_string()} was made in it; mount "
            "or move it back, or correct `root` in the settings. To begin anew, make the folder "
            f"{storage.path(layout.LINEAGE)} first"
        )
    return mend(storage, own_name(context), context.log.warning)


def up_to_date_spec(asset: str) -> dg.AssetCheckSpec:
    """The check of every asset that is made from others: is it made from what is there today?

    It speaks of all partitions at once, because Dagster shows a partitioned asset as fresh while
    some of its partitions are not. The asset's own step answers for what it has just made; from
    then on the sensor `tell_what_waits` does.
    """
    description = (
        "Everything of it is made from what is there today. Otherwise this says what has changed, "
        "what it waits for, and which runs failed. It only warns."
    )
    return check_spec(UP_TO_DATE, asset, description, blocking=False)


def publish(
    context: dg.AssetExecutionContext,
    deployment: Deployment,
    *,
    version: str,
    inputs: Mapping[str, str],
    counts: Mapping[str, int],
    files: Sequence[FileEntry] | None = None,
    checks: Sequence[Verdict] = (),
    folder: str = "",
    config: Mapping[str, Any] | None = None,
    coverage: Coverage | None = None,
    metadata: Mapping[str, Any] | None = None,
    opening: Mapping[str, Any] | None = None,
) -> Published:
    """Record the lineage of a finished product, and describe it and its checks as a
    materialization.

    Args:
        version: content hash of the product; becomes Dagster's data version.
        inputs: input products and the versions that were read.
        counts: rows in, rows out, drops by reason; those that are zero are not shown.
        files: the product's, hashed when they were made; with `inputs` and `config` its receipt.
        checks: what its checks found.
        folder: where the product lies below the storage root, when it is one folder.
        config: the settings that shaped it.
        coverage: how much of what was asked for is in it.
        metadata: what else is worth a look; what is empty is not shown.
        opening: what the page opens with, in this order.

    Raises:
        dagster.Failure: a check says that the product must not be used. Then there is no
            materialization, and the record in the lineage register keeps others from reading it.
    """
    # Dagster counts a warning of a blocking check as failed, and automation would wait for ever: so
    # none of them warns.
    blocking = {spec.name: spec.blocking for spec in context.assets_def.check_specs}
    if UP_TO_DATE in blocking:
        says = f"{own_name(context)} is made from today's inputs"
        checks = [*checks, Verdict(UP_TO_DATE, says, blocking=False)]
    assert {verdict.check: verdict.blocking for verdict in checks} == blocking, (
        "a check either blocks or it warns"
    )
    stopping = {verdict.check: verdict.message for verdict in checks if verdict.blocks}
    record = Lineage(
        product=own_name(context),
        version=version,
        folder=folder,
        inputs=dict(inputs),
        config=dict(config or {}),
        counts=dict(counts),
        code_version=code_version(),
        run_id=context.run_id,
        failed=stopping,
        coverage=coverage.record() if coverage else {},
    )
    storage = deployment.storage()
    if files is not None:
        record = record.with_files(storage, files)
    record.write(storage)
    described = {
        **{name: value for name, value in (opening or {}).items() if not _is_empty(value)},
        **_described(
            record,
            {**_coverage(record, coverage), **(metadata or {})},
            storage.path(folder) if folder else None,
        ),
    }
    results = [_check_result(verdict) for verdict in checks]
    if stopping:
        yield from results
        found = "; ".join(f"{check}: {says}" for check, says in stopping.items())
        raise failure_for_a_person(f"{record.product} did not pass its checks. {found}", described)
    tell(record, context.log.warning)
    yield dg.MaterializeResult(
        metadata=described, data_version=dg.DataVersion(version), check_results=results
    )


def _described(record: Lineage, metadata: Mapping[str, Any], place: str | None) -> dict[str, Any]:
    """A materialization's entries in the order that the UI keeps: what fits a line, then tables and
    pictures.
    """
    shown = {name: value for name, value in metadata.items() if not _is_empty(value)}
    short = {
        name: _rounded(value)
        for name, value in shown.items()
        if isinstance(value, str | int | float)
    }
    return {
        **short,
        "version": record.version,
        **({"dagster/uri": place} if place else {}),
        "counts": table(
            [{"what": what, "count": count} for what, count in record.counts.items() if count]
        ),
        **{name: value for name, value in shown.items() if name not in short},
        **({"made from": links} if (links := product_links(sorted(record.inputs))) else {}),
        "lineage": dg.MetadataValue.json(
            {
                name: getattr(record, name)
                for name in ("inputs", "config", "version", "code_version")
            }
        ),
    }


def _coverage(record: Lineage, coverage: Coverage | None) -> dict[str, Any]:
    """How much of what was asked for is in a product, as its page shows it."""
    if coverage is None:
        return {}
    return {
        "trained on" if record.asset.startswith("stage") else "made of": coverage.sentence,
        "of each source": table(coverage.by_source()),
        "not in it": table(coverage.by_reason()),
        "of each kind of question": table(coverage.by_kind()),
        "not counted": coverage.notes,
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
        severity=dg.AssetCheckSeverity.ERROR if verdict.blocking else dg.AssetCheckSeverity.WARN,
        description=description(verdict.message),
        metadata=facts,
    )


def _is_empty(value: Any) -> bool:
    if isinstance(value, dg.TableMetadataValue):
        return not value.records
    return value is None or (isinstance(value, str | list | dict) and not value)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, Mapping) for row in value)
