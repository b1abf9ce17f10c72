"""A model endpoint whose answers are known: it sees the drawn films as they are, and errs at a rate
that is known, too. It speaks the OpenAI-compatible protocol on a loopback address.

It reads the pictures that it is sent, so its captions are true of what was really decoded. Whatever
it writes wrongly it remembers, by the words of the question.
"""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import numpy as np
from PIL import Image

from pipeline.demo.drawing import COLOURS
from training.formats.hashing import stable_hash

PALETTE = np.array(list(COLOURS.values()), np.int32)
NAMES = list(COLOURS)
_LINE = re.compile(r"clips? (\d+)(?: to \d+)? \(([\d.]+)-([\d.]+) s\): (\".*\")")
_SQUARE = re.compile(r"square \(([^)]*)\)")
_BACKGROUND = re.compile(r"on a (\w+) background")
# What may be wrong with a row, in turn.
ROW_ERRORS = ("wrong answer", "answer told", "two right options", "no video needed", "wrong time")
CAPTION_ERRORS = ("wrong background", "wrong colour")
SKY = "What colour does a clear sky have at noon?"


@dataclass
class Painter:
    """Answers prompts about the drawn films.

    Attributes:
        row_errors: share of rows that are written wrongly, and `caption_errors` of clips that are.
        wrong: question -> what is wrong with it.
        wrong_clips: (start, end) and summary of captions that are wrong -> what is.
    """

    row_errors: float = 0.0
    caption_errors: float = 0.0
    wrong: dict[str, str] = field(default_factory=dict)
    wrong_captions: dict[str, str] = field(default_factory=dict)

    def __call__(self, shape: str, text: str, jpegs: list[bytes], seed: int) -> Any:
        """The answer of one form to one prompt."""
        return getattr(self, f"_{shape}")(text, jpegs, seed)

    def _clip(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, str]:
        seen = [_colours(jpeg) for jpeg in jpegs]
        background = Counter(ground for ground, _ in seen).most_common(1)[0][0]
        square = [colour for _, colour in seen]
        course = [c for n, c in enumerate(square) if n == 0 or c != square[n - 1]]
        error = _error(self.caption_errors, CAPTION_ERRORS, str(jpegs[0][:4000]))
        if error == "wrong background":
            background = _other(background)
        elif error == "wrong colour":
            course = [_other(colour) for colour in course]
        said = f"A square ({', then '.join(course)}) drifts on a {background} background"
        if error:
            self.wrong_captions[said] = error
        sides = ("temporality", "spatiality", "objects", "actions", "scene", "summary")
        return dict.fromkeys(sides, said)

    def _events(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, Any]:
        return {
            "events": [
                {"first_clip": n, "last_clip": n, "title": "A part", "summary": said}
                for n, _, _, said in _lines(text)
            ]
        }

    def _event(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, str]:
        return {"text": " ".join(_sentence(said) for *_, said in _lines(text))}

    def _whole(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, str]:
        return {"text": "A square drifts about and changes its colour."}

    def _open_rows(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, Any]:
        question, answer, clip, error = self._row(text, is_choice=False)
        if error == "wrong answer":
            answer = _wrong(answer)
        return {"rows": [{"question": question, "answer": answer, "clips": [clip]}]}

    def _choice_rows(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, Any]:
        question, answer, clip, error = self._row(text, is_choice=True)
        others = [_wrong(answer, n) for n in (1, 2, 3)]
        if question == SKY or error == "no video needed":
            others = ["green", "black", "red"]
        elif error == "wrong answer":
            answer, others[0] = others[0], answer
        elif error == "two right options":
            others[0] = f"the {answer}"
        row = {"question": question, "answer": answer, "distractors": others, "clips": [clip]}
        return {"rows": [row]}

    def _row(self, text: str, *, is_choice: bool) -> tuple[str, str, int, str]:
        """Question, right answer, clip, and what is to be wrong with the row."""
        topic = re.search(r"Topic: (\w+)\. Task: (.*)", text)
        assert topic is not None
        lines = _lines(text.rpartition("The whole video")[2])
        number, start, end, said = lines[stable_hash(topic[0], text) % len(lines)]
        form = "choice" if is_choice else "open"
        asked = f"Thinking of {topic[1]}, {topic[2].rstrip('.').lower()} ({form}):"
        if topic[1] == "scene":
            when = f"not only from {start:.2f} s to {end:.2f} s"
            question = f"{asked} what is the background like all the time, {when}?"
            answer = _ground(said)
        else:
            answer = _square(said)
            question = f"{asked} which colours has the square from {start:.2f} s to {end:.2f} s?"
        error = _error(self.row_errors, ROW_ERRORS, question + said)
        if error == "two right options" and not is_choice:
            error = "wrong answer"
        if error == "answer told":
            question = f"{question} It is {answer}."
        elif error == "no video needed":
            question, answer = f"{asked} {SKY}", "blue"
        elif error == "wrong time":
            question = f"{question} It is meant at second 86000."
        if error:
            self.wrong[question] = error
        return question, answer, number, error

    def _blind(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, str]:
        question, options = _question(text)
        if SKY in question:
            return {"answer": _letter(options, "blue") or "blue"}
        guess = stable_hash("guess", question, str(seed))
        return {"answer": "ABCD"[guess % 4] if options else NAMES[guess % len(NAMES)]}

    def _reword(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, str]:
        question, _ = _question(text)
        return {"question": question.replace("which colours has", "what are the colours of")}

    def _second(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, Any]:
        question, options = _question(text)
        said = _lines(text)[0][3]
        right = "blue" if SKY in question else _square(said)
        if "background" in question:
            right = _ground(said)
        plain = [re.sub(r"^the ", "", option) for option in options]
        letters = [letter for letter, option in zip("ABCD", plain, strict=False) if option == right]
        return {"choices": letters, "answer": right}

    def _same(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, bool]:
        first, second = re.findall(r"(?:First|Second): <data>(.*)</data>", text)
        return {"same": json.loads(first) == json.loads(second)}

    def _contradiction(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, Any]:
        statement = json.loads(re.findall(r"Statement: <data>(.*)</data>", text)[0])
        if "background like all the time" not in statement:
            return {"clips": []}
        said = statement.split()[-1]
        return {
            "clips": [number for number, *_, caption in _lines(text) if _ground(caption) != said]
        }


class ModelServer:
    """Serves one `answer` function on a loopback address. A context manager.

    Args:
        answer: (form, text, JPEG files, seed) -> JSON value, or the text of the answer.
        faults: what happens to the first requests, one each, in place of an answer: see `_fault`.

    Attributes:
        requests: body of every request so far, with its `authorization` header.
    """

    def __init__(self, answer: Callable[..., Any], faults: list[str] | None = None) -> None:
        self.answer, self.faults = answer, list(faults or [])
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
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
            if self.path.endswith("/embeddings"):
                vectors = [_vector(text) for text in body["input"]]
                data = [
                    {"object": "embedding", "index": n, "embedding": v}
                    for n, v in enumerate(vectors)
                ]
                usage = {"prompt_tokens": 1, "total_tokens": 1}
                self._send(200, {"object": "list", "data": data, "model": "m", "usage": usage})
            elif not self._fault(fault, body):
                self._answer(body, fault)

        def _fault(self, fault: str, body: dict[str, Any]) -> bool:
            """Misbehave; whether that was all."""
            if fault == "hang":
                server.closing.wait(60)
                return True
            if fault == "no format":
                self._send(400, {"error": {"message": "response_format is not supported"}})
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


def _prompt(body: dict[str, Any]) -> tuple[str, str, list[bytes]]:
    """Form, text and pictures of a request."""
    content = body["messages"][-1]["content"]
    form = body.get("response_format", {}).get("json_schema", {}).get("name", "")
    if isinstance(content, str):
        return form, content, []
    text = "".join(part["text"] for part in content if part["type"] == "text")
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    return form, text, [base64.b64decode(url.partition(",")[2]) for url in urls]


def _colours(jpeg: bytes) -> tuple[str, str]:
    """Background and square of a picture, by the nearest colours."""
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), np.int32)[::2, ::2]
    nearest = np.abs(pixels[:, :, None] - PALETTE).sum(-1).argmin(-1)
    counts = np.bincount(nearest.ravel(), minlength=len(NAMES))
    ground, square = np.argsort(-counts, kind="stable")[:2]
    return NAMES[ground], NAMES[square]


def _lines(text: str) -> list[tuple[int, float, float, str]]:
    """Number, seconds and text of the clips in a prompt."""
    return [
        (int(number), float(start), float(end), json.loads(said))
        for number, start, end, said in _LINE.findall(text)
    ]


def _question(text: str) -> tuple[str, list[str]]:
    """The question of a prompt, and its options."""
    found = re.search(r"<data>\s*(\".*?\")\s*</data>", text)
    assert found is not None
    first, *lines = json.loads(found[1]).split("\n")
    return first, [line[3:] for line in lines]


def _square(said: str) -> str:
    found = _SQUARE.search(said)
    return found[1] if found else ""


def _ground(said: str) -> str:
    found = _BACKGROUND.search(said)
    return found[1] if found else ""


def _sentence(said: str) -> str:
    return f"A square ({_square(said)}) drifts on a {_ground(said)} background."


def _other(colour: str, by: int = 1) -> str:
    return NAMES[(NAMES.index(colour) + by) % len(NAMES)]


def _wrong(answer: str, by: int = 1) -> str:
    """Another course of colours than `answer`."""
    return ", then ".join(_other(colour, by) for colour in answer.split(", then "))


def _letter(options: list[str], wanted: str) -> str:
    return next((letter for letter, o in zip("ABCD", options, strict=False) if o == wanted), "")


def _error(rate: float, kinds: tuple[str, ...], name: str) -> str:
    """What is to be wrong, for a share `rate` of all names."""
    if stable_hash("error", name) / 2**64 >= rate:
        return ""
    return kinds[stable_hash("kind", name) % len(kinds)]


def _vector(text: str) -> list[float]:
    """Counts of letters: alike for texts of the same words in any order."""
    return [float(text.lower().count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"]
