"""Stage 3 reads kept features of short videos, and gets from them what it gets from pixels."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from assets.checkpoints.runs import refuse_other_encoder, stage_values
from assets.deployment.settings import Settings, load_settings
from assets.features.checks import complete
from assets.features.extract import extract_part
from assets.features.short_videos import short_videos
from assets.records.lineage import Lineage
from model.hf import HourLlavaForCausalLM
from model.inputs import SampleInputs
from model.vision import encode_frames
from pipeline.verify import WHOLE, verify_product
from tests.assets.ablations.study import build_study
from tests.materializing import materialize_products
from tests.model.media import clips
from tests.training.shard_runs import ShardCorpus, make_corpus
from training.data.loader import ShardLoader, build_loader
from training.export import export_vision_encoder
from training.formats import layout
from training.formats.feature_file import FeatureFile
from training.formats.storage import Storage
from training.run_config import RunConfig, StreamConfig

PART, SHORT = "part2", "llavavideo_video"


def settings_of(root: Path) -> Settings:
    return Settings.model_validate(
        {
            "root": str(root),
            "annotations": {"paths": ["none.jsonl"]},
            "sources": {},
            "variants": ["tiny"],
            "features": {"short_videos": True, "device": "cpu", "decode_workers": 1},
        }
    )


class Kept:
    """A corpus with short videos of one part, and their features.

    Attributes:
        slow: one of 20 seconds, with 2 pictures in each.
    """

    def __init__(self, corpus: ShardCorpus, slow: str) -> None:
        self.slow = slow
        self.root, self.corpus = corpus.root, corpus
        self.storage = Storage(str(corpus.root))
        self.encoder = corpus.root / layout.vision_encoder("tiny")
        self.settings = settings_of(corpus.root)

    def extract(self):
        videos = short_videos(self.storage, PART)
        return extract_part(
            self.storage, self.settings, "tiny", videos, self.encoder, print, "kept", "short"
        )

    def check(self):
        videos = short_videos(self.storage, PART)
        return complete(self.storage, self.settings, "tiny", videos, self.encoder, "short")

    def file(self, video: str) -> Path:
        name = layout.feature_file(layout.short_video_features("tiny"), video)
        return Path(self.storage.path(name))

    def loader(self, **changes: object) -> ShardLoader:
        """Of the part's samples."""
        run = self.corpus.short_run((2,), **{"global_batch": 1, "micro_batch": 1, **changes})
        return build_loader(run, self.corpus.processor, rank=0, world_size=1)

    def reading_features(self, **changes: object) -> ShardLoader:
        """The same, where no pixels can be had."""
        folder = self.storage.path(layout.short_video_features("tiny"))
        return self.loader(short_video_features_root=folder, videos_root="", **changes)


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Kept:
    corpus = make_corpus(tmp_path_factory.mktemp("corpus"))
    export_vision_encoder(corpus.root / "tiny", corpus.root / layout.vision_encoder("tiny"))
    first, *_ = short_videos(Storage(str(corpus.root)), PART)
    clips.encode(corpus.root / first.rel, 40, rate=2)
    world = Kept(corpus, first.video)
    assert world.extract().counts["quarantined"] == 0
    return world


@pytest.fixture
def copied(kept, tmp_path) -> Kept:
    """A copy that may be damaged."""
    shutil.copytree(kept.root, tmp_path / "corpus")
    return Kept(ShardCorpus(tmp_path / "corpus", kept.corpus.processor), kept.slow)


def samples(loader: ShardLoader) -> dict[str, SampleInputs]:
    return {sample.id: sample for batch in loader for sample in batch.samples}


@pytest.mark.slow
@torch.no_grad()
def test_a_sample_is_the_same_through_its_pixels_and_through_kept_features(kept):
    model = HourLlavaForCausalLM.from_pretrained(kept.root / "tiny").model.float().eval()
    by_pixels, by_features = samples(kept.loader()), samples(kept.reading_features())
    assert by_pixels.keys() == by_features.keys()
    shown = set()
    for name, seen in by_pixels.items():
        read = by_features[name]
        assert torch.equal(seen.input_ids, read.input_ids)  # also how long, and how many frames
        assert torch.equal(seen.labels, read.labels)
        assert seen.seed == read.seed
        (pixels,), (features,) = seen.visuals, read.visuals
        assert (pixels.kind, features.kind) == ("frames", "features")
        exact = encode_frames(
            model.vision, pixels.tensor, kept.corpus.processor.config.memory.pooled_side
        )
        last_place = exact.abs().max() * 2**-8  # of bfloat16, at the largest value
        assert (features.tensor.float() - exact).abs().max() < last_place
        tokens = model.remember(pixels)
        assert (model.remember(features) - tokens).norm() < 2**-8 * tokens.norm()
        shown.add(len(features.tensor))
    assert shown == {12, 20}  # all pictures of the short clips, every second one of the slow one


@pytest.mark.slow
def test_the_frames_are_those_that_training_decodes(kept):
    file = FeatureFile(kept.file(kept.slow))
    assert file.pts.tolist() == [float(second) for second in range(20)]
    assert kept.check()[0].passed


@pytest.mark.slow
def test_a_video_without_features_is_told_before_the_first_step_and_never_decoded(copied):
    copied.file(copied.slow).unlink()
    with pytest.raises(ValueError, match=r"features missing.*short_video_features"):
        copied.reading_features()
    left = samples(copied.reading_features(max_dropped_share=0.9))
    assert left
    assert all(len(sample.visuals[0].tensor) == 12 for sample in left.values())
    assert not copied.check()[0].passed


@pytest.mark.slow
def test_damaged_features_are_left_out(copied):
    path = copied.file(copied.slow)
    whole = path.read_bytes()
    path.write_bytes(whole[:-200] + bytes([whole[-200] ^ 1]) + whole[-199:])
    loader = copied.reading_features(max_dropped_share=0.9)
    assert len(samples(loader)) < len(samples(copied.loader()))
    assert set(loader.report()) == {"features damaged"}


@pytest.mark.slow
def test_another_file_under_the_same_name_gets_new_features(copied):
    clips.encode(copied.root / layout.LLAVA_VIDEO_FILES / copied.slow, 60, rate=2)
    assert copied.extract().counts["done"] == 1
    assert FeatureFile(copied.file(copied.slow)).frames == 30


def test_a_run_that_tunes_the_vision_encoder_reads_no_kept_features():
    streams = (StreamConfig("clips", "root", ("index.json",)),)
    run = RunConfig("tiny", 3, "start", "out", streams, short_video_features_root="kept")
    with pytest.raises(ValueError, match="this run tunes the vision encoder"):
        replace(run, rates={"vision": 1e-5})


@pytest.fixture
def recorded(tmp_path) -> tuple[Settings, Storage]:
    """A root whose register says that the features were made by the encoder of today."""
    settings = settings_of(tmp_path)
    storage = Storage(settings.root)
    encoder = {"stage2[tiny]": "2"}
    Lineage("vision_encoder[tiny]", "v", "encoder", inputs=encoder).write(storage)
    for part in settings.short_video_parts:
        made = Lineage(
            f"short_video_features[{part}|tiny]", "f", inputs={"vision_encoder[tiny]": "v"}
        )
        made.write(storage)
    return settings, storage


def check_encoder(recorded, version: str = "2", **changes: object) -> None:
    settings, storage = recorded
    inputs = {"stage2[tiny]": version}
    values = stage_values(settings, storage, "tiny", 3, inputs) | changes
    refuse_other_encoder(settings, storage, "tiny", "stage2[tiny]", values, inputs)


def test_a_stage_reads_features_of_its_own_vision_encoder_alone(recorded):
    storage = recorded[1]
    check_encoder(recorded)
    check_encoder(recorded, "another start", vision_start=storage.path("encoder"))
    for change in ({"version": "tuned again"}, {"vision_start": "elsewhere"}):
        with pytest.raises(ValueError, match=r"materialize vision_encoder.* and short_video"):
            check_encoder(recorded, **change)
    encoder = Lineage.read(storage, "vision_encoder[tiny]")
    replace(encoder, version="exported again").write(storage)
    with pytest.raises(ValueError, match=r"part2\|tiny. was made by another vision encoder"):
        check_encoder(recorded)


def test_stage_2_tunes_the_encoder_and_reads_pixels(recorded):
    settings, storage = recorded
    assert not stage_values(settings, storage, "tiny", 2, {})["short_video_features_root"]


@pytest.mark.slow
def test_a_part_is_made_by_dagster_with_its_inputs_on_record(tmp_path):
    path = build_study(tmp_path)
    chosen = yaml.safe_load(path.read_text())
    chosen["features"]["short_videos"] = True
    path.write_text(yaml.safe_dump(chosen))
    storage = Storage(load_settings(path).root)
    for name in (f"{SHORT}[{PART}]", "llava_video"):
        Lineage(name, f"version of {name}").write(storage)
    product = f"short_video_features[{PART}|tiny]"
    materialize_products(path, f"short_video_features={PART}|tiny")
    record = Lineage.read(storage, product)
    assert record.inputs.keys() == {f"{SHORT}[{PART}]", "llava_video", "vision_encoder[tiny]"}
    assert record.counts["done"] == len(short_videos(storage, PART))
    assert not record.failed
    assert verify_product(storage, record).verdict == WHOLE
