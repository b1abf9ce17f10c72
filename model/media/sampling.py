"""Which frames of a video are looked at: chosen by the time at which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from model.media.timeline import Timeline


def linspace_indices(frames: int, count: int) -> np.ndarray:
    """`count` indices spread over `frames`: numpy's float64 linspace, truncated. No integer formula
    reproduces it.
    """
    return np.linspace(0, frames - 1, count, dtype=np.int64)


def feature_frame_count(frames: int, duration: float, *, min_frames: int = 128) -> int:
    """How many frames a feature file holds of a video of `frames` pictures in `duration` seconds.

    One a second, at least `min_frames`, and never more than there are pictures: a video of less
    than a picture a second has each of them once, and no picture stands for another. Everybody who
    expects a number of frames asks here.
    """
    return min(frames, max(int(duration), min_frames))


def feature_frame_indices(line: Timeline, *, min_frames: int = 128) -> np.ndarray:
    """The frames that a feature file holds: about one a second, at least `min_frames` where the
    video has them.

    At a constant rate, `linspace_indices`; otherwise the frames nearest to times spread evenly over
    the video, so that a frame shown for long is taken more than once. Always at least one frame.
    int64 [n], not descending.
    """
    return _spread(line, feature_frame_count(line.frames, line.duration, min_frames=min_frames))


def training_frame_indices(line: Timeline, *, min_frames: int = 128) -> np.ndarray:
    """The frames of a short video that training decodes: every round(fps)-th, or, if these are
    fewer than `min_frames`, that many spread over the video (all of them if it has no more). int64
    [n], at least one, not descending.
    """
    step = max(1, round(line.fps))
    if line.rate is not None or line.fps == 0:
        chosen = np.arange(0, line.frames, step, dtype=np.int64)
    else:
        chosen = line.nearest(np.arange(0.0, line.pts[-1] + 1e-9, step / line.fps))
    if len(chosen) < min_frames:
        return _spread(line, min(line.frames, min_frames))
    return chosen


# How the frames of a feature file are chosen, by name.
Sampling = Literal["one a second", "as in training"]
SAMPLINGS: dict[Sampling, Callable[..., np.ndarray]] = {
    "one a second": feature_frame_indices,
    "as in training": training_frame_indices,
}


def stored_frame_indices(frames: int, duration: float) -> np.ndarray:
    """The frames of a feature file of `frames` that a sample shows: one a whole second, at least
    one. int64 [n].
    """
    return linspace_indices(frames, max(1, min(frames, int(duration))))


def _spread(line: Timeline, count: int) -> np.ndarray:
    if line.rate is not None:
        return linspace_indices(line.frames, count)
    return line.nearest(np.linspace(0.0, line.pts[-1], count))


def checked_indices(indices: Sequence[int] | np.ndarray, frames: int) -> np.ndarray:
    """The indices as int64 [n]. Raises ValueError unless they ascend (repeats are allowed) and lie
    within a video of so many frames.
    """
    chosen = np.asarray(indices, dtype=np.int64)
    if (
        chosen.ndim != 1
        or not len(chosen)
        or chosen.min() < 0
        or chosen.max() >= frames
        or (np.diff(chosen) < 0).any()
    ):
        raise ValueError(
            f"frame indices must be a non-empty ascending list within 0 .. {frames - 1}, got "
            f"{chosen}"
        )
    return chosen
