"""The command line: ``hourllava COMMAND``."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="hourllava", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    commands.add_parser("demo", help="build a small corpus in .demo/ and run the whole pipeline on it, on the CPU")

    why = commands.add_parser("why", help="why is this video not in my shards?")
    why.add_argument("video", help="a video's id, with or without its source (panda/abc)")
    _config_option(why)

    ask = commands.add_parser("ask", help="ask a checkpoint about a video (questions line by line if none is given)")
    ask.add_argument("video", type=Path, help="a video file, or a feature file of the same variant")
    ask.add_argument("question", nargs="?")
    ask.add_argument("--checkpoint", type=Path, required=True, help="an export folder")
    ask.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")

    lineage = commands.add_parser("lineage", help="what a shard or checkpoint was made from, what a video went into")
    lineage.add_argument("what", help="a product (stage3[tiny]), a path inside of one, or a video (panda/abc)")
    lineage.add_argument("--verify", action="store_true", help="also hash the files again")
    _config_option(lineage)

    chosen = parser.parse_args(arguments)
    try:
        return _COMMANDS[chosen.command](chosen)
    except (ValueError, FileNotFoundError) as error:
        print(f"hourllava {chosen.command}: {error}", file=sys.stderr)
        return 2


def _config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, help="the deployment's settings (default: HOURLLAVA_CONFIG, else the built-in ones)"
    )


def _demo(_: argparse.Namespace) -> int:
    from pipeline.demo.run import run_demo

    # Terminated like interrupted: the runs that it started end with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    return run_demo()


def _why(chosen: argparse.Namespace) -> int:
    from assets.settings import load_settings
    from assets.videos.why import why
    from training.storage import Storage

    settings = load_settings(chosen.config)
    for line in why(Storage(settings.root), settings, chosen.video):
        print(line)
    return 0


def _ask(chosen: argparse.Namespace) -> int:
    from assets.evaluation.ask import VideoConversation

    conversation = VideoConversation(chosen.checkpoint, chosen.video, chosen.device)
    for question in [chosen.question] if chosen.question else map(str.strip, sys.stdin):
        for piece in conversation.ask(question):
            print(piece, end="", flush=True)
        print()
    timing = conversation.timing
    print(f"video {timing.video:.2f} s, first token {timing.first_token:.2f} s", file=sys.stderr)
    return 0


def _lineage(chosen: argparse.Namespace) -> int:
    from assets.provenance import Register, products_of_video
    from assets.settings import load_settings
    from assets.videos.catalogue import find_part
    from training.storage import Storage

    settings = load_settings(chosen.config)
    register = Register(Storage(settings.root))
    if part := find_part(register.storage, settings, chosen.what):
        products = products_of_video(register, chosen.what, part)
        print(f"{chosen.what} belongs to {part}; made from that part, nearest first:")
        for name in products:
            print(f"  {register.line(name)}")
    else:
        name = register.find(chosen.what)
        products = sorted({name, *register.ancestors(name)})
        print("made from:")
        print("\n".join(f"  {line}" for line in register.up(name)))
        print("went into:")
        print("\n".join(f"  {line}" for line in register.down(name)))
    if not chosen.verify:
        return 0
    verdicts = [register.verify(name) for name in products if name in register.records]
    print("\n".join(["verified:", *(f"  {verdict}" for verdict in verdicts)]))
    return 1 if any("CHANGED" in verdict for verdict in verdicts) else 0


_COMMANDS = {"ask": _ask, "demo": _demo, "lineage": _lineage, "why": _why}


if __name__ == "__main__":
    sys.exit(main())
