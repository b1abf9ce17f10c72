"""The server: the page, the endpoint and the videos behind one check of who asks."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from assets.evaluation.gallery import POLICY
from assets.serving.access import Access, App
from assets.serving.engine import Engine
from assets.serving.openai_routes import openai_routes


def make_app(engine: Engine, token: str | None, *, page: bool = True) -> App:
    """The whole server as an ASGI application.

    Args:
        token: that each request must carry; None asks for none.
        page: False leaves the page out.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.router.routes += [
        *openai_routes(engine),
        Route("/media/{name:path}", _media(engine), methods=["GET"]),
        Route("/gallery/{variant}", _gallery(engine), methods=["GET"]),
    ]
    if page:
        from assets.serving.page import add_page

        add_page(app, engine)
    # In a data: URL, base64 makes four bytes of three.
    return Access(app, token, engine.library.upload_bytes * 3 // 2)


def _media(engine: Engine) -> Callable[..., object]:
    """A video's bytes, any range of them, for the player."""

    async def media(request: Request) -> Response:
        try:
            path = await run_in_threadpool(engine.library.video, request.path_params["name"])
        except (ValueError, FileNotFoundError) as error:
            return PlainTextResponse(str(error), 404)
        # The browser is told it is a video whatever it is: it never becomes a page.
        return FileResponse(path, media_type="video/mp4", content_disposition_type="inline")

    return media


def _gallery(engine: Engine) -> Callable[..., object]:
    """The page of a variant's evaluation; nothing in it runs, whatever it holds."""

    async def gallery(request: Request) -> Response:
        variant = request.path_params["variant"]
        page = await run_in_threadpool(engine.library.gallery, variant)
        if page is None:
            return PlainTextResponse(f"no gallery of {variant!r}: its evaluation makes it", 404)
        return HTMLResponse(page, headers={"content-security-policy": f"{POLICY}; sandbox"})

    return gallery


def serve(engine: Engine, host: str, port: int, token: str | None) -> None:
    """Listen until Ctrl+C."""
    import uvicorn

    app = make_app(engine, token)
    # The token stands in no address, so the log of requests cannot hold it.
    uvicorn.run(app, host=host, port=port, log_level="warning")
