"""OpenAI's own client asks a running server."""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import uvicorn

from assets.inference.prompts import Said
from assets.inference.session import Session
from assets.serving.engine import MOST_WAITING, Engine
from assets.serving.library import Fetching, Library
from assets.serving.server import make_app
from model.options import AskOptions
from tests.servers.faulty import FaultyMediaServer

TOKEN = "a token of this test alone"
QUESTION = "What colour is the square?"


@contextlib.contextmanager
def listening(app) -> Iterator[str]:
    """The address of a server that runs in a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def web(media):
    with FaultyMediaServer(media) as server:
        yield server


@pytest.fixture(scope="module")
def engine(export, media, web, tmp_path_factory):
    fetching = Fetching(hosts=(f"127.0.0.1:{web.port}",))
    scratch = tmp_path_factory.mktemp("uploads")
    with (
        Library({"tiny": export}, None, [media], scratch, fetching=fetching) as library,
        Engine(library, "cpu") as engine,
    ):
        yield engine


@pytest.fixture(scope="module")
def address(engine):
    with listening(make_app(engine, TOKEN, page=False)) as url:
        yield url


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def session(export):
    return Session(export, "cpu")


def ask(client, *parts, **options):
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(
        model="tiny", messages=messages, **{"max_tokens": 8, **options}
    )


def said(completion) -> str:
    return completion.choices[0].message.content


def data_url(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def image(url):
    return {"type": "image_url", "image_url": {"url": url}}


def video(url):
    return {"type": "video_url", "video_url": {"url": url}}


def test_the_models_are_the_checkpoints(client):
    assert [model.id for model in client.models.list()] == ["tiny"]


@pytest.mark.slow
def test_a_video_by_name_by_url_and_as_data_get_the_sessions_answer(client, session, media, web):
    path = media / "short.mp4"
    expected = "".join(session.ask(QUESTION, session.video(path), 8))
    listed = {"type": "video", "video": f"{media.name}/short.mp4"}
    for part in (listed, video(f"{web.url}/short.mp4"), video(data_url(path, "video/mp4"))):
        completion = ask(client, part, QUESTION)
        assert said(completion) == expected
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 8
    assert completion.usage.prompt_tokens > 18 * 4


def test_an_image_and_text_alone_get_the_sessions_answer(client, session, media, web):
    prompt = session.prompt(f"<image>{QUESTION}", images=[media / "picture.jpg"])
    expected = "".join(session.answer(prompt, 8))
    for url in (data_url(media / "picture.jpg", "image/jpeg"), f"{web.url}/picture.jpg"):
        assert said(ask(client, image(url), QUESTION)) == expected
    plain = "".join(session.answer(session.prompt("What is 2 plus 2?"), 8))
    assert said(ask(client, "What is 2 plus 2?")) == plain


@pytest.mark.slow
def test_a_stream_is_the_same_answer_in_pieces(client, media):
    part = {"type": "video", "video": f"{media.name}/short.mp4"}
    whole = ask(client, part, QUESTION)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = list(ask(client, part, QUESTION, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said(whole)
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "length"]
    assert last.usage == whole.usage


def test_a_conversation_goes_on_below_its_system_message(client, session, media):
    path = media / "short.mp4"
    part = {"type": "video", "video": f"{media.name}/short.mp4"}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [part, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "And before?"},
    ]
    found = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8)
    turns = [Said(QUESTION), Said("red"), Said("And before?")]
    prompt = session.conversation(turns, video=session.video(path), system="Be brief.")
    assert session.prompt_text(prompt).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert said(found) == "".join(session.answer(prompt, 8))


def test_a_video_is_decoded_once_for_all_of_its_questions(client, media, monkeypatch):
    part = {"type": "video", "video": f"{media.name}/long.mp4"}
    ask(client, part, QUESTION)
    monkeypatch.setattr(
        "assets.inference.session.encode_video", lambda *_: pytest.fail("decoded again")
    )
    ask(client, part, "Is it night?")
    ask(client, {"type": "text", "text": "no video between"})
    ask(client, part, QUESTION)


def test_subtitles_are_a_field_of_the_request(client, media):
    part = {"type": "video", "video": f"{media.name}/short.mp4"}
    extra = {"subtitles": "00:00:01,000 --> 00:00:02,000\nThe square is red\n"}
    with_them = ask(client, part, QUESTION, extra_body=extra)
    assert with_them.usage.prompt_tokens > ask(client, part, QUESTION).usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="there is no video"):
        ask(client, QUESTION, extra_body=extra)


@pytest.mark.parametrize(
    "chosen",
    [
        {"memory_scale": 0.5},
        {"kept_frames": 2},
        {"template_tokens": "seen"},
        {"forgetting_seed": 7},
    ],
    ids=str,
)
def test_how_it_is_asked_is_a_field_of_the_request(client, session, media, chosen):
    path = media / "short.mp4"
    part = {"type": "video", "video": f"{media.name}/short.mp4"}
    found = said(ask(client, part, QUESTION, extra_body=chosen))
    prompt = session.conversation(
        [Said(QUESTION)], video=session.video(path), options=AskOptions(**chosen)
    )
    assert found == "".join(session.answer(prompt, 8))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"memory_scale": 0.4}, "memory_scale is 0.4"),
        ({"kept_frames": 0}, "kept_frames is 0"),
        ({"kept_frames": 1.5}, "kept_frames: "),
        ({"template_tokens": "some"}, "template_tokens is 'some'; known: hidden, seen"),
        ({"forgetting_seed": -1}, "forgetting_seed is -1"),
        ({"keep_frames": 3}, "keep_frames: this server does not know it; besides OpenAI's it"),
        ({"keep_frames": 3}, "subtitles, memory_scale, kept_frames, template_tokens, forgett"),
    ],
)
def test_an_option_that_has_no_meaning_is_named(client, media, chosen, message):
    part = {"type": "video", "video": f"{media.name}/short.mp4"}
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, part, QUESTION, extra_body=chosen)
    assert message in refused.value.body["message"]
    assert refused.value.body["param"] == next(iter(chosen))
    with pytest.raises(openai.BadRequestError, match="there is no video"):
        ask(client, QUESTION, extra_body={"kept_frames": 1})


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        (["  "], {}, "the question is empty"),
        ([QUESTION], {"temperature": 0.7}, "answers are greedy"),
        ([QUESTION], {"n": 2}, "n: "),
        ([QUESTION], {"tools": []}, "tools: this server does not know it"),
        ([QUESTION], {"max_tokens": 0}, "max_tokens"),
        (["why " * 5000], {}, "4096"),
        ([video("file:///etc/passwd"), "?"], {}, "no video 'file:///etc/passwd'"),
        ([video("/etc/passwd"), "?"], {}, "no video"),
        ([video("../../etc/passwd"), "?"], {}, "no video"),
        ([video("http://169.254.169.254/latest"), "?"], {}, "not a public address"),
        ([image("http://169.254.169.254/latest"), "?"], {}, "not a public address"),
        ([image("http://localhost:1/a.png"), "?"], {}, "is this machine"),
        ([image("file:///etc/passwd"), "?"], {}, "data: URL with base64, or an http"),
        ([image("data:image/png;base64,#"), "?"], {}, "base64 is broken"),
        ([image("data:image/png;base64,AAAA"), "?"], {}, "image of 3 bytes"),
        ([video("data:video/mp4;base64,AAAA"), "?"], {}, "no usable video"),
        ([video("data:text/html;base64,AAAA"), "?"], {}, "not a data:video"),
        ([image("data:image/png;base64,AA=="), video("x"), "?"], {}, "1 videos and 1 images"),
    ],
)
def test_what_cannot_be_done_is_refused_in_the_protocols_form(client, parts, options, message):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, *parts, **options)
    assert message in refused.value.body["message"]
    assert refused.value.body["type"] == "invalid_request_error"


def test_a_model_that_is_not_there_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gone", messages=[{"role": "user", "content": "?"}])
    assert missing.value.code == "model_not_found"


def test_without_the_token_nothing_is_answered(address):
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="a guess", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="missing or wrong"),
    ):
        stranger.models.list()


def test_who_asks_while_too_many_wait_is_told_to_come_back(client, engine):
    for _ in range(MOST_WAITING):
        assert engine._room.acquire(blocking=False)
    try:
        with pytest.raises(openai.InternalServerError) as refused:
            ask(client, QUESTION)
    finally:
        for _ in range(MOST_WAITING):
            engine._room.release()
    assert refused.value.status_code == 503
    assert "ask again in a moment" in refused.value.body["message"]
    assert refused.value.response.headers["retry-after"] == "2"
    assert said(ask(client, QUESTION)) is not None


def test_what_nobody_foresaw_is_an_error_of_the_server_and_the_next_question_is_answered(
    client, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(Session, "conversation", lambda *_, **__: 1 / 0)
        with pytest.raises(openai.InternalServerError) as failed:
            ask(client, QUESTION)
    assert failed.value.body["type"] == "server_error"
    assert "ZeroDivisionError" in failed.value.body["message"]
    assert said(ask(client, QUESTION)) is not None


@pytest.mark.slow
def test_a_checkpoint_that_was_trained_again_is_loaded_again(client, engine, monkeypatch, tmp_path):
    from model.weights import tiny

    before = said(ask(client, QUESTION))
    monkeypatch.setattr(tiny, "STD", 0.3)
    tiny.build_tiny(tmp_path / "again")
    monkeypatch.setattr(engine.library, "checkpoint", lambda _: tmp_path / "again")
    assert said(ask(client, QUESTION)) != before
