"""A video can be asked about again and again: it is read once, answers stream, and each question
stands for itself.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from assets.inference import ask as ask_module
from assets.inference.ask import VideoConversation
from assets.inference.checkpoint import load_checkpoint
from assets.inference.videos import encode_video


@pytest.fixture
def conversation(export, media):
    return VideoConversation(export, media / "short.mp4", device="cpu")


def test_pieces_join_to_what_transformers_generates(conversation, export, media):
    pieces = list(conversation.ask("What colour is the square?", longest=20))
    model, processor = load_checkpoint(export, "cpu")
    turn = {"from": "human", "value": "<image>\nWhat colour is the square?"}
    video = encode_video(model.model, media / "short.mp4")
    sample = processor.video(video, [turn], add_generation_prompt=True)
    expected = model.generate(samples=sample, max_new_tokens=20)[0]
    assert "".join(pieces) == processor.tokenizer.decode(expected, skip_special_tokens=True)
    assert conversation.timing.first_token <= conversation.timing.answer


def test_the_memory_is_made_once_and_questions_do_not_influence_each_other(conversation):
    first = "".join(conversation.ask("What colour is the square?", longest=12))
    model = conversation.model.model
    for part in (model.vision, model.projector):  # what a memory is made with
        part.register_forward_pre_hook(lambda *_: pytest.fail("the memory is made again"))
    "".join(conversation.ask("Is it night?", longest=12))
    assert "".join(conversation.ask("What colour is the square?", longest=12)) == first


def test_a_feature_file_answers_like_its_video(conversation, export, tmp_path):
    from training.formats.feature_file import write_features

    video = conversation.video
    pts = np.arange(video.frames, dtype=np.float32)
    write_features(
        tmp_path / "short.safetensors", video.features_TPC, pts, {"duration": str(video.duration)}
    )
    other = VideoConversation(export, tmp_path / "short.safetensors", device="cpu")
    assert "".join(other.ask("What is it?", longest=12)) == "".join(
        conversation.ask("What is it?", longest=12)
    )


def test_an_answer_can_be_left_in_the_middle(conversation):
    answer = conversation.ask("What is it?", longest=30)
    next(answer, None)
    answer.close()
    assert list(conversation.ask("What is it?", longest=5)) is not None


def test_characters_come_out_whole(conversation, monkeypatch):
    tokenizer = conversation.processor.tokenizer
    ids = tokenizer("Grün – 緑!", add_special_tokens=False).input_ids
    reading = ask_module.Reading

    class Spelling(reading):
        def tokens(self, longest):
            yield from ([token] for token in [*ids, self.end])

    monkeypatch.setattr(ask_module, "Reading", Spelling)
    pieces = list(conversation.ask("Spell it"))
    assert "".join(pieces) == "Grün – 緑!"
    assert not any(ask_module.UNFINISHED in piece for piece in pieces)


def test_bad_input_is_named(export, media, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        VideoConversation(export, tmp_path / "gone.mp4", device="cpu")
    (tmp_path / "page.mp4").write_bytes(b"<html></html>")
    with pytest.raises(ValueError, match=r"page\.mp4"):
        VideoConversation(export, tmp_path / "page.mp4", device="cpu")
    with pytest.raises(ValueError, match="empty"):
        next(VideoConversation(export, media / "short.mp4", device="cpu").ask("  "))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no usable GPU"):
            VideoConversation(export, media / "short.mp4", device="cuda")
