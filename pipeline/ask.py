"""`hourllava ask`: one checkpoint, one video, one question or many."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from model.options import TEMPLATE_TOKENS, AskOptions

if TYPE_CHECKING:
    from assets.inference.session import StreamedAnswer

# Exit codes besides 0: what a person has to mend, and the two that a shell gives to what Ctrl+C and
# a closed pipe end.
FAILED = 2


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `hourllava ask` takes."""
    parser.add_argument(
        "video", help="a video file, a feature file of the checkpoint's variant, or a URL"
    )
    parser.add_argument(
        "question",
        nargs="?",
        help="without one, questions are read from standard input, a line each",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="a stage's export, a released checkpoint, or one of the deployment by name: "
        "stage3[lectures], base_model[lectures]",
    )
    parser.add_argument(
        "--subtitles", type=Path, help="the video's .srt or .vtt file, put above the question"
    )
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="auto: a GPU where there is one",
    )
    parser.add_argument(
        "--longest",
        type=at_least_one,
        default=512,
        metavar="TOKENS",
        help="where an answer is cut off",
    )
    parser.add_argument(
        "--memory-scale",
        type=_share,
        metavar="SHARE",
        help="look up so much of the memory: 1, 1/2, 1/3, ...; 0: only what stays as queries "
        "(default of this and the next two: as the checkpoint was trained)",
    )
    parser.add_argument(
        "--kept-frames",
        type=at_least_one,
        metavar="FRAMES",
        help="so many frames stay as queries",
    )
    parser.add_argument(
        "--template-tokens",
        choices=TEMPLATE_TOKENS,
        help="whether MemAug sees the chat template's tokens",
    )
    parser.add_argument(
        "--forgetting-seed",
        type=int,
        metavar="SEED",
        help="draw the tokens that stay (default: nothing is drawn)",
    )
    parser.add_argument(
        "--any-encoder",
        action="store_true",
        help="take features that another vision encoder made than this one",
    )
    add_fetching_options(parser)


def add_fetching_options(parser: argparse.ArgumentParser) -> None:
    """What decides whether a URL is fetched."""
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="fetch from it though it is private",
    )
    parser.add_argument(
        "--accept-youtube-terms",
        action="store_true",
        help="you have read them and decide that you may download",
    )


def _share(text: str) -> float:
    """An argument that is a number or a fraction."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor a fraction") from None


def at_least_one(text: str) -> int:
    """An argument that is a number of things."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def ask(chosen: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from assets.checkpoints.named import checkpoint_folder
    from assets.inference.checkpoint import find_checkpoint, log_to_terminal
    from assets.inference.decoders import VideoDecoders
    from assets.inference.fetch import check_named, local_video
    from assets.inference.subtitles import read_subtitles
    from training.formats.feature_file import SUFFIX

    log = log_to_terminal
    if chosen.question is not None and not chosen.question.strip():
        raise ValueError("the question is empty")
    options = AskOptions(
        memory_scale=chosen.memory_scale,
        kept_frames=chosen.kept_frames,
        template_tokens=chosen.template_tokens,
        forgetting_seed=chosen.forgetting_seed,
    )
    # What can be told at once comes first: nobody waits for a download that then is of no use.
    check_named(chosen.video)
    subtitles = read_subtitles(chosen.subtitles) if chosen.subtitles else []
    checkpoint = find_checkpoint(checkpoint_folder(chosen.checkpoint, chosen.config), log)
    terms = chosen.accept_youtube_terms
    with local_video(chosen.video, log, hosts=chosen.allow_host, accept_terms=terms) as path:
        decoders = VideoDecoders()
        if path.suffix != SUFFIX:
            decoders.start()  # while the checkpoint is loaded
        from assets.inference.session import Session  # imports torch: not before it is needed

        session, started = Session(checkpoint, chosen.device, decoders), time.perf_counter()
        video = session.video(path, own_encoder=not chosen.any_encoder)
    seconds = time.perf_counter() - started
    log(f"video of {video.duration:.0f} s, {video.frames} frames, remembered in {seconds:.2f} s")
    if video.damage:
        log(f"the video is damaged ({video.damage}): what is said about it may be wrong")
    status = 0
    for question in _questions(chosen):
        try:
            answer = session.ask(
                question, video, chosen.longest, subtitles=subtitles, options=options
            )
            _write(answer, log)
        except ValueError as error:  # the next question can still be answered about this video
            log(f"hourllava ask: {error}")
            status = FAILED
    return status


def _write(answer: StreamedAnswer, log: Callable[[str], None]) -> None:
    for piece in answer:
        print(piece, end="", flush=True)
    print(flush=True)
    if not answer.tokens:
        log("the answer is empty: the model ended it with its first token")
    log(f"first token {answer.first_token:.2f} s, {answer.tokens} tokens in {answer.seconds:.2f} s")


def _questions(chosen: argparse.Namespace) -> Iterable[str]:
    """The question of the command line, else those of the standard input, one a line."""
    if chosen.question is not None:
        return [chosen.question]
    return filter(None, map(str.strip, sys.stdin))
