"""`hourllava ask` on an hour-long file at full size: decoding, encoding, the first token, tokens a
second and follow-up questions, by the command's own code. Random weights.

    python -m benchmarks.ask                         # 3B and 7B, one GPU, an hour at 640x360
    python -m benchmarks.ask --variants 3b --minutes 10
    python -m benchmarks.ask --preset tiny           # any CPU, to see that it runs

The file is drawn: H.264 at 30 frames a second. `decode_s` is the time spent waiting for pictures,
`encode_s` that in the vision encoder. The plain way, on the first two minutes of the same file:
every frame decoded, resized with Pillow, a float32 encoder with eager attention; and an answer
through transformers' growing cache, step by step, without a CUDA graph. What follows up is asked in
the same conversation. An answer never ends by itself here.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from assets.annotations.catalogue import PresentVideo
from assets.inference.decoders import DecodedVideo
from assets.inference.session import RememberedVideo, Said, Session, StreamedAnswer
from benchmarks import training_data
from benchmarks.feature_baseline import FPS, baseline, encode_unit, make_encoder, repeat
from benchmarks.usage import Usage
from model.config import PRESETS, HourLlavaConfig

QUESTIONS = (
    "What happens in this video? Answer in detail.",
    "Who is seen first, and what do they do?",
    "And what happens after that, in the last quarter?",
)
NEVER = -1  # no token has this number


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", choices=sorted(PRESETS), default=["3b", "7b"])
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain way out")
    parser.add_argument("--folder", type=Path, default=Path("data/benchmark"))
    parser.add_argument("--json", type=Path, help="append the rows to this file, too")
    parser.add_argument("--preset", choices=["tiny"], help="the quick CPU size of all benchmarks")
    options = parser.parse_args()
    unit_s = 60
    if options.preset:
        options.variants, options.minutes, options.tokens, unit_s = ["tiny"], 1, 8, 4
    path = draw(options.folder, options.minutes, unit_s)
    for variant in options.variants:
        row = measure(variant, path, options)
        line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        print(line, flush=True)
        if options.json:
            with open(options.json, "a", encoding="utf-8") as file:
                file.write(line + os.linesep)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def draw(folder: Path, minutes: int, unit_s: int) -> Path:
    """The file that is asked about: some seconds that are drawn, over and over."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"asked-{minutes}-{unit_s}.mp4"
    if not path.exists():
        unit = encode_unit(folder / "asked-unit.mp4", unit_s * FPS, 0)
        unfinished = path.with_name(f"part-{path.name}")
        repeat(unit, unfinished, minutes * 60 // unit_s)
        unfinished.rename(path)
    return path


def measure(variant: str, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    config = PRESETS[variant]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = training_data.start_folder(options.folder, config)
    training_data.write_start(start, config, device)
    row: dict[str, Any] = {"variant": variant, "minutes": options.minutes}
    began = time.perf_counter()
    session = Session(start)
    session.end = NEVER
    row["load_s"] = time.perf_counter() - began
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with timed_parts(session) as parts, Usage() as usage:
        began = time.perf_counter()
        video = session.video(path)
        synchronise(device)
        row["video_s"] = time.perf_counter() - began
    row |= {"frames": video.frames, "cores": usage.cores(row["video_s"]), **parts}
    conversation: list[tuple[str, str]] = []
    for number, question in enumerate(QUESTIONS):
        answer = session.ask(question, video, options.tokens, earlier=conversation)
        conversation.append((question, "".join(answer)))
        name = ("question", "follow_up", "second_follow_up")[number]
        row[f"{name}_first_token_s"] = answer.first_token
        row[f"{name}_tokens_per_s"] = tokens_per_s(answer)
        row[f"{name}_prompt_tokens"] = answer.prompt_tokens
    if device.type == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    if not options.no_plain:
        row |= plain_answer(session, video, options.tokens)
        row |= plain_features(path, config)
    return row


def tokens_per_s(answer: StreamedAnswer) -> float:
    """After the first one."""
    return (answer.tokens - 1) / (answer.seconds - answer.first_token)


@contextmanager
def timed_parts(session: Session) -> Iterator[dict[str, float]]:
    """Seconds that the reading of a video spends on its first pass over the file, on waiting for
    pictures, and in the vision encoder.
    """
    spent = {"timeline_s": 0.0, "decode_s": 0.0, "encode_s": 0.0}
    model, chunks = session.model.model, DecodedVideo.chunks

    def clocked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            found = call(*arguments, **named)
            if isinstance(found, torch.Tensor):
                synchronise(found.device)
            spent[name] += time.perf_counter() - began
            return found

        return run

    def clocked_chunks(*arguments: Any, **named: Any) -> Iterator[Any]:
        coming = chunks(*arguments, **named)
        following = clocked("decode_s", lambda: next(coming, None))
        while (chunk := following()) is not None:
            yield chunk

    with (
        patch.object(DecodedVideo, "begin", clocked("timeline_s", DecodedVideo.begin)),
        patch.object(DecodedVideo, "chunks", clocked_chunks),
        patch.object(model, "encode_frames", clocked("encode_s", model.encode_frames)),
    ):
        yield spent


def plain_answer(session: Session, video: RememberedVideo, tokens: int) -> dict[str, float]:
    """The first question through transformers' own cache."""
    prompt = session.conversation([Said(QUESTIONS[0])], video=video)
    device = video.memory_ND.device
    synchronise(device)
    began = time.perf_counter()
    cached = session.read([prompt])
    synchronise(device)
    first = time.perf_counter() - began
    began = time.perf_counter()
    cached.generate(tokens)
    return {
        "plain_first_token_s": first,
        "plain_tokens_per_s": tokens / (time.perf_counter() - began),
    }


def plain_features(path: Path, config: HourLlavaConfig) -> dict[str, float]:
    """Pictures a second, from the file to features."""
    video = PresentVideo("asked/plain", 0.0, "", path.name, damaged=False)
    with tempfile.TemporaryDirectory() as folder:
        encoder = make_encoder(Path(folder) / "encoder", config)
        found = baseline(path.parent, [video], encoder, config, chunks=1)
    names = ("decode", "preprocess", "tower", "end_to_end")
    return {f"plain_{name}_fps": found[name] for name in names}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
