"""The deployment's settings: every key known, paths counted from the file, mistakes explained."""

from pathlib import Path

import pytest
import yaml

from assets.deployment.settings import DEFAULT_CONFIG, load_settings

SMALLEST = {
    "root": "data",
    "annotations": {"repo": "a/b"},
    "sources": {"clips": {"kind": "drop", "folder": "in"}},
}


def written(folder: Path, **changes) -> Path:
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump(SMALLEST | changes))
    return path


def test_the_built_in_deployment_loads_and_names_the_published_sources():
    settings = load_settings(DEFAULT_CONFIG)
    assert set(settings.sources) == {"panda", "ego4d", "moviechat", "activitynet", "youcook2"}
    assert settings.annotations.repo == "jylins/videomarathon"
    assert settings.parts == 10


def test_relative_paths_count_from_the_settings_file(tmp_path):
    settings = load_settings(
        written(tmp_path, landing="new", annotations={"paths": ["rows.csv", "s3://b/rows.csv"]})
    )
    assert settings.root == str(tmp_path / "data")
    assert settings.landing == tmp_path / "new"
    assert settings.sources["clips"].folder == tmp_path / "in"
    assert settings.annotations.paths == [str(tmp_path / "rows.csv"), "s3://b/rows.csv"]


def test_a_remote_root_stays_a_url(tmp_path):
    assert load_settings(written(tmp_path, root="s3://bucket/x")).root == "s3://bucket/x"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rot": "x"}, ["unknown key 'rot'", "did you mean 'root'", "sources"]),
        (
            {"download": {"worker": 3}},
            ["unknown key 'download.worker'", "did you mean 'workers'", "attempts"],
        ),
        (
            {"sources": {"x": {"kind": "hub", "repository": "a/b"}}},
            ["repository", "repo", "archives"],
        ),
        ({"sources": {"x": {"kind": "ftp"}}}, ["sources.x", "hub", "youtube"]),
        ({"parts": 0}, ["parts"]),
        ({"parts": 100}, ["parts"]),
        ({"annotations": {"repo": "a/b", "paths": ["x"]}}, ["annotations", "either"]),
        ({"shards": {"workers": "many"}}, ["shards.workers"]),
        (
            {"features": {"limits": {"max_pixel": 1}}},
            ["limits.max_pixel'", "mean 'max_pixels'", "stall_s"],
        ),
        ({"features": {"limits": {"stall_s": 0}}}, ["features.limits.stall_s"]),
        (
            {"training": {"overrides": {"stage_3": {"epochs": 2}}}},
            ["unknown key 'training.overrides.stage_3', did you mean 'stage3'?"],
        ),
        ({"training": {"overrides": {"stage4": {}}}}, ["'training.overrides.stage4'", "stage1"]),
        (
            {"training": {"overrides": {"stage3": {"epoch": 2}}}},
            ["training.overrides.stage3: unknown key 'epoch', did you mean 'epochs'?"],
        ),
        (
            {"training": {"overrides": {"stage2": {"lora": {"rank": "64"}}}}},
            ["training.overrides.stage2: lora.rank", "'64'"],
        ),
        (
            {"variants": ["tiny"], "ablation": {"overrides": {"max_step": 3}}},
            ["ablation.overrides: unknown key 'max_step', did you mean 'max_steps'?"],
        ),
        ({"root": "~nobody-of-this-name/data"}, ["~nobody-of-this-name"]),
    ],
)
def test_a_mistake_is_explained_with_the_file_and_the_known_keys(tmp_path, changes, words):
    path = written(tmp_path, **changes)
    with pytest.raises(ValueError) as caught:
        load_settings(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "name", ["a,b", "a|b", "..", "a/b", "a b", "", ".a", "-a", "a\n", "é", "a" * 65, "a+b", "a[0]"]
)
def test_a_source_has_a_name_that_can_be_a_folder_and_a_partition(tmp_path, name):
    path = written(tmp_path, sources={name: {"kind": "drop", "folder": "in"}})
    with pytest.raises(ValueError, match="sources") as caught:
        load_settings(path)
    assert f"{name!r}: a source's name has letters, digits, '_' and '-'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: {long_videos_only: true}", r"line 5: 'training' stands in line 4 already"),
        ("root: other", r"line 5: 'root' stands in line 1 already"),
        ("download:\n  workers: 1\n  workers: 2", r"line 7: 'workers' stands in line 6 already"),
    ],
)
def test_a_key_that_stands_there_twice_is_refused_with_both_lines(tmp_path, text, words):
    path = tmp_path / "deployment.yaml"
    path.write_text(
        "root: data\nannotations: {repo: a/b}\nsources: {clips: {kind: drop, folder: in}}\n"
        f"training: {{processes: 2}}\n{text}\n"
    )
    with pytest.raises(ValueError, match=rf"deployment\.yaml: {words}"):
        load_settings(path)


def test_merged_keys_may_be_set_again(tmp_path):
    path = tmp_path / "deployment.yaml"
    path.write_text(
        "root: data\nannotations: {repo: a/b}\nsources:\n"
        "  one: &one {kind: drop, folder: in}\n  two: {<<: *one, folder: there}\n"
    )
    assert load_settings(path).sources["two"].folder == tmp_path / "there"


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    sources = {"clips": {"kind": "drop", "folder": "~/videos"}}
    annotations = {"paths": ["~/rows.csv"]}
    path = written(tmp_path, root="~/data", sources=sources, annotations=annotations)
    settings = load_settings(path)
    assert settings.root == str(tmp_path / "me" / "data")
    assert settings.sources["clips"].folder == tmp_path / "me" / "videos"
    assert settings.annotations.paths == [str(tmp_path / "me" / "rows.csv")]


def test_a_file_that_is_missing_or_not_yaml_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_settings(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"bad\.yaml: not valid YAML"):
        load_settings(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(ValueError, match="mapping"):
        load_settings(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("automation", "words"),
    [
        ({"time_zone": "Berlin"}, "'Berlin' is no time zone; names are like UTC or Europe/Berlin"),
        ({"training_at": "2 o'clock"}, '"2 o\'clock" is not a cron line of five fields'),
        ({"downloads_at": "0 25 * * *"}, "'0 25 * * *' is not a cron line of five fields"),
        ({"downloads_at": "@daily"}, "'@daily' is not a cron line of five fields"),
    ],
)
def test_a_time_or_a_zone_that_does_not_exist_is_refused(tmp_path, automation, words):
    with pytest.raises(ValueError) as error:
        load_settings(written(tmp_path, automation=automation))
    assert words in str(error.value)


def test_times_are_those_of_the_zone_that_the_settings_name(tmp_path):
    chosen = {"time_zone": "Europe/Berlin", "training_at": "30 1 * * 6"}
    automation = load_settings(written(tmp_path, automation=chosen)).automation
    assert (automation.time_zone, automation.training_at) == ("Europe/Berlin", "30 1 * * 6")
    assert automation.downloads_at == "0 20 * * *"
