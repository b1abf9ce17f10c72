"""Generated data on disk for benchmarks/train.py: shards, features, images and short videos that
the real loader reads.

Everything is named and drawn from the name, so a folder that is there already is used again.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from streaming import MDSWriter
from transformers import PreTrainedTokenizerBase

from model.config import HourLlavaConfig
from model.hf import HourLlavaForCausalLM
from model.hf_config import HourLlavaHFConfig
from model.vision import encode_frames
from model.vision_encoders import VisionEncoder
from model.weights.tensors import write_tensors
from model.weights.tiny import write_tokenizer
from training.formats.feature_file import write_features
from training.formats.hashing import seed_of
from training.formats.kinds import (
    IMAGE_KIND,
    LONG_VIDEO_KIND,
    MULTI_IMAGE_KIND,
    SHORT_VIDEO_KIND,
    TEXT_KIND,
)
from training.formats.sample import COLUMNS, Sample, encode

MINUTE = 60
# An hour-long video each; and what the long stream of stage 3 looks like: videos of 3 to 60 minutes
# among texts.
HOUR = (60 * MINUTE,)
MIXED = (60 * MINUTE, 0, 3 * MINUTE, 10 * MINUTE, 5 * MINUTE, 0, 40 * MINUTE, 20 * MINUTE)
DISTINCT_VIDEOS = 16  # feature files of one length; an hour's has 0.5 GB

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 200, 60),
    "blue": (40, 70, 220),
    "yellow": (230, 210, 40),
}


def write_description(folder: Path, config: HourLlavaConfig) -> HourLlavaHFConfig:
    """The configuration and a small tokenizer of a checkpoint, without its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder, config.max_length)
    settings = HourLlavaHFConfig.of(
        config, eos_token_id=vocabulary["<|im_end|>"], pad_token_id=vocabulary["<|endoftext|>"]
    )
    settings.save_pretrained(folder)
    return settings


def start_folder(root: Path, config: HourLlavaConfig) -> Path:
    """Where the benchmarks keep the checkpoint with random weights of a model."""
    return root / f"start-{config.variant}-{config.llm.num_layers}"


def write_start(folder: Path, config: HourLlavaConfig, device: torch.device) -> None:
    """A checkpoint with random weights N(0, 0.02), drawn on `device`, stored in bfloat16, and a
    small tokenizer.
    """
    if (folder / "model.safetensors").exists():
        return
    with torch.device("meta"):
        model = HourLlavaForCausalLM(write_description(folder, config))
    torch.manual_seed(seed_of("benchmark", config.variant))
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name == "model.llm.lm_head.weight" and config.llm.tie_word_embeddings:
            continue
        if "norm" in name:
            value = (torch.zeros if name.endswith("bias") else torch.ones)(
                tensor.shape, dtype=torch.bfloat16
            )
        else:
            value = (0.02 * torch.randn(tensor.shape, dtype=torch.bfloat16, device=device)).cpu()
        tensors[name] = value
    write_tensors(folder / "model.safetensors", tensors)


def write_long(
    folder: Path,
    root: Path,
    seconds: Iterable[int],
    config: HourLlavaConfig,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    prompt: int = 144,
    answer: int = 256,
) -> None:
    """Samples about stored features of random numbers (and texts, where a length is 0): part 0 of
    the long videos, below `folder`. Its features lie below `root`.
    """
    samples = []
    for number, length in enumerate(seconds):
        turns = [
            {"from": "human", "value": text_of(tokenizer, prompt)},
            {"from": "gpt", "value": text_of(tokenizer, answer)},
        ]
        if not length:
            samples.append(Sample(f"text-{number}", TEXT_KIND, "text", turns))
            continue
        name = f"generated/{number % DISTINCT_VIDEOS}-{length}"
        path = root / "features" / f"{name}.safetensors"
        write_random_features(path, length, length, config, device)
        turns[0]["value"] = "<image>\n" + turns[0]["value"]
        sample = Sample(f"long-{number}", LONG_VIDEO_KIND, "video", turns, [], name, length)
        samples.append(sample)
    write_shards(folder / "sharding" / f"{LONG_VIDEO_KIND}_part0", samples)


def write_random_features(
    path: Path, frames: int, seconds: float, config: HourLlavaConfig, device: torch.device
) -> None:
    """A feature file of random numbers, drawn from its name, where there is none yet."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device).manual_seed(seed_of(f"{path.parent.name}/{path.stem}"))
    shape = (frames, config.memory.frame_tokens, config.vision.hidden_size)
    features = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
    times = torch.arange(frames, dtype=torch.float32) * (seconds / frames)
    write_features(path, features, times, {"duration": str(seconds)})


def write_shards(folder: Path, samples: Iterable[Sample]) -> None:
    """An MDS part."""
    if (folder / "index.json").exists():
        return
    with MDSWriter(out=str(folder), columns=COLUMNS, hashes=["xxh64"]) as writer:
        for sample in samples:
            writer.write(encode(sample))


def write_pictures(folder: Path, count: int, config: HourLlavaConfig) -> None:
    """Questions about the colours of images, pairs of images and short videos, which a model can
    learn to answer.
    """
    names = list(COLORS)
    single, pairs, texts, videos = [], [], [], []
    for number in range(count):
        first, second = names[number % 4], names[(number // 4) % 4]
        single.append(
            Sample(
                f"one-{number}",
                IMAGE_KIND,
                "image",
                _turns("<image>\nWhich color?", first),
                [_png(first, number)],
            )
        )
        pairs.append(
            Sample(
                f"two-{number}",
                MULTI_IMAGE_KIND,
                "multi_image",
                _turns("<image>\n<image>\nWhich colors?", f"{first} and {second}"),
                [_png(first, number), _png(second, number + 1)],
            )
        )
        texts.append(
            Sample(
                f"text-{number}", TEXT_KIND, "text", _turns(f"What comes after {first}?", second)
            )
        )
        path = f"clip-{number % 16}.mp4"
        _clip(folder / "videos" / path, first, second)
        videos.append(
            Sample(
                f"clip-{number}",
                SHORT_VIDEO_KIND,
                "video",
                _turns("<image>\nWhich colors?", f"{first}, {second}"),
                video=path,
                duration=8.0,
            )
        )
    for kind, samples in (
        (IMAGE_KIND, single),
        (MULTI_IMAGE_KIND, pairs),
        (TEXT_KIND, texts),
        (SHORT_VIDEO_KIND, videos),
    ):
        write_shards(folder / "sharding" / f"{kind}_part0", samples)


def write_seen(
    folder: Path, encoder: VisionEncoder, count: int, config: HourLlavaConfig, frames: int = 300
) -> None:
    """Long videos of two colours, passed through a vision encoder: features, and questions about
    them.
    """
    names, samples = list(COLORS), []
    side, size = config.memory.pooled_side, config.vision.image_size
    for number in range(count):
        first, second = names[number % 4], names[(number // 4) % 4]
        name = f"seen/{number}"
        generator = torch.Generator().manual_seed(seed_of(name))
        colors = torch.tensor(
            [COLORS[first]] * (frames // 2) + [COLORS[second]] * (frames - frames // 2)
        )
        few = colors[:: frames // 10, :, None, None].expand(-1, 3, size, size).float()
        few = (few + 12 * torch.randn(few.shape, generator=generator)).clamp(0, 255).to(torch.uint8)
        features = encode_frames(encoder, few, side).repeat_interleave(
            -(-frames // len(few)), dim=0
        )[:frames]
        path = folder / "features" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_features(
            path, features, torch.arange(frames, dtype=torch.float32), {"duration": str(frames)}
        )
        turns = _turns("<image>\nWhich colors?", f"{first}, then {second}")
        samples.append(Sample(name, LONG_VIDEO_KIND, "video", turns, video=name, duration=frames))
    write_shards(folder / "sharding" / f"{LONG_VIDEO_KIND}_part0", samples)


def forget_cached(folder: Path) -> None:
    """Drop files from the page cache, so that they are read from the disk again (Linux)."""
    for path in folder.rglob("*.safetensors"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: int) -> str:
    """Words of about so many tokens."""
    ids = tokenizer("the man walks in the street and then he opens the door " * tokens)[
        "input_ids"
    ][:tokens]
    return str(tokenizer.decode(ids)).strip()


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _png(color: str, number: int) -> bytes:
    shade = tuple(min(255, max(0, value + number % 11 - 5)) for value in COLORS[color])
    buffer = io.BytesIO()
    Image.new("RGB", (320, 240), shade).save(buffer, "PNG")
    return buffer.getvalue()


def _clip(path: Path, first: str, second: str, seconds: int = 8, fps: int = 8) -> None:
    """A video of one colour, then another."""
    if path.exists():
        return
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(seconds * fps):
            color = COLORS[first if number < seconds * fps / 2 else second]
            container.mux(
                stream.encode(av.VideoFrame.from_image(Image.new("RGB", (160, 120), color)))
            )
        container.mux(stream.encode())
