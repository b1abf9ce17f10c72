"""Decoding with decord behind the interface of `reader.decode`: by configuration, and to compare
decoders.

Little is trusted to it, because version 0.6 hangs on transport streams, cannot open AV1, gives
HEVC pictures that are off by one frame, is seconds wrong behind an edit list, and reads ahead
without bound while its caller waits. So it is only let near containers and codecs where it was
found right, every frame's time is compared with the exact timeline first, and its reader is rewound
after each batch. It does not tell of damage: what it decodes goes unreported.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from model.media.limits import MAX_VIDEO_PIXELS
from model.media.reader import DecodeReport
from model.media.refusals import MediaError
from model.media.resize import resize_frame
from model.media.sampling import checked_indices
from model.media.timeline import Timeline

CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
CODECS = {"h264", "vp8", "vp9"}
BATCH = 16  # frames: half a gigabyte at 1080p, where decord holds a batch several times over
TOLERANCE = 1.1e-3  # seconds: the coarsest tick of these containers


def decode(
    line: Timeline,
    indices: Sequence[int] | np.ndarray,
    *,
    size: int,
    max_pixels: int = MAX_VIDEO_PIXELS,
    report: DecodeReport | None = None,
) -> Iterator[np.ndarray]:
    """As `reader.decode`, except that damage is not reported.

    Raises MediaError `unsupported_codec` for what decord must not be given, and `decoder_disagrees`
    if it cannot read the file or sees other frames than the timeline.
    """
    wanted = checked_indices(indices, line.frames)
    if line.container not in CONTAINERS or line.codec not in CODECS or not line.skippable:
        raise MediaError(
            "unsupported_codec",
            line.path,
            f"decord is not trusted with {line.codec} in {line.container}",
        )
    if line.width * line.height > max_pixels:
        raise MediaError(
            "too_large",
            line.path,
            f"{line.width}x{line.height}, at most {max_pixels:,} pixels allowed",
        )

    import decord  # after torch, which `resize` has loaded: the other way round data loaders freeze

    decord.logging.set_level(decord.logging.QUIET)
    if report is not None:
        report.decoder = f"decord {decord.__version__}"
    return _decode(line, wanted, size)


def _decode(line: Timeline, wanted: np.ndarray, size: int) -> Iterator[np.ndarray]:
    import decord

    try:
        reader = decord.VideoReader(line.path, ctx=decord.cpu(0), num_threads=1)
        _agree(line, reader)
        for start in range(0, len(wanted), BATCH):
            chosen, repeats = np.unique(wanted[start : start + BATCH], return_counts=True)
            pictures = reader.get_batch(chosen.tolist()).asnumpy()
            # At once: it would go on decoding, gigabytes a second, while the caller is busy.
            reader.seek(0)
            for picture_HWC, count in zip(pictures, repeats, strict=True):
                square = resize_frame(picture_HWC, size)
                for _ in range(count):
                    yield square
    except decord.DECORDError as error:
        raise MediaError(
            "decoder_disagrees", line.path, f"decord: {str(error).strip().splitlines()[0]}"
        ) from error


def _agree(line: Timeline, reader: Any) -> None:
    """decord numbers frames as they are shown, but lists their times as they are stored: sort, then
    compare.
    """
    if len(reader) != line.frames:
        raise MediaError(
            "decoder_disagrees", line.path, f"decord counts {len(reader)} frames of {line.frames}"
        )
    times = np.sort(np.asarray(reader.get_frame_timestamp(np.arange(line.frames)))[:, 0])
    apart = np.abs(times - times[0] - line.pts).max()
    if apart > TOLERANCE:
        raise MediaError(
            "decoder_disagrees", line.path, f"decord's times are up to {apart:.3f} s off"
        )
