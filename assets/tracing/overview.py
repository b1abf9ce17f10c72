"""The deployment at a glance: what is made, what is missing, what is broken or out of date, and
which job is next. What is out of date is decided where automation decides it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from assets.automation.state import PART, State
from assets.deployment.parts import LLAVA_PARTS, part_name
from assets.deployment.settings import Settings
from assets.deployment.variants import LAST_STAGE, checkpoints_of, collections_of, trained
from assets.records.lineage import product
from assets.records.withdrawals import Withdrawals
from training.formats import layout
from training.formats.kinds import LONG_VIDEO_KIND

NAMED = 20  # products that a table names; the rest is counted


@dataclass(frozen=True, slots=True)
class Step:
    """One step on the way to a scored checkpoint.

    Attributes:
        what: for a person.
        job: makes it.
        products: everything that belongs to it.
    """

    what: str
    job: str
    products: tuple[str, ...]


@dataclass(slots=True)
class Overview:
    """What there is of a deployment.

    Attributes:
        headline: what to do next, or that all is done.
        steps: a row for each step, in the order of use.
        broken: a row for each product that did not pass its checks.
        stale: a row for each product whose inputs have changed since.
        given_up: a row for each part that was given up.
        withdrawn: how many videos were withdrawn.
    """

    headline: str
    steps: list[dict[str, str]] = field(default_factory=list)
    broken: list[dict[str, str]] = field(default_factory=list)
    stale: list[dict[str, str]] = field(default_factory=list)
    given_up: list[dict[str, str]] = field(default_factory=list)
    withdrawn: int = 0


def overview(state: State, settings: Settings, withdrawals: Withdrawals) -> Overview:
    """Look at the whole deployment.

    Args:
        state: what is on record.
    """
    records = state.records
    steps = list(_steps(settings, state.keys[PART]))
    wanted = {name: step for step in steps for name in step.products}
    known = [records[name] for name in wanted if name in records]
    broken = [
        {
            "product": record.product,
            "why": record.faults[:300],
            "job": wanted[record.product].job,
        }
        for record in known
        if record.failed
    ]
    stale = [
        {"product": record.product, "because": because, "job": wanted[record.product].job}
        for record in known
        if (because := "; ".join(state.stale_reasons(record.product)))
    ]
    missing = {step.job: [n for n in step.products if n not in records] for step in steps}
    return Overview(
        headline=_headline(steps, missing, broken, stale, bool(records)),
        steps=[_row(step, missing[step.job], broken, stale) for step in steps],
        broken=_cut(broken),
        stale=_cut(stale),
        given_up=[
            {"part": name, "reason": entry.reason, "at": entry.at}
            for name, entry in sorted(withdrawals.parts.items())
        ],
        withdrawn=len(withdrawals.videos),
    )


def _steps(settings: Settings, parts: Sequence[str]) -> Iterator[Step]:
    """The steps in the order of use. Without a catalogue there are no parts yet."""
    llava = [part_name(index) for index in range(LLAVA_PARTS)]
    variants, sources = settings.variants, sorted(settings.sources)
    kinds = settings.llava_kinds
    collections = collections_of(kinds)

    def step(what: str, job: str, *names: str) -> Step:
        return Step(what, job, names)

    yield step(
        "annotations, list of videos" + (", the LLaVA collections" if collections else ""),
        "01_collect_sources",
        "annotations",
        "catalogue",
        *collections,
    )
    if kinds:
        yield step(
            "shards of the LLaVA collections",
            "03_shard_llava",
            *(product(kind, part) for kind in kinds for part in llava),
        )
    yield step(
        "long videos",
        "04_acquire_videos",
        *(product("videos", f"{part}|{source}") for part in parts for source in sources),
    )
    yield step(
        "conversations and shards of long videos",
        "05_shard_long_videos",
        *(product(kind, part) for kind in ("conversations", LONG_VIDEO_KIND) for part in parts),
    )
    tuning = f"stage{LAST_STAGE}"
    yield step(
        *_early(settings),
        *(
            product(name, key)
            for key, variant in variants.items()
            for name in (*checkpoints_of(variant), "vision_encoder")
            if name != tuning
        ),
    )
    yield step(
        "features of long videos",
        "08_extract_features",
        *(product("features", f"{part}|{variant}") for part in parts for variant in variants),
    )
    if short := settings.short_video_parts:
        yield step(
            "features of short videos",
            "08_extract_short_video_features",
            *(
                product("short_video_features", f"{part}|{variant}")
                for part in short
                for variant in variants
            ),
        )
    questions = ["held_out_questions"] if settings.held_out_share else []
    yield step(
        "the stage-3 mixture" + (", held-out questions" if questions else ""),
        "09_mix",
        layout.MIXTURE,
        *questions,
    )
    yield step(
        "stage 3 and its scores",
        "10_train_stage3",
        *(product(name, variant) for variant in variants for name in (tuning, "evaluation")),
    )


def _early(settings: Settings) -> tuple[str, str]:
    """What comes before features, and the job that makes it."""
    from_start = trained(settings.variants, 2)
    if not from_start:
        return "the starting point, the vision encoder", "06_prepare_start"
    what = "stages 1 and 2, the vision encoder"
    if len(from_start) == len(settings.variants):
        return what, "07_train_to_stage2"
    return f"starting points, {what}", "02_everything_for_variant"


def _headline(
    steps: Sequence[Step],
    missing: dict[str, list[str]],
    broken: Sequence[dict[str, str]],
    stale: Sequence[dict[str, str]],
    begun: bool,
) -> str:
    if not begun:
        return "Nothing is made yet. Begin with the job 01_collect_sources."
    if broken:
        first = broken[0]
        return (
            f"{len(broken):,} products did not pass their checks, the first is {first['product']}. "
            f"Look at it below, mend what it says, and run the job {first['job']} for it again."
        )
    for step in steps:
        if missing[step.job] or not step.products:
            return f"Next: {step.what}. Run the job {step.job}" + (
                f"; {len(missing[step.job]):,} of {len(step.products):,} are missing."
                if step.products
                else "."
            )
    if stale:
        first = stale[0]
        return f"Out of date: {first['product']} ({first['because']}). Run the job {first['job']}."
    return "Everything is made and up to date."


def _row(
    step: Step,
    missing: Sequence[str],
    broken: Sequence[dict[str, str]],
    stale: Sequence[dict[str, str]],
) -> dict[str, str]:
    own = set(step.products)
    return {
        "job": step.job,
        "made": f"{len(own) - len(missing):,}/{len(own):,}" if own else "none",
        "broken": str(sum(row["product"] in own for row in broken) or ""),
        "out of date": str(sum(row["product"] in own for row in stale) or ""),
        "makes": step.what,
    }


def _cut(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    if len(rows) <= NAMED:
        return rows
    return [*rows[:NAMED], {"product": f"and {len(rows) - NAMED:,} more"}]
