"""Scores of the arms: asked as the stages' checkpoints are, read back, written as one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.ablations.runs import study_of
from assets.ablations.table import ALL, Scores, arms_table, groups_of, scores_of
from assets.deployment.ablation import Arm
from assets.deployment.settings import Settings
from assets.evaluation.compare import local_root, open_questions
from assets.evaluation.media import STAMPS
from assets.evaluation.score import score_checkpoint
from assets.records.lineage import Lineage, origin_name, product
from training.formats import layout
from training.formats.hashing import data_version, hash_file
from training.formats.storage import Storage

TABLE_FILE = "table.json"


@dataclass(frozen=True, slots=True)
class ArmReport:
    """What the scores of one run are published with; see `evaluation.compare.Comparison`."""

    version: str
    files: list[str]
    origins: dict[str, str]
    counts: dict[str, int]
    accuracy: float
    chance: float


@dataclass(frozen=True, slots=True)
class TableReport:
    """The table's file below the root, and the hash of what it says."""

    version: str
    file: str


def score_arm(
    storage: Storage, settings: Settings, key: str, log: Callable[[str], None]
) -> ArmReport:
    """Ask one run of an arm the evaluation's questions.

    Answers go to `evaluation/<variant>/ablation/<arm>.parquet`, sums to a JSON file beside it.

    Raises:
        ValueError: the settings name no questions, or the file is not one.
        FileNotFoundError: the arm was not trained yet.
    """
    variant, _ = study_of(settings)
    held_out = settings.held_out_share > 0
    asked_file = storage.local(layout.HELD_OUT) if held_out else settings.evaluation.questions
    questions_file, questions, media = open_questions(
        storage, asked_file, held_out, settings.evaluation.limit
    )
    export = storage.local_folder(
        f"{Lineage.read(storage, product('ablation', key)).folder}/export"
    )
    file, local = answers_of_arm(storage, settings, key)
    report = score_checkpoint(
        export,
        questions,
        media,
        local,
        log,
        name=key,
        write=False,
        device=settings.features.device,
        stamps=local_root(storage, settings.training.scratch) / STAMPS,
    )
    if not storage.is_local:
        storage.write_bytes(file, local.read_bytes())
    log(f"{key}: {report.accuracy:.1%} right, chance {report.chance:.1%}")
    scores = scores_of(key, report)
    summary = layout.ablation_scores(variant, f"{key}.json")
    storage.write_json(summary, scores.to_dict())
    return ArmReport(
        version=report.version,
        files=[file, summary],
        origins={origin_name(storage, questions_file): hash_file(questions_file)},
        counts={"questions": len(questions), "asked": scores.asked[ALL]},
        accuracy=report.accuracy,
        chance=report.chance,
    )


def answers_of_arm(storage: Storage, settings: Settings, key: str) -> tuple[str, Path]:
    """The file with the answers of one run of an arm: its name below the root, and where it is
    while they are made.
    """
    variant, _ = study_of(settings)
    file = layout.ablation_scores(variant, f"{key}.parquet")
    return file, local_root(storage, settings.training.scratch) / file


def read_scores(storage: Storage, variant: str, keys: Sequence[str]) -> list[Scores]:
    """The scores of runs that were scored before.

    Raises:
        FileNotFoundError: one of them was not.
    """
    files = [layout.ablation_scores(variant, f"{key}.json") for key in keys]
    return [Scores(**storage.read_json(file)) for file in files]


def write_table(
    storage: Storage, variant: str, arms: Mapping[str, Arm], scores: Sequence[Scores]
) -> TableReport:
    """Write the table of every group of questions, and return where it is."""
    content: dict[str, Any] = {
        "groups": {group: arms_table(arms, scores, group) for group in groups_of(scores)},
        "runs": {one.key: one.version for one in scores},
    }
    file = layout.ablation_scores(variant, TABLE_FILE)
    storage.write_json(file, content)
    return TableReport(data_version(content), file)
