"""Asking a model that misbehaves, over the real client library and a loopback address."""

import json
import threading
from collections import deque

import pytest

from assets.endpoints.asker import Asker, SetAsideError, in_parallel
from assets.endpoints.budget import BudgetSpentError, Cost, Ledger
from assets.endpoints.dialect import Dialect
from assets.endpoints.json_answers import MalformedAnswerError, read_answer, schema_of
from assets.endpoints.openai_backend import OpenAiBackend
from assets.endpoints.options import Budget, Endpoint
from assets.endpoints.protocol import Pictures, Prompt
from assets.fetching.errors import AccessError, OperatorError, TransferError
from benchmarks.model_server import ModelServer
from model.configuration import Section
from training.formats import layout
from training.formats.storage import Storage

SECRET = "sk-very-secret"


class Colour(Section):
    colour: str


def prompt(text="Which colour?", **more):
    return Prompt("You see.", text, "colour", schema_of(Colour), **more)


class World:
    """A server, and somebody who asks it."""

    def __init__(self, server, root, budget=None, attempts=3, **settings):
        self.server, self.log = server, []
        self.storage = Storage(str(root))
        given = {"tries": 3, "backoff_s": 0.0, "timeout_s": 5.0, "longest_answer": 100, **settings}
        endpoint = Endpoint(kind="endpoint", url=server.url, model="seer", **given)
        self.ledger = Ledger(self.storage, "mine", Budget(**budget or {}))
        self.asker = Asker(
            self.storage,
            OpenAiBackend(endpoint, Dialect("seer", self.log.append), self.log.append),
            self.ledger,
            attempts,
            self.log.append,
        )

    def ask(self, text="Which colour?", **more):
        return self.asker.ask(prompt(text, **more), Colour).colour


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("HOURLLAVA_ENDPOINT_KEY", SECRET)
    opened = []

    def make(*faults, answer=lambda *_: {"colour": "red"}, refuses=None, **settings):
        server = ModelServer(answer, list(faults), refuses).__enter__()
        opened.append(server)
        return World(server, tmp_path / "root", **settings)

    yield make
    for server in opened:
        server.__exit__()


def test_nothing_is_asked_twice_also_not_by_another_process(world):
    first = world()
    assert (first.ask(), first.ask()) == ("red", "red")
    later = world()  # knows nothing but what lies below the root
    assert later.ask() == "red"
    assert (len(first.server.requests), len(later.server.requests)) == (1, 0)


def test_pictures_travel_as_data_urls_and_the_form_as_a_json_schema(world):
    seen = []
    one = world(
        answer=lambda shape, text, jpegs, seed: seen.append((shape, jpegs)) or {"colour": "red"}
    )
    one.ask(pictures=Pictures((b"\xff\xd8a", b"\xff\xd8b"), "film"))
    assert seen == [("colour", [b"\xff\xd8a", b"\xff\xd8b"])]
    (body,) = one.server.requests
    form = body["response_format"]["json_schema"]
    assert form["strict"] is True
    assert form["schema"]["required"] == ["colour"]
    assert form["schema"]["additionalProperties"] is False


@pytest.mark.parametrize("fault", ["status 429 0", "status 500", "status 503", "status 408"])
def test_a_busy_or_failing_endpoint_is_asked_again(world, fault):
    one = world(fault, fault)
    assert one.ask() == "red"
    assert len(one.server.requests) == 3


def test_a_hang_ends_after_the_time_limit_and_is_asked_again(world):
    one = world("hang", timeout_s=0.5)
    assert one.ask() == "red"
    assert "no_answer_in_time, try 1 of 3" in one.log[0]


def test_an_endpoint_that_asks_for_a_longer_wait_than_allowed_ends_the_run(world):
    one = world("status 429 600", longest_wait_s=10)
    with pytest.raises(TransferError) as told:
        one.ask()
    assert (told.value.reason, told.value.retry_after) == ("rate_limited", 600.0)
    assert len(one.server.requests) == 1


def test_after_the_last_try_the_run_ends_and_goes_on_later(world):
    one = world(*["status 500"] * 3)
    with pytest.raises(TransferError):
        one.ask()
    assert one.ask() == "red"


@pytest.mark.parametrize("fault", ["half", "not json", "refusal"])
def test_an_answer_without_the_form_is_asked_for_once_more(world, fault):
    one = world(fault)
    assert one.ask() == "red"
    assert len(one.server.requests) == 2
    if fault != "refusal":
        assert (
            "Your last answer could not be used" in one.server.requests[1]["messages"][1]["content"]
        )


def test_the_key_of_a_repaired_answer_is_that_of_the_try_that_gave_it(world):
    one = world("not json")
    _, key = one.asker.ask_with_key(prompt(), Colour)
    assert key != prompt().key("seer")
    kept = one.storage.read_json(layout.model_answer(key))
    assert kept["text"] == '{"colour": "red"}'
    assert kept["prompt"]["text"].startswith("Which colour?\n\nYour last answer could not be used")


@pytest.mark.parametrize(
    ("fault", "reason"), [("half", "cut_off"), ("not json", "malformed"), ("refusal", "refused")]
)
def test_what_stays_without_the_form_is_set_aside_with_its_reason_and_not_asked_again(
    world, fault, reason
):
    one = world(*[fault] * 3)
    for _ in range(2):
        with pytest.raises(SetAsideError, match=f"^{reason}$"):
            one.ask()
    assert len(one.server.requests) == 3


def test_json_within_prose_is_read(world):
    assert world("prose").ask() == "red"


def test_a_key_is_sent_and_told_to_nobody(world):
    one = world("status 401")
    with pytest.raises(AccessError) as told:
        one.ask()
    assert one.server.requests[0]["authorization"] == f"Bearer {SECRET}"
    busy = world(*["status 500"] * 3)  # this endpoint repeats the key in its error
    with pytest.raises(TransferError) as failed:
        busy.ask("Else?")
    assert "HOURLLAVA_ENDPOINT_KEY" in str(told.value)
    kept = [*one.log, *busy.log, str(told.value), str(failed.value)]
    assert not [line for line in kept if SECRET in line]


def test_an_unknown_model_is_for_the_operator(world):
    with pytest.raises(OperatorError, match="no model 'seer'"):
        world("status 404").ask()


def test_a_prompt_that_the_endpoint_refuses_is_set_aside_alone(world):
    one = world("status 422")
    with pytest.raises(SetAsideError, match="refused_with_422"):
        one.ask()
    assert one.ask("Another?") == "red"


@pytest.mark.parametrize(
    "budget", [{"requests": 2}, {"tokens": 460}, {"money": 0.00046}], ids=lambda b: next(iter(b))
)
def test_a_run_stops_before_its_budget_is_passed(world, budget):
    one = world(budget=budget, input_price=1.0, output_price=1.0)
    with pytest.raises(BudgetSpentError, match=f"questions.budget.{next(iter(budget))} is"):
        deque(one.ask(f"Question {number}?") for number in range(50))
    assert 0 < len(one.server.requests) < 50
    (name, limit), *_ = budget.items()
    assert getattr(one.ledger.spent, name) <= limit
    again = world(budget=budget, input_price=1.0, output_price=1.0)
    assert again.ask("Question 0?") == "red"  # what was answered costs nothing
    with pytest.raises(BudgetSpentError):
        again.ask("Something new?")


def test_a_process_that_is_killed_while_it_asks_has_counted_too_much_and_not_too_little(tmp_path):
    storage = Storage(str(tmp_path))
    ledger = Ledger(storage, "mine", Budget(requests=1))
    ledger.reserve(Cost(1, 100, 0.0))  # and killed before the answer came
    assert Ledger(storage, "mine", Budget()).spent == Cost(1, 100, 0.0)
    with pytest.raises(BudgetSpentError):
        Ledger(storage, "mine", Budget(requests=1)).reserve(Cost(1, 1, 0.0))


def test_two_steps_that_ask_about_one_source_share_its_budget(tmp_path):
    storage = Storage(str(tmp_path))
    captions = Ledger(storage, "mine", Budget(requests=3))
    questions = Ledger(storage, "mine", Budget(requests=3))
    for ledger in (captions, questions, captions):
        ledger.reserve(Cost(1, 100))
        ledger.settle(Cost(1, 100), Cost(1, 40))
    with pytest.raises(BudgetSpentError, match="3 requests, 120 tokens are spent"):
        questions.reserve(Cost(1, 1))
    assert Ledger(storage, "mine", Budget()).spent == Cost(3, 120)


def test_a_stored_answer_that_is_damaged_is_asked_for_again(world):
    one = world()
    one.ask()
    rel = layout.model_answer(prompt().key("seer"))
    one.storage.write_bytes(rel, b"{")
    assert one.ask() == "red"
    assert len(one.server.requests) == 2
    assert json.loads(one.storage.read_bytes(rel))["text"] == '{"colour": "red"}'


def test_after_an_error_no_further_job_begins_and_those_under_way_end(world):
    begun, ended, failing = [], [], threading.Event()

    def job(number):
        begun.append(number)
        if number == 1:
            failing.set()
            raise TransferError("transient", "connection", "gone")
        failing.wait(10)
        ended.append(number)

    with pytest.raises(TransferError):
        in_parallel(((lambda n=n: job(n)) for n in range(100)), 2)
    assert 0 in ended
    assert set(begun) == {*ended, 1}
    assert len(begun) < 10


@pytest.mark.parametrize(
    "text", ["", "{", '{"colour": 3}', "[1]", '{"colour": "red", "path": "/etc"}', "{" * 100_000]
)
def test_what_has_not_the_form_is_a_fault_in_words(text):
    with pytest.raises(MalformedAnswerError):
        read_answer(text, Colour)
