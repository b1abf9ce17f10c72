"""What the published recipe needs in full: disk, downloads, GPU time. Arithmetic over measured
rates, nothing is run.

    python -m benchmarks.estimate            # the tables of docs/estimate.md
    python -m benchmarks.estimate --write    # puts them there

Every input stands in `INPUTS`, with where it is from. Measured ones are those of
`training/rates.py`, the arithmetic is that of `hourllava estimate`, and floating point operations
of a sample are those that training counts (`training/flops.py`).
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from assets.collections.mixtures import MixtureEntry, read_mixture
from model.config import PRESETS
from pipeline.estimate.arithmetic import (
    BIT_RATE,
    decoding_hours,
    examination_hours,
    export_bytes,
    feature_bytes,
    feature_hours,
    state_bytes,
    training_hours,
    utilisation,
)
from training.flops import (
    IMAGE_SIZE,
    IMAGES,
    SUPERVISED,
    TEXT,
    flops,
    parameters,
    typical_sizes,
)
from training.formats.kinds import (
    IMAGE_KIND,
    LONG_VIDEO_KIND,
    MULTI_IMAGE_KIND,
    SHORT_VIDEO_KIND,
    TEXT_KIND,
    kinds_of,
)
from training.rates import CARDS, DECODERS, RATES
from training.recipes import MODULES, recipe, stage_inputs

PAGE = Path(__file__).parents[1] / "docs" / "estimate.md"
BEGIN, END = "<!-- printed by benchmarks/estimate.py -->", "<!-- end -->"

MEASURED, PUBLISHED, ASSUMED = "measured, docs/performance.md", "published", "**assumed**"


def measured(name: str) -> tuple[float, str, str]:
    return RATES[name].value, RATES[name].unit, MEASURED


INPUTS: dict[str, tuple[float | str, str, str]] = {
    "hours of long video": (9_700, "h", PUBLISHED),
    "long videos": (28_000, "", PUBLISHED),
    "question-answer rows about them": (3_300_000, "", PUBLISHED),
    "rows about short videos": (1_600_000, "", PUBLISHED),
    "short videos": (178_000, "", PUBLISHED),
    "bit rate of a long video": (BIT_RATE / 1e6, "Mbit/s", ASSUMED),
    "download": measured("download"),
    "least time between two requests to one host": (5, "s", "`download.min_interval_s`"),
    "features, one H200 and 16 cores": measured("features, one H200 and 16 cores"),
    "CPU time of one sampled second of video": measured("CPU time of one sampled second of video"),
    "grouping of all rows": measured("grouping of all rows"),
    "rate of a matrix product, H200": measured("rate of a matrix product, H200"),
    "MFU of stage 1, 3B": measured("MFU of stage 1, 3B"),
    "MFU of stage 2, 3B": measured("MFU of stage 2, 3B"),
    "MFU of stage 3, 3B": measured("MFU of stage 3, 3B"),
    "MFU of stage 3, short videos, 3B": measured("MFU of stage 3, short videos, 3B"),
    "MFU of stage 3, kept short videos, 3B": measured("MFU of stage 3, kept short videos, 3B"),
    "MFU of stage 3, 7B": measured("MFU of stage 3, 7B"),
    "MFU of all else at 7B": ("as 3B", "", ASSUMED),
    "rows of an annotation file whose name has no number": (100_000, "", ASSUMED),
    "size of an image": (IMAGE_SIZE[0], f"x {IMAGE_SIZE[1]} pixels", ASSUMED),
    "images of a multi-image sample": (IMAGES, "", ASSUMED),
    "text of a sample": (TEXT, f"tokens, {SUPERVISED} supervised", ASSUMED),
    "frames of a short video": (128, "", "the least, `training/data/loader.py`"),
}
# Samples about long videos are spread over lengths of 3 to 60 minutes, as many between 5 and 10 as
# between 20 and 40. The mean is then 19 minutes; that of the published totals is 21.
SHORTEST_S, LONGEST_S, LENGTHS = 180, 3600, 24
TEXT_FILES = (
    "magpie",
    "Evol-Instruct",
)  # rows of these have no image; the image-only kind leaves them out


def of(name: str) -> float:
    return float(INPUTS[name][0])


def table(heading: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    heading = list(heading)
    lines = [heading, ["---"] * len(heading), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def rows_of(entry: MixtureEntry) -> int:
    """Rows of an annotation file that its kind uses; the last number of its name says how many it
    has.
    """
    numbers = re.findall(r"(?:^|[_-])(\d+)(k?)(?=[_.-]|$)", Path(entry.annotation).name)
    counts = [int(number) * (1000 if thousand else 1) for number, thousand in numbers]
    counts = [count for count in counts if count >= 100]
    return entry.rows(
        counts[-1] if counts else int(of("rows of an annotation file whose name has no number"))
    )


def samples_of_kinds() -> dict[str, int]:
    """Samples of each kind, all parts together."""
    found = dict.fromkeys(kinds_of("images and text"), 0) | {IMAGE_KIND: 0}
    for entry in read_mixture():
        if entry.kind in found and not (
            entry.kind == IMAGE_KIND and entry.annotation.startswith(TEXT_FILES)
        ):
            found[entry.kind] += rows_of(entry)
    found[SHORT_VIDEO_KIND] = int(of("rows about short videos"))
    found[LONG_VIDEO_KIND] = math.ceil(of("question-answer rows about them") / 5)
    return found


def samples_of_stage(stage: int) -> dict[str, float]:
    """Samples of each kind that a stage reads in its one epoch."""
    totals, found = samples_of_kinds(), dict[str, float]()
    for stream in stage_inputs(stage):
        for item in stream:
            share = totals[item.kind] / 10 * (0.5 if item.half is not None else 1)
            found[item.kind] = found.get(item.kind, 0) + share
    return found


def lengths_of_kind(kind: str) -> list[int]:
    """Seconds of typical samples of a kind; their mean counts."""
    if kind != LONG_VIDEO_KIND:
        return [int(of("frames of a short video"))]
    steps = [(number + 0.5) / LENGTHS for number in range(LENGTHS)]
    return [int(SHORTEST_S * (LONGEST_S / SHORTEST_S) ** step) for step in steps]


def work_of_sample(kind: str, variant: str, stage: int, kept: bool = False) -> float:
    """Floating point operations of the mean sample of a kind; `kept`: short videos are read as
    features.
    """
    config, lengths = PRESETS[variant], lengths_of_kind(kind)
    sizes = [typical_sizes(kind, config, seconds, kept=kept) for seconds in lengths]
    rates = recipe(variant, stage).rates
    return sum(flops(one, config, rates) for one in sizes) / len(lengths)


def gpu_hours(variant: str, stage: int, kept: bool = False) -> tuple[float, float]:
    """(samples, hours of one H200) of a stage; `kept` as for `work_of_sample`."""
    samples = samples_of_stage(stage)
    hours = sum(
        training_hours(
            count * work_of_sample(kind, variant, stage, kept),
            mfu_of_kind(kind, variant, stage, kept),
            CARDS["H200"],
        )
        for kind, count in samples.items()
    )
    return sum(samples.values()), hours


def mfu_of_kind(kind: str, variant: str, stage: int, kept: bool) -> float:
    """Stage 3 was measured with features of long videos and texts, with short videos as features,
    and with what passes the vision encoder.
    """
    if stage == 3 and kind == SHORT_VIDEO_KIND and kept:
        return of("MFU of stage 3, kept short videos, 3B")
    if stage == 3 and kind not in ("videomarathon_video", "llavavideo_text"):
        return of("MFU of stage 3, short videos, 3B")
    found = utilisation(variant, stage) or utilisation("3b", stage)
    assert found is not None
    return found


def feature_bytes_per_hour(variant: str) -> int:
    return int(feature_bytes(3600, 1, PRESETS[variant]))


def kept_videos() -> float:
    """Short videos of which features are kept where the settings say so: those of stage 3."""
    share = samples_of_stage(3)[SHORT_VIDEO_KIND] / samples_of_kinds()[SHORT_VIDEO_KIND]
    return of("short videos") * share


def video_bytes() -> float:
    return of("hours of long video") * 3600 * of("bit rate of a long video") * 1e6 / 8


def disk() -> str:
    features = of("hours of long video") * feature_bytes_per_hour("3b")
    frames = kept_videos() * of("frames of a short video")
    rows: list[list[object]] = [
        ["long videos", f"{video_bytes() / 1e12:.1f} TB", "hours x bit rate"],
        [
            "features, for each variant",
            f"{features / 1e12:.1f} TB",
            "hours x 0.53 GB; 3b and 7b are as large",
        ],
        [
            "features of short videos, for each variant that keeps them",
            f"{feature_bytes(frames, kept_videos(), PRESETS['3b']) / 1e12:.1f} TB",
            f"`features.short_videos`: {kept_videos():,.0f} videos x 19 MB",
        ],
    ]
    for variant in ("3b", "7b"):
        count = parameters(PRESETS[variant])
        whole = sum(count[name] for name in MODULES)
        rows += [
            [
                f"an export, {variant}",
                f"{export_bytes(whole) / 1e9:.0f} GB",
                "bfloat16; four are kept: base and three stages",
            ],
            [
                f"state of a running stage, {variant}",
                f"{state_bytes(whole) / 1e9:.0f} GB",
                (
                    "stage 2: float32 parameters and two moments; two checkpoints kept, a third "
                    "being written"
                ),
            ],
        ]
    rows.append(
        [
            "LLaVA collections and their shards",
            "not estimated",
            "about twice what the hub lists for them",
        ]
    )
    return table(["what", "disk", "how"], rows)


def preparation() -> str:
    slow = of("long videos") * of("least time between two requests to one host")
    frames = of("frames of a short video")
    rows_of_stages = {stage: samples_of_stage(stage)[SHORT_VIDEO_KIND] for stage in (2, 3)}
    short = {stage: decoding_hours(n * frames / 3600) for stage, n in rows_of_stages.items()}
    kept = kept_videos() * frames / 3600  # as hours of one frame a second
    rows = [
        [
            "download, at the measured rate",
            f"{examination_hours(video_bytes()):.0f} h",
            "4 connections",
        ],
        [
            "download, by politeness",
            f"{slow / 3600:.0f} h",
            "if every video came from one host; a host may ask for more",
        ],
        [
            "features, for each variant",
            f"{feature_hours(of('hours of long video'), DECODERS, CARDS['H200']):.0f} h",
            "one H200 with 16 cores; parts are independent, so n machines take an n-th",
        ],
        ["grouping", f"{of('grouping of all rows'):.0f} s", "all parts, two cores"],
        [
            "decoding of short videos while training",
            f"{short[2] + short[3]:,.0f} core-hours",
            (
                f"stages 2 and 3 together, {frames:.0f} frames a sample; beside the GPUs, on their "
                f"hosts; {short[2]:,.0f} where features of short videos are kept"
            ),
        ],
        [
            "features of short videos, for each variant that keeps them",
            f"{feature_hours(kept, DECODERS, CARDS['H200']):.0f} h",
            f"one H200 with 16 cores; {decoding_hours(kept):,.0f} core-hours of decoding, in place "
            f"of {short[3]:,.0f} in stage 3",
        ],
    ]
    return table(["step", "time", "how"], rows)


def training() -> str:
    rows: list[list[object]] = []
    for variant in ("3b", "7b"):
        total = 0.0
        for stage in (1, 2, 3):
            samples, hours = gpu_hours(variant, stage)
            total += hours
            rows.append([variant, stage, f"{samples:,.0f}", *_hours(hours)])
        rows.append([variant, "all", "", *_hours(total)])
        samples, hours = gpu_hours(variant, 3, kept=True)
        rows.append([variant, "3, short videos as features", f"{samples:,.0f}", *_hours(hours)])
    return table(["variant", "stage", "samples", "H200-hours", "on 8", "on 64"], rows)


def _hours(hours: float) -> tuple[str, str, str]:
    """Of one H200, on 8 and on 64."""
    return f"{hours:,.0f}", _days(hours / 8), _days(hours / 64)


def _days(hours: float) -> str:
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} days"


def per_sample() -> str:
    kinds = (IMAGE_KIND, TEXT_KIND, MULTI_IMAGE_KIND, SHORT_VIDEO_KIND, LONG_VIDEO_KIND)
    stages = {
        IMAGE_KIND: 1,
        TEXT_KIND: 3,
        MULTI_IMAGE_KIND: 3,
        SHORT_VIDEO_KIND: 3,
        LONG_VIDEO_KIND: 3,
    }
    totals = samples_of_kinds()
    rows = [
        [f"`{kind}`", f"{totals[kind]:,}", stages[kind]]
        + [f"{work_of_sample(kind, variant, stages[kind]) / 1e12:.1f}" for variant in ("3b", "7b")]
        for kind in kinds
    ]
    return table(["kind", "samples", "stage", "TFLOP a sample, 3b", "7b"], rows)


def inputs() -> str:
    rows = [
        [name, f"{_told(value)} {unit}".strip(), where]
        for name, (value, unit, where) in INPUTS.items()
    ]
    return table(["input", "value", "from"], rows)


def _told(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:{',.0f' if value >= 1000 else 'g'}}"


def sections() -> Iterator[str]:
    yield "### Inputs\n\n" + inputs()
    yield "### Disk\n\n" + disk()
    yield "### Preparation\n\n" + preparation()
    yield "### One sample\n\n" + per_sample()
    yield "### Training\n\n" + training()


def printed() -> str:
    """All tables, as they stand in the page."""
    return "\n\n".join(sections())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/estimate.md")
    parser.add_argument(
        "--preset", choices=["tiny"], help="taken because every benchmark takes it; changes nothing"
    )
    given = parser.parse_args()
    print(printed())
    if given.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{printed()}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
