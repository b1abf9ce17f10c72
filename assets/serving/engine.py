"""One checkpoint at a time answers, in a thread of its own; whoever asks meanwhile waits, and is
told so when too many wait.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.inference.decoders import VideoDecoders
from assets.serving.library import Library
from model.options import AskOptions

if TYPE_CHECKING:
    from assets.inference.prompts import Prompt, RememberedVideo, Said
    from assets.inference.session import Session
    from assets.inference.subtitles import Cue
    from assets.inference.videos import VideoFeatures

logger = logging.getLogger(__name__)

MOST_WAITING = 4
KEPT_FEATURES_BYTES = 4 << 30  # on the host; an hour of video takes half a gigabyte at 3B and 7B


_Decoded = tuple[str, str, int, int]  # checkpoint, video, the video's size and time


class BusyError(Exception):
    """Too many questions wait already. Asking again later can help."""


class FailedError(Exception):
    """The model failed at a question in a way that nobody foresaw; the log has the whole of it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question, with what was said before it.

    Attributes:
        checkpoint, video: names in the library; no video where empty.
        said: turns of a person and the model, the person first and last.
        images: the bytes of each image, in the order of the turns that name them.
        system: replaces the system message that the model was trained with.
        longest: where the answer is cut off, in tokens.
        options: see `model/options.py`.
        attention: whether to tell where MemAug looked.
    """

    checkpoint: str
    said: tuple[Said, ...]
    video: str = ""
    images: tuple[bytes, ...] = ()
    subtitles: tuple[Cue, ...] = ()
    system: str = ""
    longest: int = 512
    options: AskOptions = field(default_factory=AskOptions)
    attention: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of an answer at its end; see `StreamedAnswer`.

    Attributes:
        attention: each frame's share of MemAug's attention; empty where it was not asked for.
        duration: seconds of the video; 0 without one.
        damage: what is wrong with the video, for people.
    """

    prompt_tokens: int
    tokens: int
    cut_off: bool
    first_token: float
    seconds: float
    attention: tuple[float, ...] = ()
    duration: float = 0.0
    damage: str = ""


class Engine:
    """A context manager.

    Args:
        device: `auto`, `cpu` or `cuda`.
    """

    def __init__(self, library: Library, device: str = "auto") -> None:
        self.library, self._device = library, device
        self._room = threading.BoundedSemaphore(MOST_WAITING)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        # Only the worker's thread touches what follows.
        self._decoders = VideoDecoders()
        self._loaded: tuple[Path, Session] | None = None
        self._remembered: tuple[_Decoded, RememberedVideo] | None = None
        self._features: OrderedDict[_Decoded, VideoFeatures] = OrderedDict()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.shutdown(cancel_futures=True)

    async def stream(self, asked: Asked) -> AsyncGenerator[str | Outcome, None]:
        """The pieces of an answer as they come, and its outcome at last. Left in the middle, the
        answer ends with its next token.

        Raises:
            BusyError: too many wait.
            ValueError: what was asked cannot be answered; it says why.
            FileNotFoundError: the checkpoint or the video is gone.
            FailedError: the model failed, for example because the device's memory is full.
        """
        if not self._room.acquire(blocking=False):
            raise BusyError(
                f"{MOST_WAITING} questions are waiting for the model already; ask again in a moment"
            )
        loop, left = asyncio.get_running_loop(), threading.Event()
        pieces: asyncio.Queue[str | Outcome | Exception | None] = asyncio.Queue()

        def work() -> None:
            def tell(piece: str | Outcome | Exception | None) -> None:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

            try:
                for piece in self.answer(asked):
                    if left.is_set():
                        return
                    tell(piece)
            except (ValueError, FileNotFoundError) as error:
                tell(error)
            except Exception as error:  # the server goes on for the others
                logger.exception("a question failed")
                tell(
                    FailedError(f"the model failed ({type(error).__name__}): see the server's log")
                )
            else:
                tell(None)

        job = self._worker.submit(work)
        job.add_done_callback(lambda _: self._room.release())
        try:
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            left.set()
            job.cancel()

    def answer(self, asked: Asked) -> Iterator[str | Outcome]:
        """The same in this thread, which must be the only one that asks."""
        session = self._session(asked.checkpoint)
        video = self._video(session, asked) if asked.video else None
        prompt: Prompt = session.conversation(
            asked.said,
            video=video,
            images=asked.images,
            subtitles=asked.subtitles,
            system=asked.system,
            options=asked.options,
        )
        answer = session.answer(prompt, asked.longest)
        yield from answer
        looked: list[float] = []
        looks = asked.options.looks_at_frames(session.processor.config)
        if asked.attention and video is not None and looks:
            looked = session.attention(prompt).tolist()
        yield Outcome(
            prompt_tokens=answer.prompt_tokens,
            tokens=answer.tokens,
            cut_off=answer.cut_off,
            first_token=answer.first_token,
            seconds=answer.seconds,
            attention=tuple(looked),
            duration=0.0 if video is None else video.duration,
            damage="" if video is None else video.damage,
        )

    def _session(self, name: str) -> Session:
        """The checkpoint of a name, which may be another one since it was trained again. What is
        loaded leaves the device first.
        """
        folder = self.library.checkpoint(name)
        if self._loaded is not None and self._loaded[0] == folder:
            return self._loaded[1]
        import torch

        from assets.inference.session import Session

        self._loaded = self._remembered = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        session = Session(folder, self._device, self._decoders)
        self._loaded = folder, session
        return session

    def _video(self, session: Session, asked: Asked) -> RememberedVideo:
        """The video's memory. What was decoded for this checkpoint is not decoded again."""
        from assets.inference.videos import VideoFeatures

        path = self.library.video(asked.video)
        stamp = path.stat()
        key = str(session.export), str(path), stamp.st_size, stamp.st_mtime_ns
        if self._remembered is not None and self._remembered[0] == key:
            return self._remembered[1]
        self._remembered = None  # its memory makes room
        if (kept := self._features.get(key)) is not None:
            self._features.move_to_end(key)
            video = session.remember(kept)
        else:
            video = session.video(path)
            self._features[key] = VideoFeatures(video.features_TPC, video.duration, video.damage)
            self._make_room()
        self._remembered = key, video
        return video

    def _make_room(self) -> None:
        def size(kept: Any) -> int:
            return int(kept.features_TPC.nbytes)

        while len(self._features) > 1 and (
            sum(map(size, self._features.values())) > KEPT_FEATURES_BYTES
        ):
            self._features.popitem(last=False)
