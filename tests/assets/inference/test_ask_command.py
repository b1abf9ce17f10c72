"""`hourllava ask`: a file, a URL or features; one question or many; errors that say what to do."""

from __future__ import annotations

import io
import shutil
import sys

import numpy as np
import pytest
import torch

from assets.inference.checkpoint import encoder_hash, find_checkpoint
from model.config import PRESETS
from model.weights.convert import publish
from pipeline.cli import main
from tests.model.media import tricky
from tests.servers.faulty import Fault, FaultyMediaServer, in_turn
from training.formats.feature_file import write_features

QUESTION = "What colour is the square?"


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A tiny checkpoint whose random weights are so large that every question gets an answer of its
    own.
    """
    from model.weights import tiny

    folder = tmp_path_factory.mktemp("talkative") / "export"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "STD", 0.15)
        tiny.build_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def server(media):
    (media / "page.mp4").write_bytes(b"<html>no video</html>")
    with FaultyMediaServer(media) as server:
        yield server


@pytest.fixture
def ask(export, capfd):
    """Run the command on the CPU: exit code, what it answered, what it told."""

    def run(video, *arguments, checkpoint=export):
        status = main(
            ["ask", str(video), *arguments, "--checkpoint", str(checkpoint), "--device", "cpu"]
        )
        return status, *capfd.readouterr()

    return run


def allow(server: FaultyMediaServer) -> tuple[str, str]:
    return "--allow-host", f"127.0.0.1:{server.port}"


def feature_file(path, tokens=16, width=64, **metadata):
    features = torch.randn(18, tokens, width, generator=torch.Generator().manual_seed(0))
    write_features(
        path, features, np.arange(18, dtype=np.float32), {"duration": "18.0", **metadata}
    )
    return path


@pytest.mark.slow
def test_a_file_and_its_url_get_the_same_answer_and_the_time_to_the_first_token(ask, media, server):
    status, answer, told = ask(media / "short.mp4", QUESTION, "--longest", "8")
    assert status == 0
    assert answer.strip()
    assert "video of 18 s, 18 frames" in told
    assert "first token" in told
    assert ask(f"{server.url}/short.mp4", QUESTION, "--longest", "8", *allow(server))[:2] == (
        0,
        answer,
    )
    assert ask(media / "long.mp4", QUESTION, "--longest", "8")[1] != answer


def test_features_of_the_checkpoints_own_encoder_are_taken(ask, export, tmp_path):
    path = feature_file(tmp_path / "own.safetensors", encoder=encoder_hash(export))
    assert ask(path, QUESTION, "--longest", "4")[0] == 0


@pytest.mark.slow
def test_questions_on_standard_input_are_answered_one_by_one_like_alone(ask, media, monkeypatch):
    alone = [
        ask(media / "short.mp4", text, "--longest", "6")[1] for text in ("Is it night?", QUESTION)
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"Is it night?\n\n  {QUESTION}  \n"))
    status, answers, told = ask(media / "short.mp4", "--longest", "6")
    assert alone[0] != alone[1]
    assert (status, answers) == (0, "".join(alone))
    assert told.count("first token") == 2


@pytest.mark.slow
def test_a_question_that_is_too_long_costs_no_other(ask, media, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{'why ' * 5000}\n{QUESTION}\n"))
    status, answers, told = ask(media / "short.mp4", "--longest", "6")
    assert status == 2
    assert answers == ask(media / "short.mp4", QUESTION, "--longest", "6")[1]
    assert "4096" in told


@pytest.mark.slow
def test_a_released_checkpoint_is_converted_once_and_answers_like_the_export(
    ask, export, media, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    publish(export, tmp_path / "released")
    first = ask(media / "short.mp4", QUESTION, "--longest", "8", checkpoint=tmp_path / "released")
    assert first[:2] == ask(media / "short.mp4", QUESTION, "--longest", "8")[:2]
    assert "released tiny checkpoint" in first[2]
    again = ask(media / "short.mp4", QUESTION, "--longest", "8", checkpoint=tmp_path / "released")
    assert again[:2] == first[:2]
    assert "released" not in again[2]


def test_the_folder_of_a_run_stands_for_its_export(export, tmp_path):
    shutil.copytree(export, tmp_path / "run" / "export")
    assert find_checkpoint(tmp_path / "run", print) == tmp_path / "run" / "export"


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ("nowhere/gone.mp4", r"nowhere/gone.mp4: no such file"),
        ("file:///etc/hostname", "only http and https"),
        ("ftp://example.org/a.mp4", "only http and https"),
        ("https://youtu.be/dQw4w9WgXcQ", "--accept-youtube-terms"),
        ("http://169.254.169.254/latest/meta-data", "not a public address"),
        ("http://localhost:8000/a.mp4", "is this machine"),
        ("http://[::1]/a.mp4", "not a public address"),
    ],
)
def test_what_must_not_or_cannot_be_had_is_refused_by_name(ask, video, message):
    status, answer, told = ask(video, QUESTION)
    assert (status, answer) == (2, "")
    assert message in told
    assert video in told


def test_an_internal_server_is_not_asked_unless_it_is_allowed(ask, server):
    before = len(server.log)
    status, _, told = ask(f"{server.url}/short.mp4", QUESTION)
    assert status == 2
    assert "not a public address" in told
    assert len(server.log) == before


def test_a_redirect_to_an_internal_address_is_not_followed(ask, server, media):
    with FaultyMediaServer(
        media, faults=in_turn({".*": [Fault.redirect(f"{server.url}/short.mp4")] * 9})
    ) as door:
        before = len(server.log)
        status, _, told = ask(f"{door.url}/short.mp4", QUESTION, *allow(door))
    assert status == 2
    assert "not a public address" in told
    assert len(server.log) == before


@pytest.mark.parametrize(
    ("name", "message"), [("gone.mp4", "http_404"), ("page.mp4", "not fetched|no usable video")]
)
def test_a_url_without_a_video_is_told_with_its_reason(ask, server, name, message):
    status, answer, told = ask(f"{server.url}/{name}", QUESTION, *allow(server))
    assert (status, answer) == (2, "")
    assert any(part in told for part in message.split("|"))
    assert name in told


def test_a_download_that_is_cut_short_is_not_taken_for_the_video(ask, server, media, tmp_path):
    (tmp_path / "half.mp4").write_bytes((media / "long.mp4").read_bytes()[:20_000])
    with FaultyMediaServer(tmp_path) as door:
        status, _, told = ask(f"{door.url}/half.mp4", QUESTION, *allow(door))
    assert status == 2
    assert "no usable video (truncated)" in told


def test_features_of_another_variant_or_encoder_are_named(ask, tmp_path):
    other = feature_file(
        tmp_path / "7b.safetensors", tokens=64, width=PRESETS["7b"].vision.hidden_size
    )
    status, _, told = ask(other, QUESTION)
    assert status == 2
    assert "features of another variant" in told
    stranger = feature_file(tmp_path / "stranger.safetensors", encoder="0" * 64)
    status, _, told = ask(stranger, QUESTION)
    assert status == 2
    assert "another vision encoder" in told
    assert ask(stranger, QUESTION, "--longest", "4", "--any-encoder")[0] == 0


def test_a_folder_that_is_no_checkpoint_is_named_before_anything_is_fetched(
    ask, server, media, tmp_path
):
    before = len(server.log)
    for folder, message in (
        (media, "no config.json"),
        (tmp_path / "gone", "no such checkpoint folder"),
    ):
        status, _, told = ask(
            f"{server.url}/short.mp4", QUESTION, *allow(server), checkpoint=folder
        )
        assert status == 2
        assert message in told
    (tmp_path / "config.json").write_text('{"hidden_size": 7}')
    status, _, told = ask(media / "short.mp4", QUESTION, checkpoint=tmp_path)
    assert status == 2
    assert "neither an export of ours nor a released Hour-LLaVA checkpoint" in told
    assert len(server.log) == before


@pytest.mark.slow
def test_damage_is_told_before_the_answer_and_too_much_of_it_is_no_video(ask, tmp_path):
    hurt = tricky.by_name("flipped_bits.mp4", tmp_path)
    status, answer, told = ask(hurt, QUESTION, "--longest", "4")
    assert (status, bool(answer)) == (0, True)
    assert "the video is damaged (" in told
    status, answer, told = ask(tricky.by_name("zeroed_stretch.mp4", tmp_path), QUESTION)
    assert (status, answer) == (2, "")
    assert "too_corrupt" in told


def test_what_is_told_at_once_costs_no_checkpoint(ask, media, tmp_path, capfd):
    gone = tmp_path / "gone"
    for video, question, message in (
        (media / "short.mp4", "  ", "the question is empty"),
        (media, QUESTION, "a folder; give one video file of it"),
    ):
        status, answer, told = ask(video, question, checkpoint=gone)
        assert (status, answer) == (2, "")
        assert message in told
        assert len(told.splitlines()) == 1
    with pytest.raises(SystemExit) as refused:
        ask(media / "short.mp4", QUESTION, "--longest", "0")
    assert refused.value.code == 2
    assert "0 is not at least 1" in capfd.readouterr().err


@pytest.mark.slow
def test_an_empty_answer_is_told(ask, media, monkeypatch):
    monkeypatch.setattr("assets.inference.session.Session.continued", lambda *_: iter(()))
    status, answer, told = ask(media / "short.mp4", QUESTION)
    assert (status, answer) == (0, "\n")
    assert "the answer is empty" in told


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [(KeyboardInterrupt, 130, "stopped"), (BrokenPipeError, 141, "nobody reads the output")],
)
def test_ctrl_c_and_a_closed_pipe_end_it_in_one_line(
    ask, media, monkeypatch, error, status, message
):
    monkeypatch.setattr("assets.inference.fetch.check_named", lambda *_: _raise(error))
    monkeypatch.setattr("os.dup2", lambda *_: None)  # the test's own output stays
    found, answer, told = ask(media / "short.mp4", QUESTION)
    assert (found, answer) == (status, "")
    assert told.strip() == f"hourllava ask: {message}" + (" any more" if "reads" in message else "")


@pytest.mark.slow
def test_subtitles_are_part_of_the_question(ask, media, tmp_path):
    said = tmp_path / "short.srt"
    said.write_text("00:00:01,000 --> 00:00:02,000\nThe square is red\n")
    alone = ask(media / "short.mp4", QUESTION, "--longest", "8")
    with_them = ask(media / "short.mp4", QUESTION, "--longest", "8", "--subtitles", str(said))
    assert with_them[0] == 0
    assert with_them[1] != alone[1]
    status, _, told = ask(media / "short.mp4", QUESTION, "--subtitles", str(tmp_path / "gone.srt"))
    assert status == 2
    assert "gone.srt: no such file" in told


def _raise(error):
    raise error


@pytest.mark.slow
def test_how_it_is_asked_can_be_chosen_and_changes_the_answer(ask, media):
    usual = ask(media / "short.mp4", QUESTION, "--longest", "8")[1]
    shares = [
        ask(media / "short.mp4", QUESTION, "--longest", "8", "--memory-scale", share)[1]
        for share in ("1/3", "0.3333", "1")
    ]
    assert shares[0] == shares[1] != usual == shares[2]
    for option, value in (("--kept-frames", "1"), ("--forgetting-seed", "1")):
        chosen = [ask(media / "short.mp4", QUESTION, "--longest", "8", option, value) for _ in "ab"]
        assert chosen[0][1] == chosen[1][1] != usual


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--memory-scale", "0.4", "memory_scale is 0.4; it must be 1, 1/2, 1/3, ... or 0"),
        ("--memory-scale", "1/0", "'1/0' is neither a number nor a fraction"),
        ("--kept-frames", "0", "0 is not at least 1"),
        ("--template-tokens", "some", "invalid choice: 'some'"),
        ("--forgetting-seed", "-1", "forgetting_seed is -1"),
    ],
)
def test_an_option_that_has_no_meaning_is_told_before_anything_is_loaded(
    ask, media, capfd, option, value, message
):
    try:
        status, _, told = ask(media / "short.mp4", QUESTION, f"{option}={value}", checkpoint="gone")
    except SystemExit as ended:  # what the parser of the command line refuses
        status, told = ended.code, capfd.readouterr().err
    assert status == 2
    assert message in told
