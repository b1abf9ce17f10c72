"""Hours and bytes by arithmetic over measured rates: for one's own videos, and for the published
recipe (`benchmarks/estimate.py`).

Rates were measured on an H200. Of another card they are taken to be its share by the makers'
figures, which is a guess where a step waits for memory rather than for products.
"""

from __future__ import annotations

from model.config import HourLlavaConfig
from training.flops import TEXT, forward_flops, video_sizes
from training.formats.feature_file import HEADER_ROOM
from training.rates import DECODERS, GROUPED_ROWS, RATES, Card

BIT_RATE = 0.5e6  # bits a second of a video that nobody measured; assumed
HALF, STATE = 2, 12  # bytes of an exported parameter; of a tuned one in a checkpoint, with moments
KEPT = 3  # checkpoints of a running stage: two are kept, a third is being written
HOUR = 3600


def rate(name: str) -> float:
    """A measured rate by its name."""
    return RATES[name].value


def examination_hours(size: float) -> float:
    """Hours until files of `size` bytes are fetched, examined and published."""
    return size / (rate("download") * 2**20) / HOUR


def feature_hours(hours: float, decoders: int, card: Card) -> float:
    """Hours until so many hours of video are encoded: decoding and encoding go on side by side, and
    the slower one decides.

    Args:
        decoders: decoding processes, with a core each.
    """
    decoding = rate("features, one H200 and 16 cores") * decoders / DECODERS
    # One frame a second: so many frames a second are so many hours an hour.
    return hours / min(decoding, rate("vision encoder alone, H200") * card.share)


def grouping_hours(rows: float) -> float:
    """Hours until rows are grouped into samples."""
    return rows / GROUPED_ROWS * rate("grouping of all rows") / HOUR


def utilisation(preset: str, stage: int) -> float | None:
    """Measured share of the rate of matrix products; None where it was never measured."""
    name = f"MFU of stage {stage}, {preset.upper()}"
    return rate(name) if name in RATES else None


def training_hours(work: float, utilised: float, card: Card) -> float:
    """Hours of one card for so many floating point operations."""
    return work / (utilised * card.products) / HOUR


def reading_seconds(
    frames: int, config: HourLlavaConfig, hour: HourLlavaConfig, card: Card
) -> float:
    """Seconds until a model has read a question and a video of so many frames, given as features.

    Args:
        hour: the model whose reading of an hour was measured.
    """
    work, measured = (
        sum(forward_flops(video_sizes(seconds, TEXT, 0, model), model).values())
        for seconds, model in ((frames, config), (HOUR, hour))
    )
    return rate("reading an hour, 3B, H200") * work / measured / card.share


def decoding_hours(hours: float) -> float:
    """Hours of one core that decodes one frame of each second."""
    return hours * rate("CPU time of one sampled second of video") / 1000


def encoding_hours(hours: float, card: Card) -> float:
    """Hours of a card that encodes one frame of each second."""
    return hours / (rate("vision encoder alone, H200") * card.share)


def feature_bytes(frames: float, files: float, config: HourLlavaConfig) -> float:
    """Size of feature files."""
    return files * HEADER_ROOM + frames * (
        config.memory.frame_tokens * config.vision.hidden_size * HALF + 4
    )


def export_bytes(parameters: int) -> int:
    """Size of a checkpoint in bfloat16."""
    return HALF * parameters


def state_bytes(trained: int) -> int:
    """Size of the checkpoints of a running stage: float32 parameters and two moments of what is
    tuned.
    """
    return KEPT * STATE * trained
