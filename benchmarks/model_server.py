"""An endpoint that speaks the OpenAI-compatible protocol on a loopback address, and misbehaves as
real ones do.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

_NOT_SUPPORTED = "Unsupported parameter: 'NAME' is not supported with this model. Use another."
_ONE_VALUE = "Unsupported value: 'NAME' does not support 0.0 with this model."
_UNKNOWN_NAME = "Invalid JSON payload received. Unknown name 'NAME': Cannot find field."
# How servers say that they do not take the parameter NAME: status and body.
REFUSALS: dict[str, tuple[int, Any]] = {
    "openai": (
        400,
        {"error": {"message": _NOT_SUPPORTED, "param": "NAME", "code": "unsupported_parameter"}},
    ),
    "openai, a value": (
        400,
        {"error": {"message": _ONE_VALUE, "param": "NAME", "code": "unsupported_value"}},
    ),
    "vllm": (
        400,
        {
            "object": "error",
            "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'NAME'), "
            "'msg': 'Extra inputs are not permitted'}]",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
    ),
    "fastapi": (
        422,
        {
            "detail": [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", "NAME"],
                    "msg": "Extra inputs are not permitted",
                    "input": "seed temperature max_tokens",
                }
            ]
        },
    ),
    "google": (400, [{"error": {"code": 400, "message": _UNKNOWN_NAME}}]),
    "a word": (400, {"error": "NAME is not supported"}),
}


def refusal(shape: str, name: str) -> tuple[int, Any]:
    """Status and body of an error of one shape about one parameter."""
    status, body = REFUSALS[shape]
    return status, json.loads(json.dumps(body).replace("NAME", name))


class ModelServer:
    """Serves one `answer` function on a loopback address. A context manager.

    Args:
        answer: (form, text, JPEG files, seed) -> JSON value, or the text of the answer.
        faults: what happens to the first requests, one each, in place of an answer: see `_fault`.
        refuses: parameters that are never taken -> how the error looks: one of `REFUSALS`.

    Attributes:
        requests: body of every request so far, with its `authorization` header.
        models: that it lists.
    """

    def __init__(
        self,
        answer: Callable[..., Any],
        faults: list[str] | None = None,
        refuses: Mapping[str, str] | None = None,
    ) -> None:
        self.answer, self.faults = answer, list(faults or [])
        self.refuses = dict(refuses or {})
        self.requests: list[dict[str, Any]] = []
        self.models = ["painter"]
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        # It looks so often whether it is to end, and a test waits for that.
        serve = partial(self._server.serve_forever, poll_interval=0.01)
        threading.Thread(target=serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


def _handler(server: ModelServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                key = self.headers.get("Authorization", "")
                server.requests.append({**body, "authorization": key, "path": self.path})
                fault = server.faults.pop(0) if server.faults else ""
            if self._refuse(body) or self._fault(fault, body):
                return
            if self.path.endswith("/embeddings"):
                vectors = [_vector(text) for text in body["input"]]
                data = [
                    {"object": "embedding", "index": n, "embedding": v}
                    for n, v in enumerate(vectors)
                ]
                usage = {"prompt_tokens": 1, "total_tokens": 1}
                self._send(200, {"object": "list", "data": data, "model": "m", "usage": usage})
            else:
                self._answer(body, fault)

        def _refuse(self, body: dict[str, Any]) -> bool:
            """Refuse the first parameter of a request that is not taken; whether there is one."""
            said = {name for name, _ in _members(body)} | {
                value for name, value in _members(body) if name == "type"
            }
            for name, shape in server.refuses.items():
                if name in said:
                    self._send(*refusal(shape, name))
                    return True
            return False

        def do_GET(self) -> None:
            with server.lock:
                key = self.headers.get("Authorization", "")
                server.requests.append({"authorization": key, "path": self.path})
                fault = server.faults.pop(0) if server.faults else ""
            if not self._fault(fault, {}):
                models = [{"id": name, "object": "model"} for name in server.models]
                self._send(200, {"object": "list", "data": models})

        def _fault(self, fault: str, body: dict[str, Any]) -> bool:
            """Misbehave; whether that was all."""
            if fault == "hang":
                server.closing.wait(60)
                return True
            if fault.startswith("body "):
                _, status, text = fault.split(" ", 2)
                self._send(int(status), json.loads(text))
            elif fault.startswith("status "):
                _, status, *wait = fault.split()
                headers = {"Retry-After": wait[0]} if wait else {}
                key = self.headers.get("Authorization", "")
                self._send(int(status), {"error": {"message": f"no, {key}"}}, headers)
            else:
                return False
            return True

        def _answer(self, body: dict[str, Any], fault: str) -> None:
            shape, text, jpegs = _prompt(body)
            value = server.answer(shape, text, jpegs, body.get("seed", 0))
            said = value if isinstance(value, str) else json.dumps(value)
            ended: str = "stop"
            message: dict[str, Any] = {"role": "assistant", "content": said}
            if fault == "half":
                message["content"], ended = said[: len(said) // 2], "length"
            elif fault == "prose":
                message["content"] = f"Sure! Here {{it}} is:\n```json\n{said}\n```\nAnything else?"
            elif fault == "refusal":
                message |= {"content": None, "refusal": "I cannot look at that."}
            elif fault == "not json":
                message["content"] = "The square is red."
            usage = {
                "prompt_tokens": len(text) // 4 + 100 * len(jpegs),
                "completion_tokens": len(said) // 4,
                "total_tokens": 0,
            }
            choice = {"index": 0, "message": message, "finish_reason": ended}
            reply = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
            self._send(200, {**reply, "choices": [choice], "usage": usage})

        def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            for name, said in (headers or {}).items():
                self.send_header(name, said)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """Every member of every object within a JSON value."""
    for name, one in value.items() if isinstance(value, dict) else ():
        yield name, one if isinstance(one, str) else None
    for one in value.values() if isinstance(value, dict) else value:
        if isinstance(one, dict | list):
            yield from _members(one)


def _prompt(body: dict[str, Any]) -> tuple[str, str, list[bytes]]:
    """Form, text and pictures of a request."""
    content = body["messages"][-1]["content"]
    form = body.get("response_format", {}).get("json_schema", {}).get("name", "")
    if isinstance(content, str):
        return form, content, []
    text = "".join(part["text"] for part in content if part["type"] == "text")
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    return form, text, [base64.b64decode(url.partition(",")[2]) for url in urls]


def _vector(text: str) -> list[float]:
    """Counts of letters: alike for texts of the same words in any order."""
    return [float(text.lower().count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"]
