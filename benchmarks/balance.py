"""How much longer the rank with the most work takes than the mean one, with samples dealt as they
come and dealt by their work. Operations alone, over drawn steps of the published mixtures; no
device, no files.

    python -m benchmarks.balance
    python -m benchmarks.balance --preset tiny      # few steps, to see that it runs

An optimizer step ends when the last rank is done, so what the slowest one does above the mean is
lost by all others. Long videos are of 3 to 60 minutes, as many between 5 and 10 as between 20 and
40.
"""

from __future__ import annotations

import argparse
from functools import cache

import numpy as np

from benchmarks.estimate import LONGEST_S, SHORTEST_S
from benchmarks.stage_data import SHORT_STREAM, STAGE_2
from model.config import PRESETS
from training.data.balance import deal
from training.data.packing import group_sizes
from training.flops import flops, typical_sizes
from training.formats.hashing import seed_of
from training.formats.kinds import LONG_VIDEO_KIND, TEXT_KIND
from training.recipes import recipe

# What a stage's stream is made of: shares of kinds, and its number.
STREAMS: dict[str, tuple[int, dict[str, int]]] = {
    "stage 2": (2, STAGE_2),
    "stage 3, short videos": (3, SHORT_STREAM),
    "stage 3, long videos": (3, {LONG_VIDEO_KIND: 3, TEXT_KIND: 1}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", choices=sorted(PRESETS), default="3b")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 16, 64])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--preset", choices=["tiny"], help="the quick size of all benchmarks")
    options = parser.parse_args()
    if options.preset:
        options.steps = 20
    print("| | GPUs | samples of each | slowest above the mean, as they come | dealt by work |")
    print("|---|---|---|---|---|")
    for name, (stage, shares) in STREAMS.items():
        batch = recipe(options.variant, stage).global_batch
        work_NC = drawn_work(options.variant, stage, shares, options.steps, batch)
        for ranks in options.ranks:
            if batch % ranks:
                continue
            share, dealt_NR = batch // ranks, np.zeros((len(work_NC), ranks))
            deal(work_NC, work_NC, group_sizes(stage, share), dealt_NR)
            plain_NR = work_NC.reshape(len(work_NC), ranks, -1).sum(axis=2)
            plain, dealt = above_the_mean(plain_NR), above_the_mean(dealt_NR)
            print(f"| {name} | {ranks} | {share} | {plain:.1%} | {dealt:.1%} |", flush=True)


def drawn_work(
    variant: str, stage: int, shares: dict[str, int], steps: int, batch: int
) -> np.ndarray:
    """Operations of each sample of drawn steps, float64 [steps, batch]."""
    config, rates = PRESETS[variant], recipe(variant, stage).rates
    draw = np.random.default_rng(seed_of("balance", stage, *shares))
    weights = np.array(list(shares.values())) / sum(shares.values())
    kinds = draw.choice(np.array(list(shares)), (steps, batch), p=weights)
    lengths = SHORTEST_S * (LONGEST_S / SHORTEST_S) ** draw.random((steps, batch))
    seconds = np.where(kinds == LONG_VIDEO_KIND, lengths, 0).astype(np.int64)

    @cache
    def cost(kind: str, length: int) -> float:
        return flops(typical_sizes(kind, config, length, kept=False), config, rates)

    flat = zip(kinds.ravel().tolist(), seconds.ravel().tolist(), strict=True)
    return np.array([cost(kind, length) for kind, length in flat]).reshape(steps, batch)


def above_the_mean(load_NR: np.ndarray) -> float:
    """What the rank with the most work of a step does above the mean one; the mean over steps."""
    return float((load_NR.max(axis=1) / load_NR.mean(axis=1) - 1).mean())


if __name__ == "__main__":
    main()
