"""A plain function, called in this process or in a job of its pool.

For a job, the function's name and its arguments become a file (`assets.engines.plain`), and what it
returns or raises comes back the same way. `context.log.info` among the arguments becomes the job's
own way to the run's log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import dagster as dg

from assets.deployment.compute import PoolName
from assets.deployment.settings import Settings
from assets.engines.jobs import Jobs, Work
from assets.engines.plain import dumps, function_name, loads
from assets.engines.script import interpreter
from assets.records.publishing import own_name

P = ParamSpec("P")
T = TypeVar("T")

REQUEST_NAME = "request.json"
RESULT_NAME = "result.json"
# What a caller may tell apart; any other error comes back as a RuntimeError that names it.
ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (FileNotFoundError, OSError, ValueError, RuntimeError)
}


def call(
    context: dg.AssetExecutionContext,
    settings: Settings,
    pool: PoolName,
    reached: Callable[[], object] | None,
    function: Callable[P, T],
    *arguments: P.args,
    **named: P.kwargs,
) -> T:
    """`function(*arguments, **named)`, where the settings say that the pool's work runs.

    Args:
        pool: that the work belongs to.
        reached: how far it is, as what lies in the storage tells; see `Work`.
        function: of a module, by whose name a job finds it.

    Raises:
        dg.Failure: the job was cancelled, or lost too often.
        Exception: what the function raised.
    """
    row = settings.compute.pool(pool)
    if not row.is_slurm:
        return function(*arguments, **named)
    asked = dumps([function_name(function), list(arguments), named], context.log.info)

    def command(folder: Path) -> list[str]:
        (folder / REQUEST_NAME).write_text(asked)
        return [interpreter(row), "-m", "assets.engines.worker", str(folder)]

    request = hashlib.sha256(asked.encode()).hexdigest()[:16]
    work = Work(own_name(context), request, command, reached=reached)
    ended = Jobs(context, settings.compute, row).run(work)
    where = f"job {ended.job.id} on {ended.job.nodes}"
    if not (ended.folder / RESULT_NAME).exists():
        raise RuntimeError(
            f"{where} ended with status {ended.status} and left no word; its log is in "
            f"{ended.folder}"
        )
    result = loads((ended.folder / RESULT_NAME).read_text(), context.log.info)
    if "error" in result:
        error = ERRORS[result["error"]](result["message"])
        error.add_note(f"in {where}")
        raise error
    returned: Any = result["returned"]
    return returned  # type: ignore[no-any-return]
