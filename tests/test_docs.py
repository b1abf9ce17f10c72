"""The README and docs/: links lead somewhere, commands are run by somebody, examples load, figures
name their run.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from assets.deployment.settings import Settings, load_settings
from assets.records.coverage import Coverage
from assets.records.lineage import Lineage
from assets.shards.mds import read_column
from pipeline import __version__
from pipeline.cli import main
from tests.pages import REPOSITORY, Block, Page, names_in, page, pages
from tests.servers.clips import clip
from training.formats import layout
from training.formats.kinds import LONG_VIDEO_KIND
from training.formats.storage import Storage

PAGES = pages()
ROOMS = ("pipeline", "assets", "training", "model", "benchmarks", "tests", "docs")

# Who runs a command of the documentation: `.ci/run` itself, a test that does what the command does,
# or nobody, with the reason. A command that stands nowhere here fails, and so does an entry that no
# page has.
RUN_BY_CI = "ci"
COMMANDS: dict[str, str] = {
    "make install": RUN_BY_CI,
    "make install CPU=1": "the index of CPU builds is not among what CI reaches",
    "make lint": RUN_BY_CI,
    "make test-all": RUN_BY_CI,
    "make test": "the fast part of `make test-all`, which `.ci/run` calls",
    "make test-slow": "the slow part of `make test-all`, which `.ci/run` calls",
    "make help": "tests/test_docs.py::test_make_help_lists_every_command",
    "make demo-own": "tests/pipeline/test_own_videos.py::"
    "test_the_tuned_checkpoint_is_better_than_the_start_by_more_than_the_interval",
    "hourllava checkpoints": "tests/assets/checkpoints/test_named.py::"
    "test_what_the_author_has_is_known_by_its_files_and_never_by_its_name",
    "hourllava estimate --config my.yaml": "tests/pipeline/"
    "test_estimate.py::test_the_command_tells_steps_plan_and_where_each_rate_was_measured",
    'hourllava estimate --config my.yaml --card "RTX 4090" --price 0.5': "tests/pipeline/"
    "test_estimate.py::test_the_command_tells_steps_plan_and_where_each_rate_was_measured",
    "hourllava fine-tune --config my.yaml": "tests/pipeline/test_own_videos.py::"
    "test_the_tuned_checkpoint_is_better_than_the_start_by_more_than_the_interval",
    "make ablations": "runs `hourllava ablate` for the better part of an hour; "
    "tests/assets/ablations/test_ablation_runs.py trains, scores and compares arms",
    "hourllava ablate --config ablation_3b.yaml": "weeks on GPUs; "
    "tests/pipeline/test_ablate.py reads the file and asks for what is missing",
    "hourllava ablate --table --config ablation_3b.yaml": "tests/pipeline/test_ablate.py::"
    "test_the_table_is_printed_as_it_is",
    "make demo": "tests/pipeline/test_demo.py::test_every_asset_was_made",
    "hourllava demo --small": "meant for a GPU; its steps are those of `make demo`, and "
    "tests/model/weights/test_packaged.py makes its start",
    "make ui": "tests/pipeline/test_web_ui.py::"
    "test_the_own_page_and_a_proxy_that_was_named_are_answered",
    "make ui CONFIG=my.yaml": "the same with another file; it runs until it is stopped",
    "make browser": "`.ci/run` calls it, and goes on where nothing can be installed",
    "make slurm": "`.ci/run` calls it, and goes on where nothing can be installed",
    "make docs": "tests/test_docs_site.py::test_the_site_is_built_without_a_warning",
    "make screenshots": "takes its pictures from a finished demo; tests of the UI share its code",
    "make bench": "a minute each of every benchmark, measured on a quiet machine; "
    "tests cover what they call",
    "hourllava why panda/abc": "tests/pipeline/test_demo.py::test_why_tells_what_became_of_a_video",
    "hourllava lineage 'stage3[3b]' --verify": "tests/pipeline/test_demo.py::"
    "test_lineage_walks_from_the_checkpoint_to_the_annotations_and_back",
    "hourllava lineage 'own/talk#scene-place-mc-1a2b3c4d5e6f' --config my.yaml": "tests/pipeline/"
    "test_own_questions.py::test_the_command_line_says_where_a_row_comes_from",
    "hourllava lineage panda/abc": "tests/pipeline/test_demo.py::"
    "test_lineage_walks_from_the_checkpoint_to_the_annotations_and_back",
    'hourllava ask video.mp4 "What happens at the end?" --config my.yaml '
    "--checkpoint 'stage3[lectures]'": "tests/assets/checkpoints/test_named.py::"
    "test_a_product_is_a_checkpoint_and_any_other_path_stays_what_it_is",
    'hourllava ask VIDEO.mp4 "What colour is the square?" '
    "--config .demo/deployment.yaml --checkpoint 'stage3[tiny]'": "tests/assets/checkpoints/"
    "test_named.py::test_a_product_is_a_checkpoint_and_any_other_path_stays_what_it_is",
    "hourllava serve --config .demo/deployment.yaml": "tests/pipeline/test_serve_page.py::"
    "test_an_answer_streams_as_text_and_the_band_leads_the_player",
    "hourllava serve --config my.yaml": "tests/pipeline/test_serve_page.py::"
    "test_an_answer_streams_as_text_and_the_band_leads_the_player",
    "hourllava doctor --config my.yaml": "tests/test_docs.py::"
    "test_commands_of_hourllava_are_understood",
    "hourllava doctor --config my.yaml --port 3000": "tests/pipeline/test_doctor.py::"
    "test_a_machine_that_can_do_what_is_asked_is_told_so",
    'hourllava give-up part3 --reason "its videos are gone"': "tests/pipeline/test_parts.py::"
    "test_the_command_line_does_the_same_on_the_same_instance",
    "hourllava take-back part3": "tests/pipeline/test_parts.py::"
    "test_the_command_line_does_the_same_on_the_same_instance",
    'hourllava withdraw panda/abc --reason "asked by its owner" --dry-run': (
        "tests/pipeline/test_withdraw.py::test_the_command_line_shows_does_and_reports"
    ),
    'hourllava withdraw panda/abc --reason "asked by its owner"': (
        "tests/pipeline/test_withdraw.py::test_the_command_line_shows_does_and_reports"
    ),
    "hourllava bill 'stage3[3b]'": "tests/pipeline/test_withdraw.py::"
    "test_the_command_line_shows_does_and_reports",
    "hourllava recover --config my.yaml": "tests/pipeline/test_recover.py::"
    "test_every_product_of_the_register_is_known_again_with_its_version",
    'DAGSTER_HOME="$PWD" dagster instance migrate': "tests/test_docs.py::"
    "test_dagster_has_the_commands_and_options_that_pages_name",
    "hourllava ui --config my.yaml": "tests/pipeline/test_web_ui.py::"
    "test_the_own_page_and_a_proxy_that_was_named_are_answered",
    "dagster instance concurrency set download 4": "tests/test_docs.py::"
    "test_a_pool_is_widened_as_the_page_says",
    "dagster instance concurrency get --all": "tests/test_docs.py::"
    "test_a_pool_is_widened_as_the_page_says",
    ".venv/bin/pytest -q tests/pipeline/test_definitions.py": "part of `make test`",
    ".venv/bin/pytest -k test_private_addresses_are_not_contacted": (
        "tests/assets/videos/test_url_acquisition.py::test_private_addresses_are_not_contacted"
    ),
    "python -m benchmarks.estimate --write": "tests/test_docs_estimate.py::"
    "test_the_page_is_what_the_script_prints",
}

# Programs of others, which no test starts for a page's sake.
OTHERS: dict[str, str] = {
    "docker": "needs a Docker daemon; tests/pipeline/test_deploy.py looks into what its image runs",
    "kubectl": "needs a cluster; tests/pipeline/test_deploy.py checks the manifests by schema",
    "pip": "`make install` installs the tested versions",
    "git": "fetches another version of the repository",
    "export": "sets a variable for the lines below it",
}
# Long, on a quiet machine or on GPUs; their options are checked.
BENCHMARK = re.compile(r"(?:\.venv/bin/)?python -m benchmarks\.")


def commands(block: Block) -> list[str]:
    """Its commands, one by one, without comments and without the brackets of optional words."""
    lines = re.sub(r"\\\n\s*", " ", block.text).splitlines()
    bare = [re.sub(r"(?:^|\s+)#.*$", "", re.sub(r"\[(--[^]]*)\]", r"\1", line)) for line in lines]
    return [command.strip() for line in bare for command in line.split(" && ") if command.strip()]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")


ALL_COMMANDS = sorted(
    {
        command
        for shown in PAGES
        for block in shown.blocks("bash", "sh")
        for command in commands(block)
    }
)


@pytest.mark.parametrize("shown", PAGES, ids=lambda shown: shown.name)
def test_links_lead_to_files_and_headings_that_exist(shown: Page):
    lost = []
    for target in shown.links():
        url = urlsplit(target)
        if url.scheme or url.netloc:
            lost += [] if url.scheme == "https" else [target]
            continue
        file = (REPOSITORY / shown.name).parent / url.path if url.path else REPOSITORY / shown.name
        if not file.exists():
            lost.append(target)
        elif url.fragment:
            headings = page(str(file.resolve().relative_to(REPOSITORY))).headings()
            lost += [] if url.fragment in map(slug, headings) else [target]
    assert lost == []


@pytest.mark.parametrize("shown", PAGES, ids=lambda shown: shown.name)
def test_files_of_the_repository_that_a_page_names_exist(shown: Page):
    named = re.findall(rf"`((?:{'|'.join(ROOMS)})/[\w./*-]+)`", shown.text)
    lost = [name for name in named if not list(REPOSITORY.glob(name.rstrip("/")))]
    assert lost == []


def program(command: str) -> str:
    """What a command starts, behind variables and sudo."""
    words = [word for word in shlex.split(command) if "=" not in word and word != "sudo"]
    return words[0] if words else ""


def test_every_command_is_run_by_somebody_or_says_why_not():
    ours = [
        c
        for c in ALL_COMMANDS
        if program(c) not in OTHERS and not (BENCHMARK.match(c) and c not in COMMANDS)
    ]
    assert [command for command in ours if command not in COMMANDS] == []
    assert [command for command in COMMANDS if command not in ALL_COMMANDS] == []
    assert set(OTHERS) <= set(map(program, ALL_COMMANDS))


def test_the_jobs_that_operations_names_are_those_of_the_definitions():
    from pipeline.definitions import definitions

    (table,) = [
        rows
        for rows in page("docs/operations.md").tables()
        if rows[0][0] == "job" and rows[0][1] == "for"
    ]
    jobs = {job.name for job in definitions().resolve_all_job_defs()}
    named = {name for row in table[1:] for name in names_in(row[0])}
    assert named == {name for name in jobs if not name.startswith("__")}


def test_dagster_has_the_commands_and_options_that_pages_name():
    from dagster._cli import create_dagster_cli

    for command in ALL_COMMANDS:
        words = [word for word in shlex.split(command) if not re.fullmatch(r"\w+=.*", word)]
        if Path(words[0]).name != "dagster":
            continue
        group, rest = create_dagster_cli(), words[1:]
        while rest and hasattr(group, "commands"):
            assert rest[0] in group.commands, f"{command}: dagster has {', '.join(group.commands)}"
            group, rest = group.commands[rest[0]], rest[1:]
        known = {option for parameter in group.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= known, command


def test_who_runs_a_command_exists():
    steps = (REPOSITORY / ".ci/run").read_text().splitlines()
    for command, runner in COMMANDS.items():
        if runner == RUN_BY_CI:
            assert command in steps
        elif "::" in runner:
            file, _, test = runner.partition("::")
            assert f"def {test}(" in (REPOSITORY / file).read_text(), runner
        else:
            assert len(runner.split()) > 3, f"{command}: {runner!r} is no reason"


def make(*arguments: str, folder: Path = REPOSITORY) -> str:
    """What make prints; it knows nothing of the make that may have started these tests."""
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    command = ["make", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, text=True, capture_output=True, check=True
    ).stdout


def make_targets() -> set[str]:
    """The commands of the Makefile: its phony targets."""
    (phony,) = re.findall(r"^\.PHONY: (help .*)$", (REPOSITORY / "Makefile").read_text(), re.M)
    return set(phony.split())


def test_make_help_lists_every_command():
    for said in (make("help"), make()):
        listed = dict(re.findall(r"^make ([a-z-]+) +(\S.*)$", said, re.M))
        assert listed.keys() == make_targets()


def test_make_works_from_another_folder_and_below_a_path_with_spaces(tmp_path: Path):
    checkout = tmp_path / "with space" / "check out"
    checkout.mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "without_clouds.txt"):
        shutil.copy(REPOSITORY / name, checkout)
    (checkout / ".demo").mkdir()
    elsewhere = make("--file", str(checkout / "Makefile"), "clean", folder=tmp_path)
    assert not (checkout / ".demo").exists(), elsewhere
    inside = make("--dry-run", "ui")
    assert f'--config "{REPOSITORY}/' in inside
    outside = make("--dry-run", "--directory", str(checkout), "ui", folder=tmp_path)
    assert f'--config "{checkout}/pipeline/deployment.yaml"' in outside


def test_make_knows_every_target_that_pages_name():
    targets = make_targets()
    named = {match for shown in PAGES for match in re.findall(r"`make ([a-z-]+)", shown.text)}
    named |= {command.split()[1] for command in ALL_COMMANDS if command.startswith("make ")}
    assert named - targets == set()


def test_the_version_is_the_same_everywhere_and_the_changelog_knows_it():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert any(heading.startswith(f"{__version__} ") for heading in page("CHANGELOG.md").headings())
    assert "Unreleased" in page("CHANGELOG.md").headings()


def test_the_workflow_calls_what_a_fresh_machine_runs_on_every_python_that_is_promised():
    jobs = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())["jobs"]
    job = jobs.pop("run")
    called = {step["run"] for other in jobs.values() for step in other["steps"] if "run" in step}
    assert called == {"make audit", "make sbom", "make docs"}
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    (step,) = [step for step in job["steps"] if step.get("run") == ".ci/run"]
    assert step["env"] == {"PYTHON": "python${{ matrix.python }}"}
    assert "PYTHON ?=" in (REPOSITORY / "Makefile").read_text()


def test_the_hooks_run_what_make_lint_runs():
    (local,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    entries = [" ".join(hook["entry"].split()[:2]) for hook in local["hooks"]]
    recipe = make("--dry-run", "lint")
    assert [entry for entry in entries if entry not in recipe] == []


def test_commands_of_hourllava_are_understood(tmp_path, monkeypatch, capsys):
    """By the real parser: each is parsed, and none is carried out."""
    monkeypatch.setattr("pipeline.cli._COMMANDS", dict.fromkeys(_cli_commands(), lambda chosen: 0))
    for command in ALL_COMMANDS:
        program, *arguments = shlex.split(command)
        if program == "hourllava":
            assert main(arguments) == 0, command


def _cli_commands() -> list[str]:
    from pipeline.cli import _COMMANDS

    return list(_COMMANDS)


def test_options_of_benchmarks_that_pages_name_exist():
    called = {
        (match[1], match[2])
        for shown in PAGES
        for match in re.finditer(
            r"-m benchmarks\.(\w+)([^\n`#]*)", re.sub(r"\\\n\s*", " ", shown.text)
        )
    }
    assert called
    for name, arguments in called:
        source = (REPOSITORY / f"benchmarks/{name}.py").read_text()
        for option in re.findall(r"--[a-z-]+", arguments):
            known = f'"{option}"' in source or f'"--{option.removeprefix("--no-")}"' in source
            assert known, f"benchmarks.{name} has no {option}"


@pytest.mark.slow
def test_a_pool_is_widened_as_the_page_says(tmp_path: Path):
    """The page's two commands in their order, on an instance of its own."""
    (block,) = [
        b for shown in PAGES for b in shown.blocks("bash") if "instance concurrency set" in b.text
    ]
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    said = ""
    for command in commands(block):
        if command.startswith("dagster "):
            arguments = [sys.executable, "-m", *shlex.split(command)]
            environment = {**os.environ, "DAGSTER_HOME": str(tmp_path)}
            said = subprocess.run(
                arguments, cwd=tmp_path, env=environment, capture_output=True, check=True
            ).stdout.decode()
    assert re.search(r"download\W.*\b4\b", said, re.S), said


BASE = {"root": "data", "annotations": {"paths": ["rows.jsonl"]}, "sources": {}}


@pytest.mark.parametrize(
    "block",
    [block for shown in PAGES for block in shown.blocks("yaml")],
    ids=lambda block: block.page,
)
def test_examples_of_settings_load(block: Block, tmp_path: Path):
    values = yaml.safe_load(block.text)
    known = set(Settings.model_fields)
    if not set(values) & known:
        return  # of another program, and valid YAML
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(BASE | values))
    settings = load_settings(tmp_path / "my.yaml")
    assert settings.model_fields_set >= set(values)


OWN_VIDEOS = """
import dagster as dg
from assets.conversations.assets import conversations
from assets.deployment.resources import Deployment
from assets.annotations.assets import annotations, catalogue
from assets.shards.assets import videomarathon_video
from assets.videos.assets import videos
from pipeline.definitions import definitions

definitions()
with dg.DagsterInstance.ephemeral() as instance:
    given = {"resources": {"deployment": Deployment(config="my.yaml")}, "instance": instance}
    assert dg.materialize([annotations, catalogue], **given).success
    (part,) = instance.get_dynamic_partitions("part")
    for source in ("clips", "lectures"):
        key = dg.MultiPartitionKey({"part": part, "source": source})
        assert dg.materialize([videos], partition_key=key, **given).success
    assert dg.materialize([conversations], partition_key=part, **given).success
    assert dg.materialize([videomarathon_video], partition_key=part, **given).success
"""

# Files as cameras, phones and people name them -> how a row of the questions names each of them.
OWN_FILES = {
    "Holiday 2024 (1).MP4": "Holiday 2024 (1).mp4",
    "C0001.MTS": "C0001",
    "my talk - final.v2.mov": "C:\\Users\\Ann\\Videos\\my talk - final.v2.mov",
    unicodedata.normalize("NFD", "Über uns.m4v"): "Über uns.m4v",
    "phone/VID_20240131.3gp": "VID_20240131.3gp",
    "interview.mpeg": "lectures/interview.mpeg",
}


@pytest.mark.slow
def test_the_recipes_settings_take_ones_own_videos_to_the_samples_of_training(tmp_path: Path):
    """Its example, with its folders moved below a temporary one: six files in a folder, and a table
    of questions as a spreadsheet program saves it.
    """
    (example,) = page("docs/recipe.md").section("Any other mixture").blocks("yaml")
    assert "root: /data/hourllava " in example.text
    (tmp_path / "my.yaml").write_text(example.text.replace("/data/", f"{tmp_path}/"))
    for number, name in enumerate(OWN_FILES):
        file = tmp_path / "lectures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name == "interview.mpeg":
            raw = tmp_path / "raw.mpeg"
            raw.write_bytes(clip(number))
            file.symlink_to("../raw.mpeg")
        else:
            file.write_bytes(clip(number))
    rows = "".join(
        f'{video};"Who, and ""why""?";B;lectures;nobody|somebody;0:08;seen\r\n'
        for video in OWN_FILES.values()
    )
    head = "Video; Question;Answer ;data_source;Options;Duration;Remarks\r\n"
    (tmp_path / "questions.csv").write_bytes((head + rows).encode("cp1252"))
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "HOURLLAVA_CONFIG": str(tmp_path / "my.yaml"),
    }
    command = [sys.executable, "-c", OWN_VIDEOS]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    storage = Storage(str(tmp_path / "hourllava"))
    folder = layout.shards(LONG_VIDEO_KIND, "part0")
    trained_on = sorted(read_column(storage, folder, "video"))
    stems = (unicodedata.normalize("NFC", Path(name).stem) for name in OWN_FILES)
    assert trained_on == sorted(f"lectures/{stem}" for stem in stems)
    talk = json.loads(next(read_column(storage, folder, "conversations")))
    assert [turn["value"] for turn in talk] == [
        '<image>\nWho, and "why"?\nA. nobody\nB. somebody',
        "B",
    ]
    record = Lineage.read(storage, f"{LONG_VIDEO_KIND}[part0]")
    said = Coverage.read(record.coverage).sentence
    assert said == "100 % of rows (6 of 6), 100 % of hours, 6 of 6 videos"


@pytest.mark.parametrize("name", ["docs/performance.md", "docs/results.md"])
def test_every_table_of_figures_names_the_command_that_gave_it(name: str):
    text = page(name).text
    unnamed, seen = [], {0: text}
    # A table's own section or one above it holds the command.
    for part in re.split(r"^(?=#+ )", text, flags=re.M):
        level = len(part) - len(part.lstrip("#"))
        seen = {depth: above for depth, above in seen.items() if 0 < depth < level} | {level: part}
        for rows in Page(name, part).tables():
            figures = any(re.search(r"\d", cell) for row in rows[1:] for cell in row)
            if figures and not any(
                re.search(r"(python -m|pytest|make|hourllava) [\w-]", above)
                for above in seen.values()
            ):
                unnamed.append(rows[0])
    assert unnamed == []


def test_no_page_carries_what_belongs_to_one_machine():
    """Paths of a home folder, addresses of package registries, unfinished words."""
    pattern = r"/work/|/home/\w|/root/|\bTODO\b|\bFIXME\b|lorem"
    found = {
        shown.name: re.findall(pattern, shown.text)
        for shown in PAGES
        if re.search(pattern, shown.text)
    }
    assert found == {}
