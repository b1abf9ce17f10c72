"""The doctor looks at captions and questions: who is asked, who answers, what may be spent."""

import json
import socket

import pytest
import yaml

from assets.deployment.settings import load_settings
from assets.sources.findings import MISSING, NOTE, OK
from benchmarks.model_server import ModelServer
from pipeline.doctor.endpoints import check_questions
from pipeline.doctor.report import CHECKS, Asked
from training.formats import layout

SECRET = "sk-very-secret"


@pytest.fixture
def server():
    with ModelServer(None) as one:
        yield one


@pytest.fixture
def look(tmp_path, monkeypatch):
    """What the doctor finds, by check, for a section `questions` of the settings."""
    monkeypatch.delenv("HOURLLAVA_ENDPOINT_KEY", raising=False)

    def found(**questions):
        path = tmp_path / "deployment.yaml"
        settings = {
            "root": "root",
            "landing": "landing",
            "sources": {"mine": {"kind": "drop", "folder": "videos"}},
            "questions": {"sources": ["mine"], **questions},
        }
        path.write_text(yaml.safe_dump(settings))
        return {one.what: one for one in check_questions(load_settings(path))}

    return found


def endpoint(server, **more):
    return {"kind": "endpoint", "url": server.url, "model": "painter", **more}


def test_it_is_one_of_the_doctors_checks(look, tmp_path):
    assert look(sources=[])["questions"].found.startswith("no videos are to be asked about")
    asked = Asked(load_settings(tmp_path / "deployment.yaml"), tmp_path, 1, None)
    cheap = [check for check in CHECKS if "check_questions" in check.__code__.co_names]
    assert [finding.what for check in cheap for finding in check(asked)] == ["questions"]


def test_an_endpoint_that_answers_and_lists_the_model_is_well_and_was_asked_for_nothing(
    look, server, monkeypatch
):
    monkeypatch.setenv("MY_KEY", SECRET)
    found = look(describer=endpoint(server, key_from="MY_KEY"), budget={"requests": 10})
    assert {one.state for one in found.values()} == {OK}
    assert found["describer"].found == f"{server.url} answers, and lists painter"
    assert found["key of describer"].found == "MY_KEY is set"
    assert [request["path"] for request in server.requests] == ["/v1/models"]
    assert SECRET not in repr(found)


def test_a_model_that_is_not_listed_is_missing_and_the_listed_ones_are_told_plainly(look, server):
    server.models = ["other\x1b[31m", *"abcdef"]
    found = look(describer=endpoint(server))["describer"]
    assert found.state == MISSING
    assert found.found.endswith("it lists other[31m, a, b, c, d and 2 more")


@pytest.mark.parametrize(
    ("fault", "state", "said"),
    [
        ("status 401", MISSING, "refuses the key (HTTP 401)"),
        ("status 503", MISSING, "HTTP 503"),
        ("status 404", MISSING, "is no address of the protocol"),
        ("status 405", NOTE, "lists no models"),
    ],
)
def test_an_endpoint_that_refuses_is_told_with_what_it_says_and_without_the_key(
    look, server, monkeypatch, fault, state, said
):
    monkeypatch.setenv("HOURLLAVA_ENDPOINT_KEY", SECRET)
    server.faults = [fault]
    found = look(describer=endpoint(server))
    assert found["describer"].state == state
    assert said in found["describer"].found
    assert SECRET not in repr(found)


def test_nobody_there_is_missing_and_a_key_that_is_not_set_is_a_note(look):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    found = look(describer={"kind": "endpoint", "url": url, "model": "m"})
    assert found["describer"].state == MISSING
    assert "start the endpoint" in found["describer"].advice
    assert found["key of describer"].state == NOTE


def test_a_writer_and_an_embedder_are_looked_at_too_and_a_local_checkpoint_by_its_folder(
    look, server, tmp_path
):
    asked = {
        "describer": {"kind": "local", "checkpoint": "given"},
        "writer": endpoint(server),
        "embedder": {"url": server.url, "model": "vectors"},
    }
    found = look(**asked)
    states = {name: found[name].state for name in ("describer", "writer", "embedder")}
    assert states == {"describer": MISSING, "writer": OK, "embedder": MISSING}
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "config.json").write_text("{}")
    assert look(**asked)["describer"].state == OK


def test_what_is_left_of_a_budget_is_what_was_not_spent(look, server, tmp_path):
    asked = {"describer": endpoint(server, input_price=1.0)}
    assert look(**asked)["budget of mine"].state == NOTE  # nothing bounds it
    spent = tmp_path / "root" / layout.spent("mine")
    spent.parent.mkdir(parents=True)
    spent.write_text(json.dumps({"requests": 40, "tokens": 900, "money": 0.25}))
    budget = {"requests": 100, "tokens": 100_000_000, "money": 1.0}
    found = look(**asked, budget=budget)["budget of mine"]
    said = "60 of 100 requests, 99,999,100 of 100,000,000 tokens, 0.75 of 1 money left"
    assert (found.state, found.found) == (OK, said)
    assert look(**asked, budget={"tokens": 900})["budget of mine"].state == NOTE
    spent.write_text("{")
    assert look(**asked)["budget of mine"].state == MISSING
