"""Whatever ends a training in a running Dagster: no process survives, its slot is freed, and the
next run goes on.

One real training of stage 1 runs through all of it: each case goes on where the case before it was
ended.
"""

import json
import os
import re
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from assets.checkpoints.base import prepare_base
from assets.deployment.settings import load_settings
from assets.records.lineage import Lineage
from assets.shards.writer import write_kind_part
from pipeline.demo.client import FINISHED
from pipeline.demo.instance import REPOSITORY, dagster
from tests.assets.shards.roots import MIXTURE, make_root, quiet
from tests.training.test_supervise import alive, gone_within
from training.formats.storage import Storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STEPS = 100
DEPLOYMENT = f"""
root: root
parts: 1
variants: [tiny]
annotations: {{paths: [rows.jsonl]}}
sources: {{clips: {{kind: drop, folder: drop}}}}
collections: {{mixtures: root/mixtures.csv}}
shards: {{workers: 1, rows_per_shard: 8}}
training:
  cpu_threads: 1
  overrides:
    stage1: {{max_steps: {STEPS}, save_every: 4, epochs: 50, workers: 0, tensorboard: false}}
automation: {{data: false}}
"""
SLOTS = '{ instance { concurrencyLimit(concurrencyKey: "gpu") { claimedSlots { runId } } } }'
LOG = "query Log($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events {"
LOG += " ... on MessageEvent { message } } } } }"
TERMINATE = """mutation Stop($id: String!) {
  terminateRun(runId: $id, terminatePolicy: SAFE_TERMINATE) { __typename }
}"""


def until(what, described, seconds=300.0):
    """The first true answer of ``what``."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {described}"
        time.sleep(0.05)
    return answer


def processes():
    """Process id -> (parent, command line) of everything that runs."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(folder.name)] = (
                parent,
                (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(),
            )
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


class Deployment:
    """A deployment with all that stage 1 needs, its running Dagster, and its one training."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stack = folder, ExitStack()
        (folder / "root").mkdir()
        (folder / "deployment.yaml").write_text(DEPLOYMENT)
        storage = make_root(folder / "root", images=16)
        (folder / "root/mixtures.csv").write_text(MIXTURE)
        settings = load_settings(folder / "deployment.yaml")
        for part in range(10):
            report = write_kind_part(storage, settings, "llava_ov_si_onlyimg", part, quiet)
            Lineage(f"llava_ov_si_onlyimg[part{part}]", report.version).write(storage)
        base = prepare_base(storage, settings, "tiny", quiet)
        Lineage("base_model[tiny]", base.version, base.folder).write(storage)
        instance = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())
        instance["run_monitoring"] |= {
            "poll_interval_seconds": 1,
            "free_slots_after_run_end_seconds": 1,
        }
        (folder / "dagster.yaml").write_text(yaml.safe_dump(instance))
        self.run = ""

    def open(self) -> None:
        opened = dagster(
            self.folder / "deployment.yaml", self.folder / "dagster.log", home=self.folder
        )
        self.client = self.stack.enter_context(opened)

    def close(self) -> None:
        """Ctrl-C: SIGINT to everything in the terminal's process group."""
        self.stack.close()

    def start(self) -> None:
        self.run = self.client.launch("07_train_to_stage2", ["stage1"], {"variant": "tiny"})

    def newest(self) -> int:
        """The step of the newest complete checkpoint; 0 before the first."""
        marked = (self.folder / "root/checkpoints/tiny/stage1").glob("*/state/step-*/COMMITTED")
        return max((int(path.parent.name.removeprefix("step-")) for path in marked), default=0)

    def status(self) -> str:
        return str(self.client.runs([self.run])[self.run]["status"])

    def slots(self) -> list[dict[str, str]]:
        """Who holds the one slot of the GPU pool."""
        return list(self.client.query(SLOTS)["instance"]["concurrencyLimit"]["claimedSlots"])

    def continued_from(self) -> int:
        """The step that the run's training said it continues from; 0 when it said nothing of the
        kind.
        """
        events = self.client.query(LOG, id=self.run)["logsForRun"]["events"]
        said = re.findall(
            r"continuing from step-(\d+)", "\n".join(event.get("message", "") for event in events)
        )
        return int(said[0]) if said else 0

    def family(self) -> dict[str, int]:
        """Process ids of the run's worker and of everything below it, by what they are."""
        found = processes()
        mine = str(self.folder / "root/checkpoints")
        names = {}
        for pid, (parent, command) in found.items():
            if mine in command and "-m training.supervise" in command:
                names |= {pid: "launch", parent: "step"}
            elif mine in command:
                names[pid] = "torchrun" if "-m torch.distributed.run" in command else "rank"
        worker = next(pid for pid, name in names.items() if name == "step")
        while (
            "spawn_main" not in found[worker][1]
        ):  # the code server starts a run as such a process
            worker = found[worker][0]
        below = [worker]
        for pid in below:
            below += [child for child, (parent, _) in found.items() if parent == pid]
        names[worker] = "worker"
        return {names.get(pid, f"{pid}: {found[pid][1]}"): pid for pid in below}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    made = Deployment(tmp_path_factory.mktemp("kill"))
    made.open()
    yield made
    made.close()


def terminate_in_the_ui(deployment, family):
    deployment.client.query(TERMINATE, id=deployment.run)


def interrupt_the_ui(deployment, family):
    deployment.close()
    deployment.open()


def kill(name):
    return lambda deployment, family: os.kill(family[name], signal.SIGKILL)


ENDS = {
    "terminated in the UI": (terminate_in_the_ui, "CANCELED"),
    "step killed": (kill("step"), "FAILURE"),
    "run worker killed": (kill("worker"), "FAILURE"),
    "rank killed": (kill("rank"), "FAILURE"),
    "Ctrl-C on hourllava ui": (interrupt_the_ui, "FAILURE"),
}


@pytest.mark.parametrize("event", ENDS)
def test_an_ended_training_leaves_nothing_behind_and_goes_on_from_its_newest_checkpoint(
    deployment, event
):
    end, expected = ENDS[event]
    before = deployment.newest()
    deployment.start()
    until(lambda: deployment.newest() > before, "a new checkpoint")
    family = deployment.family()
    assert {"worker", "step", "launch", "torchrun", "rank"} <= family.keys()

    end(deployment, family)

    assert (
        until(lambda: (state := deployment.status()) in FINISHED and state, "the end of the run")
        == expected
    )
    assert gone_within(family.values(), 30), (
        f"alive: {[name for name, pid in family.items() if alive(pid)]}"
    )
    assert deployment.newest() < STEPS, "the training went on to its end"
    until(lambda: not deployment.slots(), "a free slot")
    assert deployment.continued_from() == before


def test_after_all_of_that_every_step_was_taken_once_and_the_run_succeeds(deployment):
    before = deployment.newest()
    deployment.start()
    assert (
        until(
            lambda: (state := deployment.status()) in FINISHED and state, "the end of the training"
        )
        == "SUCCESS"
    )
    assert deployment.continued_from() == before
    (out,) = (deployment.folder / "root/checkpoints/tiny/stage1").glob("*")
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
    assert (
        Lineage.read(Storage(str(deployment.folder / "root")), "stage1[tiny]").counts["steps"]
        == STEPS
    )
    assert not list((deployment.folder / "root").rglob(".tmp-*"))
