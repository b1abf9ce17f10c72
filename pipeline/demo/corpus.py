"""The demo's corpus: real media files with known content, laid out as the hubs and hosts lay theirs
out.

`build_corpus` writes, below one folder:

    deployment.yaml     settings of the demo's deployment
    mixtures.csv        which annotation files make up which kind of shard
    ports.json          ports of the two local servers, kept because the annotation rows name them
    corpus/hub/         what the local hub serves: <namespace>/<name>/...
    corpus/media/       what the local media server serves: panda/<id>.mp4
    corpus/drop/        videos that a person would have put there: ego4d/<id>.mp4
    corpus/held_out/    questions.jsonl with media of its own, never trained on
    corpus/corpus.json  what was built, and by which code

and four things that are wrong on purpose: a URL that is 404, a video cut in half, a question
without an answer, and a question about a source that nobody configured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from model.atomic import remove_unfinished, writing_file, writing_folder
from model.config import VARIANTS
from pipeline.demo import drawing, held_out, llava_sets, marathon, questions
from pipeline.demo.servers import HubServer, MediaServer
from training.recipes import STAGES

CODE = (drawing, questions, marathon, llava_sets, held_out)
SEED = "demo"


@dataclass(frozen=True, slots=True)
class Corpus:
    """Where a built corpus is.

    Attributes:
        folder: the demo's folder.
        counts: what the corpus holds, by name.
        rebuilt: False when an earlier build was found and kept.
    """

    folder: Path
    hub_port: int
    media_port: int
    counts: dict[str, int]
    rebuilt: bool

    @property
    def settings(self) -> Path:
        """The deployment's settings file; `HOURLLAVA_CONFIG` should name it."""
        return self.folder / "deployment.yaml"

    @property
    def questions(self) -> Path:
        return self.folder / "corpus" / "held_out" / "questions.jsonl"

    @contextmanager
    def serve(self) -> Iterator[tuple[HubServer, MediaServer]]:
        """Run both servers on the corpus's ports while the block runs.

        Raises:
            RuntimeError: a port is in use.
        """
        try:
            hub = HubServer(self.hub_port)
            media = MediaServer(self.folder / "corpus" / "media", self.media_port)
        except OSError as error:
            raise RuntimeError(
                f"the demo in {self.folder} serves on ports {self.hub_port} and {self.media_port}, "
                f"and one is in use ({error}); stop the other program (perhaps another demo), or "
                "remove the folder to choose new ports"
            ) from error
        for repo in sorted((self.folder / "corpus" / "hub").glob("*/*")):
            hub.publish(f"{repo.parent.name}/{repo.name}", repo)
        with hub, media:
            yield hub, media


def build_corpus(folder: Path, seed: str = SEED, variant: str = "tiny") -> Corpus:
    """Build the corpus below `folder`, or find that it is already there.

    The same seed, variant and ports give the same bytes. A corpus that other code or another seed
    built is replaced.

    Args:
        seed: of all that is drawn, and of the trainings, which have their own where it is `SEED`.
        variant: that is trained on it. Answers are single words where it starts from nothing, and
            sentences where its language model can write.
    """
    sentences = VARIANTS[variant].packaged
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    ports = _ports(folder / "ports.json")
    identity = {"seed": seed, "sentences": sentences, "code": _code_hash(), **ports}
    counts = _counts_of(folder / "corpus" / "corpus.json", identity)
    rebuilt = counts is None
    if counts is None:
        counts = _build(folder, seed, sentences, identity)
    _write_if_changed(folder / "mixtures.csv", llava_sets.mixtures_csv())
    _write_if_changed(folder / "deployment.yaml", _deployment(seed, variant, **ports))
    (folder / "landing").mkdir(exist_ok=True)
    return Corpus(folder, **ports, counts=counts, rebuilt=rebuilt)


def _build(folder: Path, seed: str, sentences: bool, identity: dict[str, Any]) -> dict[str, int]:
    """Draw everything into a temporary folder that becomes `corpus` when it is complete."""
    target = folder / "corpus"
    remove_unfinished(target)
    with writing_folder(target, durable=False) as building:
        counts = marathon.write_videomarathon(
            building, seed, f"http://127.0.0.1:{identity['media_port']}", sentences
        )
        counts |= llava_sets.write_onevision(building / "hub", seed, sentences)
        counts |= llava_sets.write_llava_video(building / "hub", seed, sentences)
        counts |= held_out.write_held_out(building / "held_out", seed, sentences)
        (building / "corpus.json").write_text(
            json.dumps(identity | {"counts": counts}, indent=1) + "\n"
        )
    return counts


def _deployment(seed: str, variant: str, hub_port: int, media_port: int) -> str:
    on_cpu = VARIANTS[variant].is_demo
    # A second thread gives so small a model nothing.
    training: dict[str, Any] = {"processes": 1, "cpu_threads": 1 if on_cpu else 2}
    if seed != SEED:
        training["overrides"] = {f"stage{stage}": {"seed": seed} for stage in STAGES}
    settings = {
        "root": "data",
        "parts": 2,
        "variants": [variant],
        "hub_endpoint": f"http://127.0.0.1:{hub_port}",
        "landing": "landing",
        "annotations": {"repo": marathon.ANNOTATIONS_REPO},
        "sources": {
            "panda": {"kind": "url", "hosts": [f"127.0.0.1:{media_port}"]},
            "youcook2": {
                "kind": "hub",
                "repo": marathon.YOUCOOK_REPO,
                "archives": [marathon.YOUCOOK_ARCHIVE],
            },
            "ego4d": {
                "kind": "drop",
                "folder": "corpus/drop/ego4d",
                "instructions": "The demo puts its own films here; the real set needs a licence.",
            },
        },
        "download": {
            "workers": 4,
            "min_interval_s": 0.02,
            "attempts": 2,
            "backoff_s": 0.2,
            "min_free_bytes": 1 << 29,
        },
        "collections": {
            "onevision_repo": llava_sets.ONEVISION_REPO,
            "video_repo": llava_sets.VIDEO_REPO,
            "mixtures": "mixtures.csv",
        },
        "features": {"decode_workers": 2, "device": "cpu" if on_cpu else "auto"},
        "training": training,
        "evaluation": {"questions": "corpus/held_out/questions.jsonl"},
        # The demo launches every asset itself, in order.
        "automation": {"data": False},
    }
    heading = (
        "# The demo's deployment, written by pipeline/demo/corpus.py. "
        "Paths count from this file's folder.\n"
    )
    return heading + yaml.safe_dump(settings, sort_keys=False, width=120)


def _ports(path: Path) -> dict[str, int]:
    """The ports that this demo folder uses: two free ones at first, the same ever after."""
    if not path.exists():
        with HubServer() as hub, MediaServer(path.parent) as media:
            _write_if_changed(
                path, json.dumps({"hub_port": hub.port, "media_port": media.port}) + "\n"
            )
    return {name: int(port) for name, port in json.loads(path.read_text()).items()}


def _counts_of(record: Path, identity: dict[str, Any]) -> dict[str, int] | None:
    """What a complete corpus holds; None where there is none, or one of another identity."""
    if not record.exists():
        return None
    found = json.loads(record.read_text())
    counts: dict[str, int] = found.pop("counts")
    return counts if found == identity else None


def _code_hash() -> str:
    digest = hashlib.sha256()
    for module in CODE:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]


def _write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        with writing_file(path, durable=False) as temporary:
            temporary.write_text(text)
