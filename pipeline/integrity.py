"""Whether products are still the bytes that were recorded: a check of each that can be run by
itself, and a job that looks through all of them, some bytes a night.

Neither makes anything. What is damaged is named in the check `intact` of its asset, and is mended
by materializing the product.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)

from assets.deployment.resources import Deployment
from assets.deployment.settings import Settings
from assets.records.lineage import Lineage, all_records, is_recorded, product, split_product
from assets.records.product_files import (
    LIST_SUFFIX,
    find_listed_damage,
    list_hash,
    list_name,
    read_list,
)
from assets.records.rendering import description, table
from pipeline.verify import NAMED, UNRECORDED, WITHOUT_FILES, Finding, verify_product
from training.formats import layout
from training.formats.receipts import Damage, FileEntry, Stamps, find_damage
from training.formats.storage import Storage
from training.progress import Progress

INTACT = "intact"
CURSOR = f"{layout.STAMPS}/integrity.json"
LOCAL_PACE = 200_000_000_000  # bytes a night; reading from an object store costs, and is asked for
DESCRIPTION = (
    "Every byte is still what was recorded when the product was made. Run it alone: nothing is "
    "made for it. In a run that makes the product there is nothing to read again."
)


def intact_checks(assets: Iterable[object]) -> list[dg.AssetChecksDefinition]:
    """The check `intact` of every asset that is made here."""
    made = (item for item in assets if isinstance(item, dg.AssetsDefinition) and item.is_executable)
    return [_intact_check(item) for item in made if item.keys]


def without_intact(*assets: str) -> dg.AssetSelection:
    """Assets with the checks that their own steps make, for jobs: these have nothing to read
    again.
    """
    separate = [dg.AssetCheckKey(dg.AssetKey(name), INTACT) for name in assets]
    return dg.AssetSelection.assets(*assets) - dg.AssetSelection.checks(*separate)


def _intact_check(asset: dg.AssetsDefinition) -> dg.AssetChecksDefinition:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)

        @dg.asset_check(
            asset=asset.key,
            name=INTACT,
            description=DESCRIPTION,
            blocking=False,
            partitions_def=asset.partitions_def,
        )
        def intact(
            context: dg.AssetCheckExecutionContext, deployment: Deployment
        ) -> dg.AssetCheckResult:
            step = context.op_execution_context
            partition = step.partition_key if step.has_partition_key else None
            name, storage = product(asset.key.to_user_string(), partition), deployment.storage()
            if not is_recorded(storage, name):
                return dg.AssetCheckResult(passed=True, description=f"{name} was not made yet")
            record = Lineage.read(storage, name)
            if record.run_id == step.run_id:
                return dg.AssetCheckResult(
                    passed=True, description="made by this run, and hashed when it was written"
                )
            progress = Progress(context.log.info, record.bytes, f"bytes of {name} read")
            finding = verify_product(storage, record, progress.advance)
            evaluation = _evaluation(finding)
            return dg.AssetCheckResult(
                passed=evaluation.passed,
                description=evaluation.description,
                severity=evaluation.severity,
                metadata=evaluation.metadata,
            )

    return intact


def _evaluation(
    finding: Finding, target: AssetCheckEvaluationTargetMaterializationData | None = None
) -> dg.AssetCheckEvaluation:
    """What was found of a product, as its check says it."""
    asset, partition = split_product(finding.product)
    told = str(finding)
    if finding.wrong:
        told += ". Materialize it again: what is damaged is set aside, and made anew"
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(asset),
        check_name=INTACT,
        passed=not finding.wrong and finding.verdict != UNRECORDED,
        severity=dg.AssetCheckSeverity.ERROR if finding.wrong else dg.AssetCheckSeverity.WARN,
        description=description(told),
        blocking=False,
        partition=partition,
        target_materialization_data=target,
        metadata={
            "files": finding.files,
            "bytes": finding.bytes,
            **(
                {"damaged": table([asdict(found) for found in finding.damage[: 10 * NAMED]])}
                if finding.wrong
                else {}
            ),
        },
    )


@dataclass(frozen=True, slots=True)
class Look:
    """How far a product has been looked through.

    Attributes:
        receipt: hash of the list that is looked through; another one begins anew.
        next: number of the file that comes next.
        at: seconds since 1970 when all of it was last looked through; 0 where it never was.
        damage: what was found so far, as (path, fault); it is looked at again before it is told.
    """

    receipt: str
    next: int = 0
    at: float = 0.0
    damage: list[list[str]] = field(default_factory=list)


def bytes_per_night(settings: Settings, storage: Storage) -> int:
    """How many bytes a night are read; 0 means that none are."""
    chosen = settings.integrity.bytes_per_night
    if chosen is None:
        return LOCAL_PACE if storage.is_local else 0
    return chosen


def look_through(
    storage: Storage, budget: int, log: Callable[[str], None], now: Callable[[], float] = time.time
) -> Iterator[Finding]:
    """Read about `budget` bytes of all products, those first that were read longest ago; yields
    each product as soon as all of it was looked through.

    Where it stops, it goes on the next time. A product that was made anew meanwhile is begun anew.
    """
    looks = _read_looks(storage)
    records = [
        record
        for record in all_records(storage)
        if record.receipt and record.asset not in WITHOUT_FILES
    ]
    fresh = {
        record.product: looks[record.product]
        if record.product in looks and looks[record.product].receipt == record.receipt
        else Look(record.receipt)
        for record in records
    }
    # One that was begun comes first, then the oldest.
    records.sort(key=lambda r: (fresh[r.product].next == 0, fresh[r.product].at, r.product))
    progress = Progress(log, budget, "bytes read")
    for record in records:
        if progress.done >= budget:
            break
        look, finding = _go_on(storage, record, fresh[record.product], budget, progress)
        if finding is not None:
            look = replace(look, at=round(now(), 3))
        fresh[record.product] = look
        storage.write_json(CURSOR, {name: asdict(entry) for name, entry in fresh.items()})
        if finding is not None:
            yield finding


def _read_looks(storage: Storage) -> dict[str, Look]:
    try:
        return {name: Look(**entry) for name, entry in storage.read_json(CURSOR).items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}  # it costs time only


def _go_on(
    storage: Storage, record: Lineage, look: Look, budget: int, progress: Progress
) -> tuple[Look, Finding | None]:
    """Read on in a product, at least one file; what was found where that was the last one."""
    try:
        files = read_list(storage, list_name(record.product))
    except (FileNotFoundError, ValueError):
        files = []
    if list_hash(files) != record.receipt:
        return Look(record.receipt, at=look.at), verify_product(storage, record)
    place, damage = look.next, list[Damage]()
    stamps = Stamps()
    while place < len(files) and progress.done < budget:
        some = _next_files(files, place, budget - progress.done)
        found = find_damage(storage, some, stamps, full=True, advance=progress.advance)
        for entry in some:
            if entry.path.endswith(LIST_SUFFIX) and not any(d.path == entry.path for d in found):
                found += find_listed_damage(
                    storage, entry, stamps, full=True, advance=progress.advance
                )
        damage += found
        place += len(some)
    if place < len(files):
        kept = [*look.damage, *([one.path, one.fault] for one in damage)]
        return replace(look, next=place, damage=kept), None
    earlier = _still_damaged(storage, files, {path for path, _ in look.damage})
    # The tables of videos, and nothing else, are read here: their files were, one by one.
    rest = verify_product(storage, replace(record, receipt=""))
    every = (*earlier, *damage, *rest.damage)
    verdict = Finding.verdict_of(every)
    finding = Finding(record.product, verdict, every, record.files, record.bytes)
    return Look(record.receipt, at=look.at), finding


def _still_damaged(storage: Storage, files: list[FileEntry], paths: set[str]) -> list[Damage]:
    """What is wrong now with files that an earlier night found damaged: a product that was made
    again since has the same receipt where it has the same bytes.
    """
    if not paths:
        return []
    listed = paths - {entry.path for entry in files}
    lists = [entry for entry in files if listed and entry.path.endswith(LIST_SUFFIX)]
    chosen = {entry for entry in files if entry.path in paths}.union(lists)
    found = find_damage(storage, chosen, Stamps(), full=True)
    damaged = {one.path for one in found}
    for entry in lists:
        if entry.path not in damaged:
            again = [one for one in read_list(storage, entry.path) if one.path in listed]
            found += find_damage(storage, again, Stamps(), full=True)
    return found


def _next_files(files: list[FileEntry], place: int, budget: int) -> list[FileEntry]:
    """Files from `place` on that fit into the budget, at least one."""
    chosen, size = [files[place]], files[place].size
    for entry in files[place + 1 :]:
        size += entry.size
        if size > budget or len(chosen) >= 1000:
            break
        chosen.append(entry)
    return chosen


@dg.op(
    name="look_through_bytes",
    description="Reads as many bytes as `integrity.bytes_per_night` says, and compares them with "
    "what was recorded.",
)
def _look_through_bytes(context: dg.OpExecutionContext, deployment: Deployment) -> None:
    settings, storage = deployment.settings(), deployment.storage()
    budget = bytes_per_night(settings, storage)
    if not budget:
        context.log.info("integrity.bytes_per_night says that nothing is read")
        return
    wrong = []
    for finding in look_through(storage, budget, context.log.info):
        evaluation = _evaluation(finding, _newest(context.instance, finding.product))
        # An event of this run: without a run, Dagster keeps one finding of a partition for ever.
        # Its annotation leaves checks out; a test holds that they are taken.
        context.log_event(evaluation)  # type: ignore[arg-type]
        context.log.log("ERROR" if finding.wrong else "INFO", str(finding))
        if finding.wrong:
            wrong.append(finding.product)
    if wrong:
        raise dg.Failure(
            f"{len(wrong):,} products are damaged: {', '.join(wrong)}. Their check {INTACT} names "
            "the files. Materialize them again: what is damaged is set aside, and made anew",
            allow_retries=False,
        )


def _newest(
    instance: dg.DagsterInstance, name: str
) -> AssetCheckEvaluationTargetMaterializationData | None:
    """The materialization that a finding about a product speaks of."""
    asset, partition = split_product(name)
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(
            asset_key=dg.AssetKey(asset), asset_partitions=[partition] if partition else None
        ),
        limit=1,
    ).records
    if not found:
        return None
    return AssetCheckEvaluationTargetMaterializationData(
        storage_id=found[0].storage_id, run_id=found[0].run_id, timestamp=found[0].timestamp
    )


@dg.job(
    name="check_integrity",
    tags={"hourllava/step": "everything"},
    description="Read some of everything that was made, those products first that were read "
    "longest ago, and compare it with what was recorded. Nothing is made. It goes on where it "
    "stopped; the schedule check_integrity_nightly runs it every night.",
)
def check_integrity() -> None:
    _look_through_bytes()
