"""What a job of `call` runs: `python -m assets.engines.worker FOLDER`.

It calls the function of FOLDER's request and writes what it returned or raised. Exit status 0: it
returned. 1: it raised. 75: asked to stop.
"""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from dagster_pipes import open_dagster_pipes

from assets.engines.call import ERRORS, REQUEST_NAME, RESULT_NAME
from assets.engines.plain import dumps, loads, named
from model.atomic import writing_file
from training.supervise import FAILED, OK, PREEMPTED


class Stopped(BaseException):
    """SIGTERM: the job's time is over, or it was cancelled."""


def main(folder: Path) -> int:
    """Do what the request says; the exit status."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(message)s")
    signal.signal(signal.SIGTERM, _stop)
    with open_dagster_pipes() as pipes:

        def log(text: str, *values: object) -> None:
            said = text % values if values else text
            print(said, flush=True)
            pipes.log.info(said)

        try:
            name, arguments, by_name = loads((folder / REQUEST_NAME).read_text(), log)
            result = {"returned": named(name)(*arguments, **by_name)}
        except Stopped:
            return PREEMPTED
        except Exception as error:
            traceback.print_exc()
            result = _told(error)
        with writing_file(folder / RESULT_NAME) as temporary:
            temporary.write_text(dumps(result, log))
    return FAILED if "error" in result else OK


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


def _told(error: Exception) -> dict[str, Any]:
    """The nearest of the errors that a caller may tell apart, and what it says."""
    for name, kind in ERRORS.items():
        if isinstance(error, kind):
            return {"error": name, "message": str(error)}
    return {"error": "RuntimeError", "message": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
