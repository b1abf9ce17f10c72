"""Messages and media in, model inputs out: the one way that training and generation share."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer

from model.anyres import plan_anyres
from model.config import PRESETS
from model.conversation import tokenize, video_prompt
from model.images import anyres, padded_square
from model.inputs import IMAGE_TOKEN_INDEX
from model.media.reader import read
from model.media.refusals import MediaError
from model.media.sampling import training_frame_indices
from model.media.timeline import read_timeline
from model.processor import Processor
from tests.model.media import clips, tricky

GOLDEN = Path(__file__).parents[1] / "golden"
RECORD = json.loads((GOLDEN / "tokenize" / "tokenize.json").read_text())
CONFIG = PRESETS["tiny"]
SIZE = CONFIG.vision.image_size
QUESTION = [{"from": "human", "value": "<image>\nWhat happens first?"}]
ANSWERED = [*QUESTION, {"from": "gpt", "value": "A fight."}]


class Stored:
    """Features as an opened feature file gives them: numbered frames, and a record of what was
    read.
    """

    def __init__(self, frames, duration, channels=CONFIG.vision.hidden_size):
        self.frames, self.duration, self.channels = frames, duration, channels
        self.asked = None

    def read(self, indices):
        self.asked = indices.tolist()
        return (
            torch.tensor(self.asked)
            .float()[:, None, None]
            .expand(-1, CONFIG.memory.frame_tokens, self.channels)
        )


@pytest.fixture(scope="module")
def processor():
    return Processor(CONFIG, AutoTokenizer.from_pretrained(GOLDEN / "tokenizer"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return clips.encode(
        tmp_path_factory.mktemp("clip") / "clip.mp4", 90, rate=30, options={"bf": "3"}
    )


def picture(width=50, height=30):
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def test_text_is_tokenised_and_nothing_more(processor):
    turns = RECORD["cases"]["text_only"]["conversations"]
    sample = processor.text(turns, id="t1", seed=7)
    golden = load_file(GOLDEN / "tokenize" / "tokenize.safetensors")
    assert torch.equal(sample.input_ids, golden["text_only.input_ids"])
    assert torch.equal(sample.labels, golden["text_only.labels"])
    assert (sample.id, sample.seed, sample.visuals) == ("t1", 7, [])


@pytest.mark.parametrize(
    "name", [name for name in RECORD["time_cases"] if name.startswith("feature")]
)
def test_stored_features_are_read_and_prompted_as_published(name, processor):
    case = RECORD["time_cases"][name]
    stored = Stored(case["feature_frames"], case["duration"])
    sample = processor.video(stored, case["conversations"])
    assert stored.asked == case["kept_frames"]
    expected, labels = tokenize(case["conversation_after"], processor.tokenizer)
    assert torch.equal(sample.input_ids, expected)
    assert torch.equal(sample.labels, labels)
    [visual] = sample.visuals
    assert visual.kind == "features"
    assert visual.features[:, 0, 0].tolist() == case["kept_frames"]


def test_a_video_file_gives_the_frames_of_the_training_rule_and_says_so(processor, clip):
    sample = processor.video(clip, ANSWERED)
    line = read_timeline(clip)
    chosen = training_frame_indices(line, min_frames=CONFIG.memory.min_frames)
    [visual] = sample.visuals
    assert visual.kind == "frames"
    assert visual.pixels.dtype == torch.uint8
    assert visual.pixels.shape == (len(chosen), 3, SIZE, SIZE)
    assert [
        clips.number(frame.permute(1, 2, 0).numpy()) for frame in visual.pixels
    ] == chosen.tolist()
    expected, _ = tokenize(
        video_prompt(ANSWERED, duration=3.0, frames=len(chosen)), processor.tokenizer
    )
    assert torch.equal(sample.input_ids, expected)


def test_a_path_and_its_frames_give_the_same_inputs(processor, clip):
    line = read_timeline(clip)
    decoded = read(
        line, training_frame_indices(line, min_frames=CONFIG.memory.min_frames), size=SIZE
    )
    from_file = processor.video(str(clip), QUESTION, add_generation_prompt=True)
    from_frames = processor.video(
        decoded.frames_THWC, QUESTION, duration=line.duration, add_generation_prompt=True
    )
    assert torch.equal(from_file.input_ids, from_frames.input_ids)
    assert torch.equal(from_file.visuals[0].pixels, from_frames.visuals[0].pixels)


def test_one_image_becomes_a_square_and_tiles(processor):
    sample = processor.image(picture(), ANSWERED)
    layout = plan_anyres((50, 30), tile=SIZE, side=CONFIG.vision.patches_per_side)
    [visual] = sample.visuals
    assert (visual.kind, visual.image_size) == ("anyres", (50, 30))
    assert torch.equal(visual.pixels, anyres(picture(), layout))


def test_several_images_become_padded_squares_in_order(processor):
    turns = [{"from": "human", "value": "<image>\n<image>\nSame?"}, {"from": "gpt", "value": "No."}]
    first, second = picture(), picture(20, 40)
    sample = processor.images([first, second], turns)
    [visual] = sample.visuals
    assert visual.kind == "images"
    assert torch.equal(
        visual.pixels, torch.stack([padded_square(first, SIZE), padded_square(second, SIZE)])
    )
    assert int((sample.input_ids == IMAGE_TOKEN_INDEX).sum()) == 2


def test_sample_picks_the_way_by_what_it_is_given(processor, clip):
    two = [{"from": "human", "value": "<image><image>"}]
    kinds = [
        processor.sample(QUESTION, video=clip).visuals[0].kind,
        processor.sample(QUESTION, video=Stored(20, 20.0)).visuals[0].kind,
        processor.sample(QUESTION, images=[picture()]).visuals[0].kind,
        processor.sample(two, images=[picture(), picture()]).visuals[0].kind,
    ]
    assert kinds == ["frames", "features", "anyres", "images"]
    assert processor.sample([{"from": "human", "value": "Why?"}]).visuals == []


def test_generation_sees_what_training_saw_before_the_answer(processor, clip):
    trained = processor.video(clip, ANSWERED)
    asked = processor.video(clip, QUESTION, add_generation_prompt=True)
    length = len(asked.input_ids)
    assert torch.equal(asked.input_ids, trained.input_ids[:length])
    assert torch.equal(asked.labels, trained.labels[:length])
    assert torch.equal(asked.visuals[0].pixels, trained.visuals[0].pixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"conversations": [{"from": "human", "value": "<image> <image>"}], "images": [1]},
            "2 <image>.*1 visual",
        ),
        (
            {"conversations": [{"from": "human", "value": "no placeholder"}], "images": [1]},
            "0 <image>.*1 visual",
        ),
        ({"conversations": QUESTION, "images": [1], "video": "x.mp4"}, "a video and 1 images"),
        (
            {"conversations": QUESTION, "video": np.zeros((2, 8, 8, 3), np.uint8)},
            "give its duration",
        ),
        (
            {"conversations": QUESTION, "video": np.zeros((2, 3, 8, 8), np.uint8), "duration": 1.0},
            r"\[2, 3, 8, 8\]",
        ),
        ({"conversations": QUESTION, "video": np.zeros((2, 8, 8, 3)), "duration": 1.0}, "float64"),
        (
            {"conversations": ANSWERED, "images": [1], "add_generation_prompt": True},
            "'bad'.*already is an answer",
        ),
        ({"conversations": QUESTION, "video": Stored(20, 20.0, channels=7)}, r"\[20, 16, 7\]"),
    ],
)
def test_input_that_does_not_fit_together_is_refused(arguments, message, processor):
    if "images" in arguments:
        arguments = {**arguments, "images": [picture()]}
    with pytest.raises(ValueError, match=message):
        processor.sample(id="bad", **arguments)


def test_without_a_visual_an_image_placeholder_is_literal_text(processor):
    turns = [
        {"from": "human", "value": "What does <image> mean?"},
        {"from": "gpt", "value": "<image> stands for a picture."},
    ]
    sample = processor.text(turns)
    assert IMAGE_TOKEN_INDEX not in sample.input_ids
    text = processor.tokenizer.decode(sample.input_ids)
    assert "user\nWhat does <image> mean?<|im_end|>" in text
    assert "assistant\n<image> stands for a picture.<|im_end|>" in text


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -5.0])
def test_a_video_cannot_last_no_time_at_all(seconds, processor):
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="cannot last"):
        processor.video(frames, QUESTION, duration=seconds)


def test_a_list_of_pictures_is_a_video(processor):
    pictures = [picture() for _ in range(3)]
    array = np.stack([np.asarray(one) for one in pictures])
    sample = processor.video(pictures, QUESTION, duration=3.0)
    expected = processor.video(array, QUESTION, duration=3.0)
    assert torch.equal(sample.visuals[0].pixels, expected.visuals[0].pixels)
    assert torch.equal(sample.input_ids, expected.input_ids)


@pytest.mark.parametrize("call", ["image", "video"])
def test_an_address_is_refused_by_name(call, processor):
    with pytest.raises(ValueError, match=r"https://example\.com/a.* is an address, not a file"):
        getattr(processor, call)("https://example.com/a.mp4", QUESTION)


def test_what_is_no_picture_is_refused_by_name(processor):
    with pytest.raises(ValueError, match="no images"):
        processor.images([], QUESTION)
    with pytest.raises(ValueError, match="cannot be made from a list"):
        processor.image([picture()], QUESTION)
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\], not float64"):
        processor.image(np.zeros((8, 8, 3)), QUESTION)


def test_an_array_is_a_picture(processor):
    one = picture()
    given = processor.image(np.asarray(one), QUESTION).visuals[0].pixels
    assert torch.equal(given, processor.image(one, QUESTION).visuals[0].pixels)


def test_a_video_has_one_placeholder_however_often_its_question_names_it(processor):
    sample = processor.video(Stored(2, 2.0), [{"from": "human", "value": "In <image> or <image>?"}])
    assert int((sample.input_ids == IMAGE_TOKEN_INDEX).sum()) == 1


def test_an_unusable_video_is_a_media_error_with_its_reason(processor, tmp_path):
    page = tmp_path / "page.mp4"
    page.write_text("<html>404</html>" * 50)
    with pytest.raises(MediaError, match=r"page\.mp4: not_media") as caught:
        processor.video(page, QUESTION)
    assert caught.value.reason == "not_media"


def test_a_damaged_short_video_is_used_and_told(processor, tmp_path, clip):
    hurt = processor.video(tricky.by_name("flipped_bits.mp4", tmp_path), QUESTION)
    assert "the decoder mended" in hurt.damage
    assert processor.video(clip, QUESTION).damage == ""


def test_a_short_video_is_refused_by_the_rule_of_features(processor, tmp_path):
    with pytest.raises(MediaError) as refused:
        processor.video(tricky.by_name("zeroed_stretch.mp4", tmp_path), QUESTION)
    assert refused.value.reason == "too_corrupt"
