"""The deployment's settings: one YAML file, typed, every key known.

A user changes this file, never the code: where data lives, which sources there are, how much to
download at once, how a stage is launched. Relative paths count from the file. Secrets never stand
here: tokens, cookies and proxies come from the environment. Variants and what runs by itself are
described beside this file (`variants`, `automation`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from assets.deployment.ablation import Ablation
from assets.deployment.automation import Automation, Notices
from assets.deployment.compute import Compute
from assets.deployment.estimate import Estimate
from assets.deployment.overrides import refuse_unusable
from assets.deployment.parts import LLAVA_PARTS, part_name
from assets.deployment.variants import (
    LAST_STAGE,
    Variant,
    checkpoints_of,
    llava_kinds,
    named,
    refuse_names,
)
from assets.deployment.yaml_file import read_yaml
from assets.endpoints.options import Questions
from assets.fetching.options import Download
from assets.sources.drop import DropSource
from assets.sources.kinds import VideoSource
from model.configuration import Section, parse, unknown_key
from model.media.limits import MAX_VIDEO_PIXELS
from training.formats.kinds import SHORT_VIDEO_KIND
from training.recipes import STAGES, stage_inputs

SOURCE_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
OWN_HELD_OUT_SHARE = 0.15
CONFIG_VARIABLE = "HOURLLAVA_CONFIG"
DEFAULT_CONFIG = Path(__file__).parents[2] / "pipeline" / "deployment.yaml"


class Annotations(Section):
    """Question-answer rows: a Hugging Face dataset at a revision, or files of the same schema."""

    repo: str | None = Field(default=None, description="a dataset on the hub: namespace/name")
    revision: str = Field(default="main", description="branch, tag or commit of the repo")
    paths: list[str] = Field(
        default=[], description="local paths or URLs of Parquet, CSV, JSON or JSONL files"
    )
    files: list[str] = Field(
        default=["data/*.parquet"], description="glob patterns of annotation files in the repo"
    )
    columns: dict[str, str | None] = Field(
        default={},
        description="where names differ: a column's name in the files, and ours (null: leave it "
        "out)",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Annotations:
        if self.repo is not None and self.paths:
            raise ValueError("give either annotations.repo or annotations.paths, not both")
        return self


class Collections(Section):
    """The other two collections, and which of their annotation files are used."""

    onevision_repo: str = Field(
        default="lmms-lab/LLaVA-OneVision-Data", description="images: a dataset on the hub"
    )
    onevision_revision: str = Field(default="main", description="its branch, tag or commit")
    video_repo: str = Field(
        default="lmms-lab/LLaVA-Video-178K", description="short videos: a dataset on the hub"
    )
    video_revision: str = Field(default="main", description="its branch, tag or commit")
    mixtures: Path | None = Field(
        default=None, description="CSV kind,collection,annotation,fraction; default: built in"
    )
    onevision_licence: str | None = Field(
        default=None, description="of the collection, for the checkpoints' bills of materials"
    )
    video_licence: str | None = Field(default=None, description="the same, of the other one")
    skip: list[str] = Field(
        default=[],
        description="annotation files of the mixture to do without, such as those without media",
    )
    require_all: bool = Field(
        default=False, description="a missing annotation file is an error, not a line in a table"
    )


class Shards(Section):
    """How samples are written."""

    workers: int = Field(default=2, ge=1, description="processes that write shards at a time")
    rows_per_shard: int = Field(default=256, ge=1, description="samples in one shard")
    turns_per_sample: int = Field(
        default=5, ge=1, description="questions about one video that one sample holds at most"
    )
    seed: str = Field(
        default="hour-llava",
        description="text that decides the order of rows and turns; another one makes other shards",
    )
    max_drop_share: float = Field(
        default=0.1, ge=0, le=1, description="share of dropped samples that fails a part"
    )
    reencode: Literal["png", "jpeg"] = Field(
        default="png",
        description="form of images that cannot be stored as they are; png loses nothing",
    )


class Limits(Section):
    """What one video may cost its decoder before it is given up."""

    max_pixels: int = Field(
        default=MAX_VIDEO_PIXELS,
        ge=1,
        description="width x height; looked at before decoding begins",
    )
    max_frames: int = Field(
        default=4 * 3600, ge=1, description="frames kept of a video; four hours at one a second"
    )
    memory_bytes: int = Field(
        default=3 << 30, ge=1 << 28, description="most memory of a decoding process"
    )
    stall_s: float = Field(
        default=30.0,
        gt=0,
        description="seconds without a picture, while there is room for one, after the first pass",
    )
    deadline_s: float = Field(
        default=120.0,
        gt=0,
        description="seconds for a whole video, or half its duration where that is more",
    )
    attempts: int = Field(
        default=3,
        ge=1,
        description="runs that try a video again after a timeout, a crash or memory running out",
    )
    recycle_after: int = Field(
        default=200, ge=1, description="videos after which a decoding process is replaced"
    )
    buffer_bytes: int = Field(
        default=2 << 30,
        ge=1 << 20,
        description="most memory for pictures between decoders and encoders",
    )


class Features(Section):
    """Decoding and encoding of videos whose features are kept: the long ones, and the short ones
    of stage 3 where that is chosen.
    """

    decode_workers: int = Field(
        default=2, ge=1, description="decoding processes; each uses about one core"
    )
    batch_size: int = Field(
        default=64, ge=1, description="frames in one forward pass of the encoder"
    )
    decoder: Literal["auto", "pyav", "decord", "nvdec"] = Field(
        default="auto",
        description="auto: PyAV, and NVDEC beside it where PyNvVideoCodec and a GPU are there",
    )
    encoder: str | None = Field(
        default=None, description="SigLIP checkpoint to use instead of the stage-2 export"
    )
    short_videos: bool = Field(
        default=False,
        description="keep features of the LLaVA collection's short videos as well, which stage 3 "
        "then reads instead of decoding and encoding them at every step; at 3b and 7b 19 MB a "
        "video, see docs/videos.md",
    )
    damaged: Literal["use", "skip"] = Field(
        default="use",
        description="what is done with a video of which some pictures did not decode; skip sets "
        "it aside",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where the encoder runs; auto: on a GPU where there is one"
    )
    limits: Limits = Limits()


class Training(Section):
    """How a stage is launched. The recipes are in training/recipes.py; `overrides` changes them for
    this deployment.
    """

    processes: int = Field(default=1, ge=1, description="ranks on this machine, one for each GPU")
    nodes: int = Field(
        default=1,
        ge=1,
        description="machines that train a stage together. This one starts its own share; on "
        "every other one, start what the step's log shows after 'starting:'. All of them see the "
        "same root, under the same path",
    )
    rendezvous: str | None = Field(
        default=None,
        description="when nodes > 1: host:port of one of them that the others can reach, any free "
        "port",
    )
    cpu_threads: int = Field(
        default=2, ge=1, description="threads of each rank when there is no GPU"
    )
    scratch: Path = Field(
        default=Path(".scratch"),
        description="folder of running stages when root is remote; when nodes > 1, one that all "
        "of them see",
    )
    upload_every_s: float | None = Field(
        default=1800,
        gt=0,
        description="when root is remote: seconds after which the newest checkpoint of a running "
        "stage goes there, too, so that another machine can go on from it; null: never",
    )
    long_videos_only: bool = Field(
        default=False,
        description="stage 3 reads long videos alone, for example one's own, and none of the LLaVA "
        "collections",
    )
    overrides: dict[str, dict[str, Any]] = Field(
        default={},
        description="by stage (stage1, stage2, stage3): fields of training.run_config.RunConfig",
    )


class Evaluation(Section):
    """Which questions score a checkpoint."""

    questions: Path | None = Field(
        default=None, description="benchmark file; see docs on its schema"
    )
    held_out_share: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of the long videos whose rows are never trained on, and are asked "
        "instead of a benchmark file; a hash of a video's name decides. Default: 0.15 where "
        "training.long_videos_only is set and there are no questions, else 0",
    )
    limit: int | None = Field(
        default=None, description="only the first so many questions are asked; default: all"
    )


class Integrity(Section):
    """How fast everything that was made is read again, to find damage before it is needed."""

    bytes_per_night: int | None = Field(
        default=None,
        ge=0,
        description="0: nothing is read. Default: 200 GB on a local root, nothing on an object "
        "store, where reading costs",
    )


class Settings(Section):
    """Everything a deployment decides."""

    root: str = Field(description="local folder or fsspec URL")
    parts: int | None = Field(
        default=None,
        ge=1,
        lt=100,
        description="what the videos of the first landing are dealt to; default: one for each "
        "hundred of them, at most ten. Later changes have no effect: a video keeps its part",
    )
    variants: dict[str, Variant] = Field(
        default=["3b", "7b"],
        validate_default=True,
        description="the models that are trained, by names of your own; a list of presets stands "
        "for the full recipe of each",
    )
    hub_endpoint: str | None = Field(
        default=None, description="a mirror of the Hugging Face hub; default: the hub"
    )
    landing: Path | None = Field(
        default=None, description="folder watched for new question-answer files"
    )
    annotations: Annotations = Annotations()
    sources: dict[str, VideoSource] = Field(
        description="where long videos come from, by the names that rows use"
    )
    download: Download = Download()
    collections: Collections = Collections()
    shards: Shards = Shards()
    features: Features = Features()
    training: Training = Training()
    compute: Compute = Compute()
    evaluation: Evaluation = Evaluation()
    automation: Automation = Automation()
    notices: Notices = Notices()
    integrity: Integrity = Integrity()
    estimate: Estimate = Estimate()
    questions: Questions = Questions()
    ablation: Ablation | None = Field(
        default=None, description="a study of the model's own choices; null: there is none"
    )

    @model_validator(mode="after")
    def _usable_overrides(self) -> Settings:
        presets = sorted({variant.preset for variant in self.variants.values()})
        overrides, known = self.training.overrides, {f"stage{stage}": stage for stage in STAGES}
        for name, changes in overrides.items():
            where = f"training.overrides.{name}"
            if name not in known:
                raise ValueError(unknown_key(where, known, name))
            refuse_unusable(where, presets, known[name], changes)
        if self.ablation is not None:
            changes = {**overrides.get("stage3", {}), **self.ablation.overrides}
            refuse_unusable("ablation.overrides", presets, LAST_STAGE, changes)
        return self

    @model_validator(mode="after")
    def _ablation_of_one_variant(self) -> Settings:
        if self.ablation is None:
            return self
        if len(self.variants) != 1:
            raise ValueError(
                "ablation: a study is of one variant; write settings of its own for it, with the "
                f"same root and one of {', '.join(self.variants)}"
            )
        (variant,) = self.variants.values()
        known = checkpoints_of(variant)
        if (start := self.ablation.start) is not None and start not in known:
            raise ValueError(
                f"ablation.start is {start}, which the variant does not make; it has "
                f"{', '.join(name for name in known if name != 'stage3')}"
            )
        self.ablation.chosen(variant.preset, self.training.long_videos_only)
        return self

    @model_validator(mode="after")
    def _short_videos_of_their_own_encoder(self) -> Settings:
        if not self.features.short_videos:
            return self
        if self.training.long_videos_only:
            raise ValueError(
                "features.short_videos: with training.long_videos_only no short video is trained "
                "on; take one of the two out"
            )
        if self.features.encoder is not None:
            raise ValueError(
                "features.short_videos: what is kept of short videos has to be what the variant's "
                "own vision encoder gives; take features.encoder out, or short_videos"
            )
        return self

    @model_validator(mode="after")
    def _own_sources(self) -> Settings:
        drops = [name for name, source in self.sources.items() if isinstance(source, DropSource)]
        if wrong := [name for name in self.questions.sources if name not in drops]:
            raise ValueError(
                f"questions.sources: {', '.join(wrong)}: only sources of the kind drop can be "
                f"asked about before rows name their videos; here: {', '.join(drops) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_more_nodes(self) -> Settings:
        if self.compute.gpu.is_slurm and self.training.nodes > 1:
            raise ValueError(
                "training.nodes: where stages are jobs, compute.gpu.nodes says how many machines"
            )
        return self

    @model_validator(mode="after")
    def _some_rows(self) -> Settings:
        named = self.annotations.repo or self.annotations.paths
        if not (named or self.landing or self.questions.sources):
            raise ValueError(
                "no question-answer rows: give annotations.repo or annotations.paths, a landing "
                "folder, or questions.sources"
            )
        return self

    @property
    def held_out_share(self) -> float:
        """The share of the long videos that questions are held out of."""
        chosen = self.evaluation.held_out_share
        if chosen is None:
            own = self.training.long_videos_only and self.evaluation.questions is None
            return OWN_HELD_OUT_SHARE if own else 0.0
        return chosen

    @model_validator(mode="after")
    def _one_set_of_questions(self) -> Settings:
        if self.evaluation.questions and self.held_out_share:
            raise ValueError(
                "evaluation: give either questions, a benchmark file, or held_out_share"
            )
        return self

    @property
    def llava_kinds(self) -> tuple[str, ...]:
        """The kinds of shards of the LLaVA collections that anything is trained on."""
        return llava_kinds(self.variants, self.training.long_videos_only)

    @property
    def short_video_parts(self) -> tuple[str, ...]:
        """The LLaVA parts whose short videos have their features kept: those of stage 3."""
        if not self.features.short_videos:
            return ()
        short = {
            item.part
            for stream in stage_inputs(LAST_STAGE, LLAVA_PARTS, long_parts=())
            for item in stream
            if item.kind == SHORT_VIDEO_KIND
        }
        return tuple(part_name(part) for part in sorted(short))

    @field_validator("variants", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return named(value)

    @field_validator("variants")
    @classmethod
    def _usable_names(cls, value: dict[str, Variant]) -> dict[str, Variant]:
        refuse_names(value)
        return value

    @field_validator("sources")
    @classmethod
    def _plain_names(cls, value: dict[str, VideoSource]) -> dict[str, VideoSource]:
        # A source's name is a folder, a half of a video's name, and a part of Dagster's keys.
        if wrong := [name for name in value if not re.fullmatch(SOURCE_NAME, name)]:
            raise ValueError(
                f"{', '.join(map(repr, wrong))}: a source's name has letters, digits, '_' and '-', "
                "and begins with a letter or digit: it is the name of a folder and of partitions"
            )
        return value


def load_settings(path: Path | None = None) -> Settings:
    """Read the deployment's YAML: `path`, else the file that `HOURLLAVA_CONFIG` names, else the
    built-in one.

    Raises:
        ValueError: unknown keys (with the known ones), keys that stand there twice, wrong types, a
            file that is not there, not readable or not YAML.
    """
    path = Path(path or os.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG).resolve()
    try:
        raw = read_yaml(path)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; {CONFIG_VARIABLE} names the deployment's settings"
        ) from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected a mapping of settings, found {type(raw).__name__}")
    try:
        return _resolved(parse(Settings, raw), path.parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _resolved(settings: Settings, folder: Path) -> Settings:
    """The settings with all relative paths counted from `folder`, that of their file."""
    annotations, features = settings.annotations, settings.features
    paths = [_location(path, folder) for path in annotations.paths]
    # These fields are texts, because they may be URLs; fields that are a `Path` follow below.
    locations: dict[str, Any] = {
        "root": _location(settings.root, folder),
        "annotations": annotations.model_copy(update={"paths": paths}),
    }
    if features.encoder is not None:
        encoder = _location(features.encoder, folder)
        locations["features"] = features.model_copy(update={"encoder": encoder})
    return _absolute(settings.model_copy(update=locations), folder)


def _absolute(value: Any, folder: Path) -> Any:
    """`value` with every `Path` in it, also in sections and dictionaries, counted from `folder`."""
    if isinstance(value, Path):
        return (folder / _at_home(value)).resolve()
    if isinstance(value, dict):
        return {key: _absolute(item, folder) for key, item in value.items()}
    if isinstance(value, Section):
        return value.model_copy(update={name: _absolute(item, folder) for name, item in value})
    return value


def _location(text: str, folder: Path) -> str:
    """A URL as it is, a local path counted from `folder`."""
    return text if "://" in text else str((folder / _at_home(Path(text))).resolve())


def _at_home(path: Path) -> Path:
    """A path that begins with `~` or `~user`, from that home; any other one as it is."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None
