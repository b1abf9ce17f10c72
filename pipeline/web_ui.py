"""`hourllava ui`: Dagster's webserver, daemon and code location for one deployment.

They are what `dagster dev` starts, and the webserver is behind a check: whoever reaches it can
start runs, and without the check that is every page that a browser on this machine has open. They
run below the command's own process, so that they end in order also when that one is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from assets.serving.origin import (
    LOOPBACK,
    App,
    Receive,
    Scope,
    Send,
    answer,
    headers_of,
    why_foreign,
    with_headers,
)
from pipeline.instance_folder import HOME_VARIABLE, REPOSITORY, instance_folder
from training.supervise import die_with_parent

if TYPE_CHECKING:
    import uvicorn
    from dagster import DagsterInstance

GRAPHQL = "/graphql"
# What pages of other sites cannot send without asking first, which Dagster does not allow.
GRAPHQL_TYPES = ("application/json", "application/graphql")
STOP_TIMEOUT_S, GRACE_S = 60, 5
# As the commands of Dagster's webserver have them.
STATEMENT_TIMEOUT_MS, POOL_RECYCLE_S, POOL_OVERFLOW, POLL_MS = 15_000, 3_600, 20, 2_000


class SameSite:
    """ASGI middleware: nothing that a page of another site sends reaches Dagster.

    Args:
        names: hosts besides the machine's own that the UI is reached under, through a proxy.
    """

    def __init__(self, app: App, names: Collection[str] = ()) -> None:
        self._app = app
        self._proxied = tuple(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = headers_of(scope)
        refused = why_foreign(headers, (*LOOPBACK, *self._proxied), self._proxied)
        status = 403
        if not refused and scope["type"] == "http":
            status, refused = 405, _may_not_run(scope, headers)
        if not refused:
            await self._app(scope, receive, with_headers(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refused})
        else:
            await answer(send, status, refused + "\n", "text/plain; charset=utf-8")


def _may_not_run(scope: Scope, headers: dict[bytes, str]) -> str:
    """Why a request to GraphQL is not executed; empty where it may be.

    Dagster executes mutations that stand in an address, which pictures and forms can hold.
    """
    if not scope["path"].rstrip("/").endswith(GRAPHQL):
        return ""
    kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
    if scope["method"] == "POST" and kind in GRAPHQL_TYPES:
        return ""
    if scope["method"] == "GET" and "text/html" in headers.get(b"accept", ""):
        return ""  # GraphiQL's page, whatever else the address holds
    return f"GraphQL is answered to POST with {' or '.join(GRAPHQL_TYPES)} alone"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `hourllava ui` takes."""
    parser.add_argument("--host", default="127.0.0.1", help="there is no login: see the docs")
    parser.add_argument("--port", type=int, default=3000, help="where it listens (default: 3000)")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="HOST",
        help="a host name, without a port, under which a reverse proxy shows the UI; may be given "
        "several times. Others than this machine's own are refused",
    )
    parser.add_argument(
        "--workspace", type=Path, default=REPOSITORY / "workspace.yaml", help=argparse.SUPPRESS
    )


def ui(chosen: argparse.Namespace) -> int:
    """Run until Ctrl+C; returns the exit code.

    Raises:
        ValueError: as `instance_folder`, or the settings are not usable.
    """
    from assets.deployment.settings import CONFIG_VARIABLE, load_settings

    load_settings(chosen.config)  # what is wrong with them is told here, not by the code's server
    if chosen.config is not None:
        os.environ[CONFIG_VARIABLE] = str(chosen.config.resolve())
    workspace = chosen.workspace.resolve()
    home = instance_folder()
    os.environ[HOME_VARIABLE] = str(home)
    os.chdir(home)
    return _below(lambda: _serve(workspace, chosen))


def _below(work: Callable[[], None]) -> int:
    """Do the work in a child; returns its exit code.

    The child is told to end by SIGTERM, which this process passes on, and which the kernel sends
    when this process is killed.
    """
    this = os.getpid()
    child = os.fork()
    if child == 0:
        die_with_parent(signal.SIGTERM, expected_parent=this)
        work()
        return 0
    # Ctrl+C reaches both, and the child answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _serve(workspace: Path, chosen: argparse.Namespace) -> None:
    from dagster import DagsterInstance

    with (
        contextlib.suppress(KeyboardInterrupt),
        DagsterInstance.get() as instance,
        _code_location(instance, workspace) as served,
    ):
        serve(instance, served, chosen.host, chosen.port, chosen.name)


def serve(
    instance: DagsterInstance, workspace: Path, host: str, port: int, names: Collection[str]
) -> None:
    """The webserver and the daemon, until one of them ends or Ctrl+C.

    Args:
        workspace: names the running code location.
        names: as in SameSite.

    Raises:
        ValueError: the daemon ended by itself.
    """
    import uvicorn
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.version import __version__

    instance.optimize_for_webserver(STATEMENT_TIMEOUT_MS, POOL_RECYCLE_S, POOL_OVERFLOW)
    with (
        _daemon(workspace) as daemon,
        WorkspaceProcessContext(
            instance,
            version=__version__,
            workspace_load_target=WorkspaceFileTarget([str(workspace)]),
        ) as context,
    ):
        app: Any = create_app_from_workspace_process_context(context, "", POLL_MS)
        config = uvicorn.Config(
            SameSite(app, names),
            host=host,
            port=port,
            log_level="warning",
            timeout_graceful_shutdown=GRACE_S,
        )
        server = uvicorn.Server(config)
        threading.Thread(target=_end_with, args=(daemon, server), daemon=True).start()
        print(f"the UI is on http://{host}:{port}; Ctrl+C ends it", flush=True)
        server.run()
        if (status := daemon.poll()) is not None:
            raise ValueError(f"Dagster's daemon ended with exit code {status}; it says why above")


def _end_with(daemon: subprocess.Popen[bytes], server: uvicorn.Server) -> None:
    """Without the daemon nothing leaves the queue, which nobody would see."""
    daemon.wait()
    server.should_exit = True


@contextlib.contextmanager
def _code_location(instance: DagsterInstance, workspace: Path) -> Iterator[Path]:
    """One process that has the code loaded, and a workspace file that leads to it by a socket."""
    from dagster._cli.proxy_server_manager import ProxyServerManager
    from dagster._core.workspace.load_target import WorkspaceFileTarget

    target = WorkspaceFileTarget([str(workspace)])
    with ProxyServerManager(instance, target) as servers, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "workspace.yaml"
        path.write_text(yaml.safe_dump({"load_from": servers.get_code_server_specs()}))
        yield path


@contextlib.contextmanager
def _daemon(workspace: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Dagster's daemon, which is asked to end when the block does, and ends with this process."""
    command = [sys.executable, "-m", "dagster._daemon", "run", "-w", str(workspace)]
    process = subprocess.Popen(command, preexec_fn=lambda: die_with_parent(signal.SIGINT))
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
