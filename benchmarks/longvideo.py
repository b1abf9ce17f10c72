"""Long videos from end to end: what stage 3 and the memory add, asked about videos that training
never saw.

    python -m benchmarks.longvideo --preset tiny                # a minute on a CPU: does it run?
    python -m benchmarks.longvideo --preset cpu --start EXPORT  # stage 3 only, from a checkpoint
    python -m benchmarks.longvideo --preset first --seed 1      # 11 minutes of one H200
    python -m benchmarks.longvideo --preset signs --seed 1      # brief evidence; three take 9
    python -m benchmarks.longvideo --preset gpu                 # for one GPU, not run yet

Films of 3 to 60 minutes are drawn (`longvideo_world.py`) and put through the pipeline's own
functions: annotations, catalogue, videos, conversations, shards of all six kinds, mixture, stage 1,
stage 2, vision encoder, features, stage 3. Held-out films are then asked about. Whatever is
finished is kept, so a run that was stopped goes on.

| column               | checkpoint                    | what it is shown         |
| -------------------- | ----------------------------- | ------------------------ |
| stage2               | stage 2                       | a frame a second         |
| stage3               | stage 3                       | a frame a second         |
| 64 frames            | stage 3, trained on 64 frames | 64 frames, spread evenly |
| 64 frames, untrained | stage 3                       | 64 frames, spread evenly |
| blind                | stage 3                       | grey frames              |

The table is of a balanced part of the questions (`longvideo_gates.balanced`). Whether it shows
anything is for `benchmarks.longvideo_gates` to say, over seeds.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from assets.annotations.build import build_catalogue
from assets.annotations.catalogue import PresentVideo, present_videos
from assets.annotations.collect import collect_annotations
from assets.checkpoints.results import publish_vision_encoder, read_results
from assets.checkpoints.runs import previous_checkpoint, shard_products, stage_run
from assets.conversations.grouping import group_part
from assets.deployment.parts import LLAVA_PARTS
from assets.deployment.settings import Settings
from assets.evaluation.questions import EvaluationQuestion
from assets.evaluation.score import score_checkpoint
from assets.features.extract import extract_part
from assets.records.lineage import Lineage, product
from assets.shards.mixture_views import write_mixture
from assets.shards.writer import write_kind_part, write_long_video_part
from assets.videos.acquire import acquire_part
from benchmarks.longvideo_corpus import HELD_OUT, SOURCE, Held, Sizes, settings_of, write_corpus
from benchmarks.longvideo_gates import balanced
from benchmarks.longvideo_table import FEW, answered, markdown, rows_of
from model.config import PRESETS as MODELS
from model.config import HourLlavaConfig, LLMConfig
from training.formats.feature_file import FeatureFile, write_features
from training.formats.hashing import hash_file
from training.formats.kinds import LLAVA_KINDS
from training.formats.storage import Storage
from training.ranks import join_ranks, leave_ranks
from training.run_config import RunConfig

VARIANT, PART = "tiny", "part0"
FEATURES, FEW_FEATURES = f"VideoMarathon/features/{VARIANT}", f"few_frames/{VARIANT}"
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Preset:
    """How much of everything; `steps` of the three stages, each of `batch` samples."""

    sizes: Sizes
    steps: tuple[int, int, int]
    batch: int = 8
    model: HourLlavaConfig = MODELS[VARIANT]
    workers: int = 1


WIDER = replace(
    MODELS[VARIANT],
    llm=LLMConfig(256, 4, 8, 4, 768, 512, tie_word_embeddings=True, max_position_embeddings=4096),
)
PRESETS = {
    "tiny": Preset(
        Sizes(train=((4, 180, 200),), held_out=((2, 180, 200),), pictures=60, clips=20, texts=60),
        (3, 3, 3),
        workers=0,
    ),
    "cpu": Preset(
        Sizes(
            train=((120, 180, 420), (6, 600, 900)),
            held_out=((14, 180, 420),),
            pictures=100,
            clips=30,
            texts=60,
        ),
        (60, 200, 400),
    ),
    # A first answer: eleven minutes of one H200 for each seed.
    "first": Preset(
        Sizes(
            train=((200, 180, 600), (30, 600, 1800)),
            held_out=((80, 180, 600), (20, 600, 1800)),
            pictures=2000,
            clips=300,
            texts=100,
        ),
        (100, 400, 700),
        batch=16,
        workers=8,
    ),
    # Every answer is in two seconds of a film, which 64 frames may not hold. Three seeds side by
    # side: nine minutes of one H200.
    "signs": Preset(
        Sizes(
            train=((240, 180, 600), (40, 600, 1800)),
            held_out=((80, 180, 600), (20, 600, 1800)),
            pictures=2000,
            clips=1200,
            texts=100,
            signs=True,
        ),
        (100, 700, 400),
        batch=16,
        workers=8,
    ),
    "gpu": Preset(
        Sizes(
            train=((600, 180, 600), (300, 600, 1800), (100, 1800, 3600)),
            held_out=((60, 180, 600), (30, 600, 1800), (30, 1800, 3600)),
            pictures=4000,
            clips=400,
            texts=400,
        ),
        (300, 3000, 4000),
        batch=32,
        model=WIDER,
        workers=8,
    ),
}


class LongVideoBenchmark:
    """One preset in one folder.

    Args:
        stage2: an export that stands for stages 1 and 2, which are then not trained here.
        seed: of films, first weights and order.
    """

    def __init__(
        self,
        preset: Preset,
        folder: Path,
        device: str,
        stage2: Path | None,
        log: Log,
        seed: int = 1,
    ) -> None:
        self.preset, self.folder, self.device, self.stage2, self.log = (
            preset,
            folder.resolve(),
            device,
            stage2,
            log,
        )
        self.seed = seed
        settings = settings_of(self.folder, device)
        self.settings: Settings = settings.model_copy(
            update={
                "training": settings.training.model_copy(update={"overrides": self._overrides()})
            }
        )
        self.storage = Storage(settings.root)
        self.ranks = join_ranks(device)

    def run(self) -> dict[str, Any]:
        """The whole way; returns `rows` of the table, see `rows_of`, and the `questions` that they
        are of, as `longvideo_gates` reads them.
        """
        held = write_corpus(self.folder, self.preset.sizes, self.log, self.seed)
        self.make_shards()
        self.start()
        for stage in (1, 2) if self.stage2 is None else ():
            self.train(stage)
        self.make_features(held)
        memory = self.train(3)
        few = self.train(3, FEW_FEATURES)
        right = self.examine(held, memory, few)
        chosen = balanced(held)
        questions = [asked for asked in answered(held, right) if asked["id"] in chosen]
        return {"seed": self.seed, "rows": rows_of(questions), "questions": questions}

    def make_shards(self) -> None:
        """From annotation rows to the mixture, as the assets do it."""
        storage, settings = self.storage, self.settings
        collect_annotations(storage, settings, self.log)
        build_catalogue(storage, settings, self.log)
        acquire_part(storage, settings, SOURCE, PART, self.log)
        group_part(storage, settings, 0, self.log)
        write_long_video_part(storage, settings, 0, self.log)
        for kind in LLAVA_KINDS:
            for part in range(LLAVA_PARTS):
                write_kind_part(storage, settings, kind, part, _silent)
        self.log(f"mixture: {write_mixture(storage, [0]).counts}")

    def start(self) -> None:
        """The starting point, and stage 2 where it is given."""
        from model.weights.tiny import build_tiny

        folder = f"checkpoints/{VARIANT}/base"
        if not self.storage.exists(f"{folder}/export/config.json"):
            with self.storage.writing_folder(folder) as fresh:
                build_tiny(
                    fresh / "export", config=self.preset.model, seed=f"long videos {self.seed}"
                )
        self._record("base_model", folder)
        if self.stage2 is not None:
            given = f"checkpoints/{VARIANT}/stage2/given"
            with self.storage.writing_folder(given) as fresh:
                shutil.copytree(self.stage2, fresh / "export")
            self._record("stage2", given)

    def train(self, stage: int, features: str = FEATURES) -> RunConfig:
        """One stage through the training loop, in this process; a finished one is left as it is."""
        from training.data.loader import build_loader
        from training.loop import train
        from training.reporting import open_reporter

        inputs = dict.fromkeys(
            (previous_checkpoint(self.settings, VARIANT, stage), *shard_products(stage)),
            "benchmark",
        )
        run, folder = stage_run(self.settings, self.storage, VARIANT, stage, inputs)
        run = replace(run, start_version=None)  # nothing was recorded of it
        if features != FEATURES:
            run = replace(
                run, features_root=self.storage.path(features), out=f"{run.out}-{FEW}-frames"
            )
        with open_reporter() as reporter:
            train(run, self.ranks, reporter, build_loader)
        if features == FEATURES:
            self._record(f"stage{stage}", folder)
        results = read_results(run)
        self.log(
            f"stage {stage}: loss {results.first_loss:.3f} -> {results.last_loss:.3f} in "
            f"{results.seconds:.0f} s"
        )
        return run

    def make_features(self, held: Sequence[Held]) -> None:
        """Features of all films by stage 2's encoder, and the same of 64 frames of each."""
        source = Lineage.read(self.storage, product("stage2", VARIANT)).folder
        encoder = publish_vision_encoder(self.storage, source, VARIANT)
        present = present_videos(self.storage, self.settings, PART)
        for one in held:
            rel = f"{HELD_OUT}/{one.film.name}.mp4"
            digest = hash_file(Path(self.storage.path(rel)))
            duration = float(one.film.duration)
            present.append(PresentVideo(one.video, duration, digest, rel, damaged=False))
        folder = self.storage.local_folder(encoder.folder)
        report = extract_part(
            self.storage, self.settings, VARIANT, present, folder, self.log, f"features[{VARIANT}]"
        )
        if report.quarantine:
            raise RuntimeError(f"films without features: {report.quarantine}")
        for video in present:
            few_frames(
                Path(self.storage.path(f"{FEATURES}/{video.video}.safetensors")),
                Path(self.storage.path(f"{FEW_FEATURES}/{video.video}.safetensors")),
            )

    def examine(
        self, held: Sequence[Held], memory: RunConfig, few: RunConfig
    ) -> dict[str, dict[str, bool]]:
        """Every held-out question to every column of the table: what was answered right."""
        questions = [
            question_of(one, number) for one in held for number in range(len(one.questions))
        ]
        stage2 = self.storage.local_folder(
            f"{Lineage.read(self.storage, product('stage2', VARIANT)).folder}/export"
        )
        stage3, trained_on_few = Path(memory.out) / "export", Path(few.out) / "export"
        right: dict[str, dict[str, bool]] = {}
        for name, export, media, visuals in (
            ("stage2", stage2, FEATURES, True),
            ("stage3", stage3, FEATURES, True),
            (f"{FEW} frames", trained_on_few, FEW_FEATURES, True),
            (f"{FEW} frames, untrained", stage3, FEW_FEATURES, True),
            ("blind", stage3, FEATURES, False),
        ):
            report = score_checkpoint(
                export,
                questions,
                Path(self.storage.path(media)),
                self.folder / "answers" / f"{name.replace(' ', '_').replace(',', '')}.parquet",
                self.log,
                name=name,
                visuals=visuals,
                write=False,
                device=self.device,
            )
            if len(report.asked) < len(questions):
                raise RuntimeError(
                    f"{name}: {next(answer.problem for answer in report.answers if answer.problem)}"
                )
            right[name] = {answer.id: answer.correct for answer in report.answers}
            self.log(f"{name}: {report.accuracy:.1%}, chance {report.chance:.1%}")
        return right

    def _overrides(self) -> dict[str, dict[str, Any]]:
        common: dict[str, Any] = {
            "global_batch": self.preset.batch,
            "micro_batch": min(8, self.preset.batch),
            "epochs": 10_000,
            "seed": f"long videos {self.seed}",
        }
        common |= {
            "device": self.device,
            "workers": self.preset.workers,
            "tensorboard": False,
            "save_every": 100,
        }
        return {
            f"stage{n}": {**common, "max_steps": steps}
            for n, steps in enumerate(self.preset.steps, start=1)
        }

    def _record(self, name: str, folder: str) -> None:
        """What Dagster's assets would record: later steps find the folder by it."""
        Lineage(product=product(name, VARIANT), version="benchmark", folder=folder).write(
            self.storage
        )


def few_frames(source: Path, target: Path) -> None:
    """A feature file of 64 frames of another one, spread evenly."""
    whole = FeatureFile(source)
    chosen = np.linspace(0, whole.frames - 1, FEW, dtype=np.int64)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_features(target, whole.read(chosen), whole.pts[chosen], whole.metadata)


def question_of(one: Held, number: int) -> EvaluationQuestion:
    """A held-out question in the form that scores checkpoints."""
    asked = one.questions[number]
    return EvaluationQuestion(
        id=f"{one.film.name}/{number}",
        media="video",
        path=f"{one.video}.safetensors",
        question=asked.text,
        answer=asked.answer,
        candidates=asked.choices,
        task=asked.task,
        duration=float(one.film.duration),
    )


def _silent(_: str) -> None:
    """For steps that come by the dozen."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="gpu")
    parser.add_argument(
        "--folder", type=Path, help="default: data/longvideo-PRESET-SEED, for tiny a temporary one"
    )
    parser.add_argument("--seed", type=int, default=1, help="of films, first weights and order")
    parser.add_argument(
        "--start",
        type=Path,
        help="an export to begin stage 3 with; stages 1 and 2 are then left out",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--results", type=Path, help="JSON file for table and answers")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = given.folder or Path(f"data/longvideo-{given.preset}-{given.seed}")
        if (
            given.preset == "tiny" and given.folder is None
        ):  # a look whether it runs: all of it, every time
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="longvideo-")))
        results = LongVideoBenchmark(
            PRESETS[given.preset], folder, given.device, given.start, print, given.seed
        ).run()
        leave_ranks()
    print(markdown(results["rows"]))
    if given.results:
        given.results.parent.mkdir(parents=True, exist_ok=True)
        given.results.write_text(json.dumps(results, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
