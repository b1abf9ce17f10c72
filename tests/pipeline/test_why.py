"""Why is this video not in my shards? The answer is true at every step of the way."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import dagster as dg
import pytest
import yaml

from assets.annotations.build import build_catalogue
from assets.annotations.catalogue import Catalogue
from assets.annotations.collect import collect_annotations
from assets.conversations.grouping import group_part
from assets.records.lineage import Lineage
from assets.records.provenance import NotFoundError
from assets.records.withdrawals import Withdrawal, Withdrawals
from assets.shards.writer import write_long_video_part
from assets.tracing.names import find_video
from pipeline.cli import main
from pipeline.demo.servers import MediaServer
from pipeline.why import why
from tests.servers.clips import clip
from tests.servers.world import acquire, catalogued, make_settings, question, quiet
from training.formats.storage import Storage


@pytest.fixture
def world(tmp_path: Path):
    served = tmp_path / "served"
    served.mkdir()
    (served / "v0.mp4").write_bytes(clip(0))
    with MediaServer(served) as media:
        rows = [question(f"v{n}.mp4", "web", f"{media.url}/v{n}.mp4") for n in range(3)]
        rows += [question("lost", "vimeo"), {**question("mute", "web"), "answer": ""}]
        settings = make_settings(
            tmp_path,
            {"web": {"kind": "url", "hosts": [f"127.0.0.1:{media.port}"]}},
            rows,
            variants=["tiny"],
        )
        yield Storage(settings.root), settings


def answer(world, video: str) -> str:
    return "\n".join(why(*world, video))


def test_every_step_of_a_videos_way_is_told(world):
    storage, settings = world
    assert "materialize annotations" in answer(world, "web/v0")
    collect_annotations(storage, settings, quiet)
    assert "1 question-answer pairs, but it is not catalogued" in answer(world, "v0")
    build_catalogue(storage, settings, quiet)
    assert "pending" in answer(world, "web/v0")
    assert "materialize videos" in answer(world, "web/v0")
    acquire(storage, settings, "web")
    assert "VideoMarathon/videos/web/v0.mp4, 0.1 min, h264 96x64" in answer(world, "v0")
    assert "materialize conversations" in answer(world, "v0")
    group_part(storage, settings, 0, quiet)
    text = answer(world, "web/v0.mp4")
    assert "conversations: 1 samples" in text
    assert "features for tiny: not extracted yet" in text
    assert "shards: not written yet" in text
    storage.write_bytes("VideoMarathon/features/tiny/web/v0.safetensors", b"")
    assert "features for tiny: there" in answer(world, "v0")
    storage.remove("VideoMarathon/features/tiny/web/v0.safetensors")
    storage.write_json(
        "VideoMarathon/features/tiny/web/v0.quarantine.json",
        {"reason": "too_long", "detail": "9 h"},
    )
    assert "features for tiny: refused, too_long: 9 h" in answer(world, "v0")
    storage.remove("VideoMarathon/videos/web/v0.mp4")
    assert "the file is gone" in answer(world, "v0")


def test_failures_come_with_what_can_be_done(world):
    storage, settings = world
    collect_annotations(storage, settings, quiet)
    build_catalogue(storage, settings, quiet)
    acquire(storage, settings, "web")
    assert "permanent, http_404" in answer(world, "v1")
    assert "download.retry lists http_404" in answer(world, "v1")
    with Catalogue(storage, "web", "part0") as catalogue:
        catalogue.update("v2", status="permanent", reason="geo", message="not in your country")
    assert "HTTPS_PROXY" in answer(world, "v2")


def test_videos_that_no_usable_row_asks_for(world):
    storage, settings = world
    collect_annotations(storage, settings, quiet)
    build_catalogue(storage, settings, quiet)
    assert "qa.jsonl, row 3: unknown_source" in answer(world, "lost")
    assert "sources are web" in answer(world, "vimeo/lost")
    assert "no_answer" in answer(world, "mute")
    with pytest.raises(NotFoundError, match=r"no annotation file asks for it \(qa\.jsonl\)"):
        answer(world, "web/never-heard-of")


def test_a_part_that_was_given_up_and_a_withdrawn_video_are_told_with_their_reasons(world):
    storage, settings = world
    collect_annotations(storage, settings, quiet)
    build_catalogue(storage, settings, quiet)
    at = "2026-01-02T03:04:05Z"
    Withdrawals(
        {"part0": Withdrawal("no videos", at)}, {"web/v2": Withdrawal("asked for", at)}
    ).write(storage)
    assert f"part0 was given up {at}: no videos; nothing is trained on it" in answer(world, "v1")
    assert answer(world, "v2") == f"web/v2: withdrawn {at}: asked for"


@pytest.mark.slow
def test_the_shards_themselves_are_looked_into(world):
    storage, settings = world

    collect_annotations(storage, settings, quiet)
    build_catalogue(storage, settings, quiet)
    acquire(storage, settings, "web")
    group_part(storage, settings, 0, quiet)
    write_long_video_part(storage, settings, 0, quiet)
    assert (
        "shards: 1 of its 1 samples are in VideoMarathon/sharding/videomarathon_video_part0"
        in answer(world, "web/v0")
    )


@pytest.fixture
def command(world, tmp_path, capsys):
    """Runs a command of `hourllava` on the world: (exit code, what it prints)."""
    storage, settings = world
    collect_annotations(storage, settings, quiet)
    build_catalogue(storage, settings, quiet)
    acquire(storage, settings, "web")
    group_part(storage, settings, 0, quiet)
    Lineage("videos[part0|web]", "v").write(storage)
    inputs = {"videos[part0|web]": "v"}
    Lineage("conversations[part0]", "c", inputs=inputs).write(storage)
    Lineage("videomarathon_video[part0]", "s", inputs={"conversations[part0]": "c"}).write(storage)
    config = tmp_path / "settings.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_unset=True)))

    def run(*words: str) -> tuple[int, str]:
        code = main([*words, "--config", str(config)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_a_video_that_was_never_fetched_is_in_no_product_and_its_lineage_says_so(command):
    code, said = command("lineage", "v1")
    assert code == 0
    assert "web/v1, part0: permanent, http_404" in said
    assert "annotations: 1 question-answer pairs" in said
    assert "conversations[part0]: 1 rows without a sample" in said
    assert "videomarathon_video" not in said
    assert "videos[part0|web]" not in said


@pytest.mark.parametrize(
    "named", ["v0", "web/v0", "v0.mp4", "VideoMarathon/videos/web/v0.mp4", "{root}"]
)
def test_lineage_and_why_know_a_video_by_all_its_names(command, world, named):
    storage, _ = world
    named = storage.path("VideoMarathon/videos/web/v0.mp4") if named == "{root}" else named
    code, said = command("lineage", named)
    assert code == 0
    assert "videos[part0|web]: the video, in VideoMarathon/videos/web/v0.mp4" in said
    assert "conversations[part0]: 1 samples" in said
    code, said = command("why", named)
    assert code == 0
    assert "conversations: 1 samples" in said


def test_exit_codes_say_found_and_not_found(command):
    assert command("lineage", "videomarathon")[0] == 0  # the beginning of one product's name
    code, said = command("lineage", "never-heard-of")
    assert code == 1
    assert "neither a product, nor a path inside of one, nor a catalogued video" in said
    code, said = command("why", "never-heard-of")
    assert code == 1
    assert "no annotation file asks for it" in said
    assert command("bill", "stage7")[0] == 1
    code, said = command("bill", "conversations")
    assert code == 2
    assert "only the training stages have one" in said


def test_a_video_can_be_looked_up_in_the_ui(command, world, tmp_path):
    """The fixture leaves a settings file, which the job reads as a deployment does."""
    from pipeline.definitions import definitions

    def look_up(video: str) -> dg.ExecuteInProcessResult:
        config = {"config": {"config": str(tmp_path / "settings.yaml")}}
        return (
            definitions()
            .resolve_job_def("look_up_video")
            .execute_in_process(
                run_config={
                    "ops": {"look_up": {"config": {"video": video}}},
                    "resources": {"deployment": config},
                },
                raise_on_error=False,
            )
        )

    result = look_up("v0")
    assert result.success
    (event,) = [event for event in result.all_events if event.is_successful_output]
    shown = event.step_output_data.metadata
    held = {row.data["product"] for row in shown["what holds it"].value.records}
    assert held >= {"videos[part0|web]", "conversations[part0]"}
    link = "](/assets/videos?partition=part0%7Cweb)"
    assert link in shown["pages"].value
    assert not look_up("never-heard-of").success


@pytest.mark.parametrize(
    "asked",
    [
        "plain.MP4",
        "Plain.mp4",
        "web/PLAIN",
        "plain",
        "plain.M2TS",
        "C:\\films\\plain.mp4",
        "holiday/plain.mov",
        "/elsewhere/Plain.mp4",
    ],
)
def test_a_video_is_found_by_the_name_of_its_file_as_people_have_it(asked, tmp_path):
    settings = make_settings(tmp_path, {"web": {"kind": "url"}}, [question("plain.mp4", "web")])
    storage = Storage(settings.root)
    collect_annotations(storage, settings, quiet)
    build_catalogue(storage, settings, quiet)
    assert why(storage, settings, asked)[0] == "web/plain, part0: 1 question-answer pairs"


def test_the_name_itself_comes_before_names_like_it(tmp_path):
    rows = [question(name, "web") for name in ("a", "A", "x/b", "café")]
    settings = make_settings(tmp_path, {"web": {"kind": "url"}}, rows)
    storage = Storage(settings.root)
    collect_annotations(storage, settings, quiet)
    build_catalogue(storage, settings, quiet)

    def found(text: str) -> list[str]:
        lines = why(storage, settings, text)
        return [line.partition(",")[0] for line in lines if line.startswith("web/")]

    assert found("A.mp4") == ["web/A"]
    assert found("x/B.mkv") == ["web/x/b"]
    assert found(unicodedata.normalize("NFD", "café.mov")) == ["web/café"]
    with pytest.raises(NotFoundError):
        why(storage, settings, "b")
    with pytest.raises(NotFoundError):
        find_video(storage, settings, "X/B")  # what removes a video asks for its name


STRANGE = "[br]%20#1"  # a name that a shell, an address and a pattern would each read otherwise


@pytest.fixture
def dropped(tmp_path, monkeypatch):
    """A deployment below the current folder whose videos lie in a folder, with links to them."""
    folder = tmp_path / "given" / "vidéos"
    names = ("lecture 05", f"sub dir/{STRANGE}", "day/two", "day/one/x", "x")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.mp4").write_bytes(name.encode())
    rows = [question(f"{name}.mp4", "own") for name in ("two", *names[:2], *names[3:])]
    rows += [question("unknown", "web"), question("vidéos/lecture 05", "web")]
    sources = {"own": {"kind": "drop", "folder": str(folder)}, "web": {"kind": "url"}}
    settings = make_settings(tmp_path, sources, rows, variants=["tiny"])
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    (tmp_path / "alias").symlink_to(folder, target_is_directory=True)
    (tmp_path / "short.mp4").symlink_to(folder / "lecture 05.mp4")
    (folder / "latest").symlink_to(folder / "day", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return catalogued(settings), settings


@pytest.mark.parametrize(
    ("asked", "video"),
    [
        ("{here}/given/vidéos/lecture 05.mp4", "own/lecture 05"),
        ("given/vidéos/lecture 05.mp4", "own/lecture 05"),
        ("given/../given/vidéos/lecture 05.mp4", "own/lecture 05"),
        ("{here}/given/vidéos/lecture 05.MKV", "own/lecture 05"),
        (unicodedata.normalize("NFD", "{here}/given/vidéos/lecture 05.mp4"), "own/lecture 05"),
        ("{here}/alias/lecture 05.mp4", "own/lecture 05"),
        ("short.mp4", "own/lecture 05"),
        (f"{{here}}/given/vidéos/sub dir/{STRANGE}.mp4", f"own/sub dir/{STRANGE}"),
        (
            "given/vidéos/day/two.mp4",
            "own/two",
        ),  # rows may leave the folder out, as the source does
        ("alias/latest/two.mp4", "own/two"),
        ("alias/latest/one/x.mp4", "own/day/one/x or own/x"),
        ("alias/x.mp4", "own/x"),
    ],
)
def test_a_video_is_found_by_the_path_of_the_file_that_was_put_into_its_folder(
    asked, video, dropped, tmp_path
):
    text, wanted = asked.format(here=tmp_path), video.split(" or ")
    told = why(*dropped, text)
    assert [line for line in told if line.startswith("own/")] == [
        f"{one}, part0: 1 question-answer pairs" for one in wanted
    ]
    if len(wanted) == 1:
        assert find_video(*dropped, text) == video
    else:
        with pytest.raises(ValueError, match=f"may be {', '.join(wanted)}"):
            find_video(*dropped, text)


def test_a_withdrawn_video_is_known_by_the_path_of_its_file(dropped):
    storage, settings = dropped
    Withdrawals(videos={"own/gone": Withdrawal.now("asked")}).write(storage)
    assert find_video(storage, settings, "alias/gone.mp4") == "own/gone"
    assert answer(dropped, "alias/gone.mp4").startswith("own/gone: withdrawn")


@pytest.mark.parametrize("command", [["withdraw", "--reason", "x", "--dry-run"], ["lineage"]])
def test_commands_take_the_path_of_a_file_and_say_truly_where_it_is_unknown(
    command, dropped, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").touch()
    name, *options = command
    options += ["--config", str(tmp_path / "deployment.yaml")]
    assert main([name, "alias/lecture 05.mp4", *options]) == 0
    assert "lecture 05" in capsys.readouterr().out
    # `unknown` is a video of another source.
    path = str(tmp_path / "given" / "vidéos" / "unknown.mp4")
    assert main([name, path, *options]) == 1
    said = capsys.readouterr().err
    assert f"{path} is below the folder of the source own; no video that is catalogued" in said
    assert "which rows would call own/unknown" in said


def test_a_file_that_no_row_asks_for_is_not_taken_for_a_video_of_another_source(dropped, tmp_path):
    with pytest.raises(NotFoundError, match="folder of the source own: no annotation file asks"):
        why(*dropped, str(tmp_path / "given" / "vidéos" / "unknown.mp4"))
    assert why(*dropped, "elsewhere/unknown.mp4")[0].startswith("web/unknown, part0")
