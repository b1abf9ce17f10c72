"""The command line: `hourllava COMMAND`.

Modules of other rooms are imported inside the commands, so that each starts without what only
others need: torch alone takes seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import shtab

from pipeline import __version__, ask, checkpoints, convert, evaluate, serve, train, web_ui
from pipeline.estimate import command as estimate
from pipeline.instance_folder import instance_folder, state_folder

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from training.formats.storage import Storage

VIDEO_HELP = "a video's id, with or without its source (panda/abc), or the path of its file"
# Exit codes besides 0; docs/commands.md lists them.
NOT_FOUND, CHANGED, FAILED, INTERRUPTED, CLOSED = 1, 2, 2, 130, 141


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    # Before torch is there. Threads that spin while they wait for each other take the core of the
    # very one they wait for, where another program wants it, too (docs/performance.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    chosen = build_parser().parse_args(arguments)
    try:
        code = _COMMANDS[chosen.command](chosen)
        sys.stdout.flush()  # here, where it can be said that nobody reads it
        return code
    except (ValueError, FileNotFoundError) as error:
        from assets.records.provenance import NotFoundError

        print(f"hourllava {chosen.command}: {error}", file=sys.stderr)
        return NOT_FOUND if isinstance(error, NotFoundError) else FAILED
    except KeyboardInterrupt:
        print(f"\nhourllava {chosen.command}: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # What is still unwritten would be tried again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"hourllava {chosen.command}: nobody reads the output any more", file=sys.stderr)
        return CLOSED


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hourllava", description="Work with a deployment from the command line."
    )
    parser.add_argument("--version", action="version", version=f"hourllava {__version__}")
    shtab.add_argument_to(
        parser, "--print-completion", help="print what completes this command in a shell"
    )
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser(
        "demo", help="build a small corpus in .demo/ and run the whole pipeline on it, on the CPU"
    )
    demo.add_argument(
        "--own",
        action="store_true",
        help="instead fine-tune a checkpoint of the released layout on forty videos, in .demo-own/",
    )
    demo.add_argument(
        "--small",
        action="store_true",
        help="the same with the variant small, whose parts are pretrained and whose answers are "
        "sentences, in .demo-small/; meant for a GPU",
    )
    demo.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="draw another corpus and train in another order, in .demo-N/ or .demo-small-N/",
    )

    fine_tune = commands.add_parser(
        "fine-tune", help="from videos to a fine-tuned and scored checkpoint of one variant"
    )
    fine_tune.add_argument("--variant", help="which, where the settings name several")
    _add_config_option(fine_tune)

    ablate = commands.add_parser(
        "ablate",
        help="train and score every arm of the paper's ablations and print the table; without "
        "--config all of them at a small size in .ablation/, on the CPU",
    )
    ablate.add_argument("--table", action="store_true", help="only print the table that is there")
    ablate.add_argument("--config", type=Path, help="settings with a section ablation (no default)")

    doctor = commands.add_parser("doctor", help="what this machine lacks for what the settings ask")
    doctor.add_argument(
        "--port", type=int, default=3000, help="where the web UI is to listen (default: 3000)"
    )
    _add_config_option(doctor)

    why = commands.add_parser("why", help="why is this video not in my shards?")
    why.add_argument("video", help=VIDEO_HELP)
    _add_config_option(why)

    asking = commands.add_parser(
        "ask", help="ask a checkpoint about a video (questions line by line if none is given)"
    )
    ask.add_options(asking)
    _add_config_option(asking)

    training = commands.add_parser(
        "train",
        help="train one stage's run outside of Dagster, under torchrun",
        description=train.DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_options(training)

    converting = commands.add_parser(
        "convert",
        help="a released checkpoint to an export that transformers loads, and back",
        description=convert.__doc__,
    )
    convert.add_options(converting)

    scoring = commands.add_parser(
        "evaluate",
        help="score a checkpoint on a file of questions",
        description=evaluate.DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_options(scoring)
    _add_config_option(scoring)

    listing = commands.add_parser(
        "checkpoints", help="which checkpoints there are, released and own; fetch one"
    )
    checkpoints.add_options(listing)
    _add_config_option(listing)

    estimating = commands.add_parser(
        "estimate", help="what fine-tuning on own videos should need: hours, disk, money"
    )
    estimate.add_options(estimating)
    _add_config_option(estimating)

    serving = commands.add_parser(
        "serve", help="a page to ask checkpoints about videos, and an OpenAI-compatible endpoint"
    )
    serve.add_options(serving)
    _add_config_option(serving)

    opening = commands.add_parser(
        "ui", help="Dagster's web UI for a deployment, with its daemon, on this machine"
    )
    web_ui.add_options(opening)
    _add_config_option(opening)

    lineage = commands.add_parser(
        "lineage", help="what a shard or checkpoint was made from, what a video went into"
    )
    lineage.add_argument(
        "what",
        help="a product (stage3[tiny], or the beginning of one name alone), a path inside of one, "
        "a video as for `why`, or the id of a row that was written (own/talk#...)",
    )
    lineage.add_argument(
        "--verify",
        action="store_true",
        help="also read every file again, and name those that are not what was recorded",
    )
    lineage.add_argument(
        "--all", action="store_true", help="with --verify: also name the products that are whole"
    )
    _add_config_option(lineage)

    bill = commands.add_parser(
        "bill", help="what a checkpoint was trained on: rows, videos, revisions, licences"
    )
    bill.add_argument("checkpoint", help="a training stage (stage3[tiny]), or a path inside of it")
    _add_config_option(bill)

    withdraw = commands.add_parser(
        "withdraw", help="remove one long video from everything that holds it, and never fetch it"
    )
    withdraw.add_argument("video", help=VIDEO_HELP)
    withdraw.add_argument("--reason", required=True, help="why, in a sentence; it stays on record")
    withdraw.add_argument("--dry-run", action="store_true", help="only show what would be done")
    _add_config_option(withdraw)

    give_up = commands.add_parser("give-up", help="go on without one part of the long videos")
    give_up.add_argument("part", help="for example part3")
    give_up.add_argument("--reason", required=True, help="why, in a sentence")
    _add_config_option(give_up)

    take_back = commands.add_parser("take-back", help="work on a part again that was given up")
    take_back.add_argument("part", help="for example part3")
    _add_config_option(take_back)

    recover = commands.add_parser(
        "recover", help="tell an empty Dagster instance what was made below the root"
    )
    _add_config_option(recover)
    return parser


def _add_config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        help="the deployment's settings (default: HOURLLAVA_CONFIG, else the built-in ones)",
    )


def _demo(chosen: argparse.Namespace) -> int:
    from pipeline.demo.client import DagsterError

    _stop_on_sigterm()
    which = " --own" if chosen.own else " --small" if chosen.small else ""
    which += "" if chosen.seed is None else f" --seed {chosen.seed}"
    again = f"hourllava demo{which}   goes on where it was"
    try:
        code = _run_demo(chosen)
    except (DagsterError, OSError) as error:  # a full disk, a Dagster that was killed
        raise ValueError(f"{error}\n{again}") from error
    except (KeyboardInterrupt, SystemExit):
        print(f"\n{again}", file=sys.stderr)
        raise
    if code:
        print(again)
    return code


def _run_demo(chosen: argparse.Namespace) -> int:
    home = instance_folder()
    if chosen.own:
        from pipeline.demo.own import run_own_demo

        if chosen.seed is not None:
            raise ValueError("--seed is for the demo and for --small; --own has one corpus")
        return run_own_demo(state_folder() / ".demo-own", home)
    from pipeline.demo.run import run_demo

    name, variant = (".demo-small", "small") if chosen.small else (".demo", "tiny")
    if chosen.seed is None:
        return run_demo(state_folder() / name, home, variant)
    return run_demo(state_folder() / f"{name}-{chosen.seed}", home, variant, str(chosen.seed))


def _fine_tune(chosen: argparse.Namespace) -> int:
    from assets.deployment.settings import CONFIG_VARIABLE, DEFAULT_CONFIG
    from pipeline.demo.tuning import fine_tune

    _stop_on_sigterm()
    config = chosen.config or Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG)
    home = instance_folder()
    return fine_tune(config, chosen.variant, home / ".dagster" / "fine_tune.log", home)


def _ablate(chosen: argparse.Namespace) -> int:
    from assets.deployment.settings import load_settings
    from pipeline.demo.ablations import ablate, ablate_small, print_arms

    small = state_folder() / ".ablation"
    if chosen.table:
        print_arms(load_settings(chosen.config or small / "ablation.yaml"))
        return 0
    _stop_on_sigterm()
    home = instance_folder()
    if chosen.config is None:
        return ablate_small(small, home)
    return ablate(chosen.config, home / ".dagster" / "ablate.log", home)


def _stop_on_sigterm() -> None:
    """Stop as on Ctrl+C, so that the runs that were started end with the command."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def _ui(chosen: argparse.Namespace) -> int:
    _stop_on_sigterm()
    return web_ui.ui(chosen)


def _doctor(chosen: argparse.Namespace) -> int:
    from assets.deployment.settings import load_settings
    from assets.sources.findings import MISSING
    from pipeline.doctor.report import Asked, examine, report

    settings = load_settings(chosen.config)
    findings = examine(Asked(settings, instance_folder(), chosen.port, chosen.config))
    print(report(findings))
    return 1 if any(finding.state == MISSING for finding in findings) else 0


def _why(chosen: argparse.Namespace) -> int:
    from assets.deployment.settings import load_settings
    from pipeline.why import why
    from training.formats.storage import Storage

    settings = load_settings(chosen.config)
    for line in why(Storage(settings.root), settings, chosen.video):
        print(line)
    return 0


def _lineage(chosen: argparse.Namespace) -> int:
    from assets.deployment.settings import load_settings
    from assets.questions.origin import MARK, find_row, origin_lines
    from assets.records.provenance import Register
    from assets.tracing.holdings import find_holdings
    from assets.tracing.names import catalogued_rows, dropped_names, find_video
    from training.formats.storage import Storage

    settings = load_settings(chosen.config)
    register = Register(Storage(settings.root))
    what = chosen.what
    if MARK in what and (row := find_row(register.storage, what)):
        print("\n".join(origin_lines(register.storage, row)))
        what = f"questions[{row['data_source']}]"
    if catalogued_rows(register.storage, settings, what) or dropped_names(settings, what):
        video = find_video(register.storage, settings, what)
        holdings = find_holdings(register.storage, settings, video)
        print("\n".join(holdings.lines()))
        products = sorted({holding.product for holding in holdings.found})
    else:
        name = register.find(what)
        products = sorted({name, *register.ancestors(name)})
        print("made from:")
        print("\n".join(f"  {line}" for line in register.up(name)))
        print("went into:")
        print("\n".join(f"  {line}" for line in register.down(name)))
    if not chosen.verify:
        return 0
    from pipeline.verify import verify

    records = [register.records[name] for name in products if name in register.records]
    found = verify(register.storage, records, lambda line: print(line, file=sys.stderr))
    print("\n".join(["verified:", *(f"  {line}" for line in found.lines(chosen.all))]))
    return CHANGED if found.wrong else 0


def _bill(chosen: argparse.Namespace) -> int:
    from assets.checkpoints.bill import bill_lines
    from assets.deployment.settings import load_settings
    from assets.records.provenance import Register
    from training.formats.storage import Storage

    register = Register(Storage(load_settings(chosen.config).root))
    record = register.records[register.find(chosen.checkpoint)]
    print("\n".join(bill_lines(register.storage, record)))
    return 0


def _recover(chosen: argparse.Namespace) -> int:
    with _deployment(chosen) as (instance, storage):
        from pipeline.recover import recover

        count = recover(instance, storage, print)
        print(f"{count:,} products recovered into the history of {instance_folder()}")
    return 0


def _give_up(chosen: argparse.Namespace) -> int:
    with _deployment(chosen) as (instance, storage):
        from pipeline.definitions import definitions
        from pipeline.parts import give_up

        graph = definitions().resolve_asset_graph()
        print("\n".join(give_up(instance, graph, storage, chosen.part, chosen.reason)))
    return 0


def _take_back(chosen: argparse.Namespace) -> int:
    with _deployment(chosen) as (instance, storage):
        from pipeline.definitions import definitions
        from pipeline.parts import take_back

        graph = definitions().resolve_asset_graph()
        print("\n".join(take_back(instance, graph, storage, chosen.part)))
    return 0


def _withdraw(chosen: argparse.Namespace) -> int:
    from assets.deployment.settings import load_settings

    settings = load_settings(chosen.config)
    with _deployment(chosen) as (instance, storage):
        from pipeline.definitions import definitions
        from pipeline.withdraw import plan_lines, withdraw

        if chosen.dry_run:
            lines = plan_lines(storage, settings, chosen.video, chosen.reason)
        else:
            graph = definitions().resolve_asset_graph()
            lines = withdraw(instance, graph, storage, settings, chosen.video, chosen.reason)
    print("\n".join(lines))
    return 0


@contextlib.contextmanager
def _deployment(chosen: argparse.Namespace) -> Iterator[tuple[DagsterInstance, Storage]]:
    """The Dagster instance and the storage of the settings that were chosen.

    The code location reads its partitions from the settings while it is imported: whoever needs
    it imports it inside of the block.
    """
    from dagster import DagsterInstance

    from assets.deployment.settings import CONFIG_VARIABLE, load_settings
    from training.formats.storage import Storage

    settings = load_settings(chosen.config)
    if chosen.config:
        os.environ[CONFIG_VARIABLE] = str(chosen.config.resolve())
    folder = instance_folder()
    with contextlib.chdir(folder), DagsterInstance.from_config(str(folder)) as instance:
        yield instance, Storage(settings.root)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "ablate": _ablate,
    "ask": ask.ask,
    "bill": _bill,
    "checkpoints": checkpoints.checkpoints,
    "convert": convert.convert,
    "demo": _demo,
    "doctor": _doctor,
    "estimate": estimate.estimate,
    "evaluate": evaluate.evaluate,
    "fine-tune": _fine_tune,
    "give-up": _give_up,
    "lineage": _lineage,
    "recover": _recover,
    "serve": serve.serve,
    "take-back": _take_back,
    "train": train.train,
    "ui": _ui,
    "why": _why,
    "withdraw": _withdraw,
}


if __name__ == "__main__":
    sys.exit(main())
