"""Endpoints that refuse a parameter, over the real client library and a loopback address."""

import json
import threading

import pytest

from assets.endpoints.asker import Asker, SetAsideError, in_parallel
from assets.endpoints.budget import Ledger
from assets.endpoints.dialect import WAYS, Dialect, Refusal
from assets.endpoints.json_answers import schema_of
from assets.endpoints.openai_backend import OpenAiBackend
from assets.endpoints.options import Budget, Endpoint
from assets.endpoints.protocol import Pictures, Prompt
from assets.fetching.errors import AccessError, OperatorError
from benchmarks.model_server import REFUSALS, ModelServer, refusal
from model.configuration import Section
from training.formats.storage import Storage


class Colour(Section):
    colour: str


class World:
    """Somebody who asks an endpoint that does not take everything."""

    def __init__(self, server, root, dialect=None, **settings):
        self.server, self.log = server, []
        given = {"tries": 2, "backoff_s": 0.0, "longest_answer": 100, "detail": "low", **settings}
        endpoint = Endpoint(kind="endpoint", url=server.url, model="seer", **given)
        self.dialect = dialect or Dialect("seer", self.log.append)
        backend = OpenAiBackend(endpoint, self.dialect, self.log.append)
        storage = Storage(str(root))
        self.ledger = Ledger(storage, "mine", Budget())
        self.asker = Asker(storage, backend, self.ledger, 2, self.log.append)

    def ask(self, text="Which colour?"):
        pictures = Pictures((b"\xff\xd8",), "film")
        prompt = Prompt("You see.", text, "colour", schema_of(Colour), pictures)
        return self.asker.ask(prompt, Colour).colour

    def said(self, n):
        """The parameters of a request, `response_format` by its type, and of its picture."""
        body = self.server.requests[n]
        picture = body["messages"][1]["content"][0]["image_url"]
        form = body.get("response_format", {}).get("type")
        return (body.keys() | picture.keys() | {form}) & {w for ways in WAYS.values() for w in ways}


@pytest.fixture
def world(tmp_path):
    opened = []

    def make(refuses=None, faults=(), **settings):
        server = ModelServer(lambda *_: {"colour": "red"}, list(faults), refuses).__enter__()
        opened.append(server)
        return World(server, tmp_path / "root", **settings)

    yield make
    for server in opened:
        server.__exit__()


ALL = {"max_tokens", "temperature", "seed", "json_schema", "detail"}


@pytest.mark.parametrize("shape", REFUSALS)
@pytest.mark.parametrize(
    ("parameter", "instead"),
    [
        ("max_tokens", {"max_completion_tokens"}),
        ("temperature", set()),
        ("seed", set()),
        ("response_format", {"json_object"}),
        ("json_schema", {"json_object"}),
        ("detail", set()),
    ],
)
def test_a_refused_parameter_is_learned_once_and_the_next_best_way_is_taken(
    world, shape, parameter, instead
):
    # A server that knows the parameter refuses one kind of it, and another takes none at all.
    refused = "json_schema" if parameter == "response_format" else parameter
    one = world({refused: shape})
    if parameter != refused:
        one.server.refuses = {}
        status, body = refusal(shape, parameter)
        one.server.faults = [f"body {status} {json.dumps(body)}"]
    assert [one.ask(), one.ask("And now?")] == ["red", "red"]
    taken = ALL - {"json_schema" if instead == {"json_object"} else parameter} | instead
    assert [one.said(n) for n in range(len(one.server.requests))] == [ALL, taken, taken]
    (line,) = one.log
    way = "json_schema" if instead == {"json_object"} else parameter
    assert line.startswith(f"seer does not take {way}; from now on it is asked with")
    assert parameter in line.partition("It says: ")[2]
    assert one.ledger.spent.requests == 3  # a refusal is a request, too


def test_an_endpoint_that_refuses_all_that_it_may_is_asked_for_an_answer_all_the_same(world):
    shapes = dict(zip(["seed", "temperature", "max_tokens", "detail"], REFUSALS, strict=False))
    one = world({**shapes, "json_schema": "google", "json_object": "a word"})
    assert one.ask() == "red"
    assert one.said(-1) == {"max_completion_tokens"}
    assert len(one.server.requests) == 7
    text = one.server.requests[-1]["messages"][1]["content"][1]["text"]
    assert '"required": ["colour"]' in text  # the form is told in words


def test_what_one_has_learned_all_who_ask_the_same_model_know(world, tmp_path):
    one = world({"seed": "openai"}, concurrency=8)
    jobs = [lambda n=n: one.ask(f"Question {n}?") for n in range(32)]
    assert in_parallel(jobs, 8) == ["red"] * 32
    assert len(one.log) == 1
    assert 33 <= len(one.server.requests) <= 40  # those that were under way when it was learned
    other = World(one.server, tmp_path / "root", one.dialect, longest_answer=50)
    before = len(one.server.requests)
    assert other.ask("Another?") == "red"
    assert len(one.server.requests) == before + 1


def test_who_takes_no_bound_of_an_answer_is_for_the_operator_after_two_requests(world):
    one = world({"max_tokens": "openai", "max_completion_tokens": "vllm"})
    with pytest.raises(OperatorError, match="takes none of max_tokens, max_completion_tokens"):
        one.ask()
    assert len(one.server.requests) == 2


@pytest.mark.parametrize(
    "said",
    [
        "max_tokens is too large: 100. This model supports at most 50 completion tokens.",
        "'max_tokens' or 'max_completion_tokens' is too large: 100. This model's maximum context "
        "length is 64 tokens and your request has 80 input tokens.",
        "the prompt is not allowed here",
    ],
)
def test_a_prompt_that_is_refused_for_itself_costs_itself_and_teaches_nothing(world, said):
    one = world(faults=[f'body 400 {{"error": {{"message": "{said}", "code": "bad"}}}}'])
    with pytest.raises(SetAsideError, match="refused_with_400"):
        one.ask()
    assert one.ask("Another?") == "red"
    assert one.said(-1) == ALL
    (line,) = one.log  # an operator can read why
    assert said[:40] in line


@pytest.mark.parametrize("fault", ['body 402 {"error": "no"}', "quota"])
def test_an_account_without_credit_ends_the_run_at_once(world, fault):
    if fault == "quota":
        fault = 'body 429 {"error": {"message": "quota", "code": "insufficient_quota"}}'
    one = world(faults=[fault])
    with pytest.raises(AccessError, match="nothing is left to pay with"):
        one.ask()
    assert len(one.server.requests) == 1


def test_what_a_server_repeats_of_a_prompt_is_no_word_of_its_own():
    echo = {"detail": [{"loc": ["body", "stop"], "msg": "unknown", "input": "the seed grows"}]}
    learned = []
    dialect = Dialect("seer", learned.append)
    assert not dialect.learn({"seed": "seed"}, Refusal.of(echo))
    deep = []
    for _ in range(10_000):
        deep = [deep]
    assert not dialect.learn({"seed": "seed"}, Refusal.of(deep))
    assert learned == []


@pytest.mark.parametrize("refused", [["seed"], ["max_tokens", "max_completion_tokens"]])
def test_a_key_that_a_refusal_repeats_is_told_to_nobody(world, monkeypatch, refused):
    monkeypatch.setenv("HOURLLAVA_ENDPOINT_KEY", "sk-very-secret")
    said = [{"error": f"{name} is not supported with\n sk-very-secret"} for name in refused]
    one = world(faults=[f"body 400 {json.dumps(body)}" for body in said])
    told = one.log
    if refused == ["seed"]:
        assert one.ask() == "red"
    else:
        with pytest.raises(OperatorError) as raised:
            one.ask()
        told = [*one.log, str(raised.value)]
    for name, line in zip(refused, told, strict=True):
        assert f"{name} is not supported with ***" in line
    assert not [line for line in told if "sk-very" in line]


def test_threads_that_learn_the_same_take_one_step():
    told = []
    dialect = Dialect("seer", told.append)
    refusal = Refusal.of({"message": "max_tokens is not supported"})
    sent = dict(dialect.ways)
    threads = [threading.Thread(target=dialect.learn, args=(sent, refusal)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dialect.ways["limit"] == "max_completion_tokens"
    assert len(told) == 1
