"""Giving up a part from the UI or the command line: the rest goes on without it."""

from types import SimpleNamespace

import dagster as dg
import pytest
import yaml

from assets.records.lineage import Lineage
from assets.records.withdrawals import Withdrawals, active_parts
from pipeline.cli import main
from training.formats import layout
from training.formats.storage import Storage


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A deployment with three catalogued parts, and an instance that has one partition too many."""
    settings = {
        "root": "root",
        "annotations": {"paths": ["qa.jsonl"]},
        "sources": {"ego4d": {"kind": "drop", "folder": "drop"}},
    }
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(settings))
    storage = Storage(str(tmp_path / "root"))
    parts = [{"name": f"part{index}", "videos": 1} for index in range(3)]
    storage.write_json(layout.PARTS, {"parts": parts})
    from pipeline.definitions import definitions

    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions("part", ["part0", "part1", "part2", "typed"])
        yield SimpleNamespace(
            storage=storage, instance=instance, defs=definitions(), folder=tmp_path
        )


def run(world, job: str, op: str, **config):
    return world.defs.resolve_job_def(job).execute_in_process(
        run_config={
            "ops": {op: {"config": config}},
            "resources": {
                "deployment": {"config": {"config": str(world.folder / "deployment.yaml")}}
            },
        },
        instance=world.instance,
        raise_on_error=False,
    )


def refusal(result) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return str(event.step_failure_data.user_failure_data.description)


def partitions(world) -> list[str]:
    return sorted(world.instance.get_dynamic_partitions("part"))


def renewed(world) -> list[set[str]]:
    """What each backfill makes, the newest first."""
    return [
        {key.to_user_string() for key in backfill.asset_backfill_data.target_subset.asset_keys}
        for backfill in world.instance.get_backfills()
    ]


def shards(world, *parts: str) -> None:
    for part in parts:
        Lineage(f"videomarathon_video[{part}]", f"of {part}").write(world.storage)


def mixture(world, *parts: str) -> None:
    inputs = {f"videomarathon_video[{part}]": f"of {part}" for part in parts}
    Lineage("hourllava_s3", "m", inputs=inputs).write(world.storage)


def test_a_part_is_given_up_with_a_reason_and_its_partition_goes(world):
    assert run(world, "give_up_part", "give_up", part="part1", reason="no videos").success
    assert active_parts(world.storage) == ["part0", "part2"]
    assert Withdrawals.read(world.storage).parts["part1"].reason == "no videos"
    assert partitions(world) == ["part0", "part2", "typed"]
    assert renewed(world) == []  # nothing held it
    again = run(world, "give_up_part", "give_up", part="part1", reason="another")
    assert again.success
    assert Withdrawals.read(world.storage).parts["part1"].reason == "no videos"


def test_a_mixture_that_holds_the_part_is_made_again_without_it(world):
    shards(world, "part0", "part1", "part2")
    mixture(world, "part0", "part1", "part2")
    assert run(world, "give_up_part", "give_up", part="part1", reason="x").success
    assert renewed(world) == [{"hourllava_s3"}]
    mixture(world, "part0", "part2")
    assert run(world, "take_back_part", "take_back", part="part1").success
    assert renewed(world) == [{"hourllava_s3"}] * 2
    assert partitions(world) == ["part0", "part1", "part2", "typed"]


def test_a_mixture_that_still_waits_for_another_part_is_left_to_wait(world):
    shards(world, "part0", "part1")
    mixture(world, "part0", "part1")
    result = run(world, "give_up_part", "give_up", part="part1", reason="x")
    assert result.success
    (event,) = [event for event in result.all_events if event.is_successful_output]
    said = event.step_output_data.metadata["done"].value
    assert "hourllava_s3 is renewed once videomarathon_video[part2] is made" in said
    assert renewed(world) == []


def test_a_partition_that_somebody_typed_is_removed_and_nothing_is_recorded(world):
    assert run(world, "give_up_part", "give_up", part="typed", reason="x").success
    assert partitions(world) == ["part0", "part1", "part2"]
    assert not world.storage.exists(layout.WITHDRAWALS)


def test_what_cannot_be_given_up_says_why(world):
    unknown = run(world, "give_up_part", "give_up", part="part7", reason="x")
    assert "the catalogue has part0, part1, part2" in refusal(unknown)
    assert "give a reason" in refusal(
        run(world, "give_up_part", "give_up", part="part1", reason="")
    )
    assert "was not given up" in refusal(run(world, "take_back_part", "take_back", part="part1"))


def test_the_command_line_does_the_same_on_the_same_instance(world, tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("{}")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.add_dynamic_partitions("part", ["part0", "part1", "part2"])
    config = ["--config", str(tmp_path / "deployment.yaml")]
    assert main(["give-up", "part2", "--reason", "no videos", *config]) == 0
    assert "part2 is given up (no videos); its files stay" in capsys.readouterr().out
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert instance.get_dynamic_partitions("part") == ["part0", "part1"]
    assert main(["take-back", "part2", *config]) == 0
    assert active_parts(world.storage) == ["part0", "part1", "part2"]
    assert main(["give-up", "part9", "--reason", "x", *config]) == 2
