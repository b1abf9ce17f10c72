"""The page: a video, one or two checkpoints, questions, answers as they are written, and where
MemAug looked.

What people and models write is shown as text, never as Markdown or HTML.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import FastAPI
from nicegui import ui
from nicegui.events import GenericEventArguments, MouseEventArguments, UploadEventArguments
from starlette.concurrency import run_in_threadpool

from assets.serving.band import HEIGHT, WIDTH, band_svg, clock, peaks
from assets.serving.engine import Asked, BusyError, Engine, FailedError, Outcome
from assets.serving.options_form import OptionsForm
from assets.sources.base import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from assets.inference.subtitles import Cue
    from model.options import AskOptions

MOST_COMPARED = 2
MOST_SUBTITLES_BYTES = 4 << 20
# A window that is away for so long loses its talk: decoding an hour keeps a small machine busy.
RECONNECT_S = 120.0
LONGEST_QUESTION = 20_000  # characters
CANNOT = (ValueError, FileNotFoundError, BusyError, FailedError)


def add_page(app: FastAPI, engine: Engine) -> None:
    """Put the page at `/`. Its address may name what is chosen: `?checkpoint=...&video=...`."""

    async def root() -> None:
        await run_in_threadpool(engine.library.videos)  # a look at a large folder takes a while
        AskPage(engine).build()

    ui.run_with(
        app,
        root=root,
        title="Hour-LLaVA",
        reconnect_timeout=RECONNECT_S,
        show_welcome_message=False,
    )


@dataclass
class Chosen:
    """What one window works on.

    Attributes:
        video: its name; empty before one is chosen.
        said: checkpoint -> its questions and answers about this video, so far.
    """

    video: str = ""
    duration: float = 0.0
    subtitles: tuple[Cue, ...] = ()
    said: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))


class AskPage:
    """One window of one person."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.library, self.chosen = engine, engine.library, Chosen()

    def build(self) -> None:
        """Make the page's elements."""
        ui.query("body").classes("bg-gray-50")
        with ui.row().classes("w-full no-wrap items-start gap-6 p-2"):
            with ui.column().classes("w-3/5"):
                self._build_video()
            with ui.column().classes("w-2/5"):
                self._build_chat()
        asked = ui.context.client.request
        wanted = {} if asked is None else dict(asked.query_params)
        if wanted.get("checkpoint") in self.checkpoints.options:
            self.checkpoints.set_value([wanted["checkpoint"]])
        if (video := wanted.get("video", "")) in self.library.videos(video):
            self._show_video(video)

    # -- the video --------------------------------------------------------------------------------

    def _build_video(self) -> None:
        with ui.row().classes("w-full items-end no-wrap"):
            self.search = ui.input("Find a video", on_change=self._search).props("clearable")
            self.videos = ui.select(
                self.library.videos(), label="Video", on_change=self._chose
            ).classes("grow")
        self.player = ui.video("").classes("w-full bg-black").props('data-testid="player"')
        self.player.set_visibility(False)
        self.bands = ui.column().classes("w-full gap-1").props('data-testid="bands"')
        with ui.row().classes("w-full items-end no-wrap"):
            self.url = ui.input("or its URL").classes("grow")
            ui.button("Fetch", on_click=self._fetch)
        with ui.row().classes("w-full no-wrap"):
            size = self.library.upload_bytes
            ui.upload(
                label=f"or upload one (up to {size / 2**30:.1f} GiB)",
                max_file_size=size,
                max_files=8,
                auto_upload=True,
                on_upload=self._upload,
                on_rejected=lambda: ui.notify("refused: too large"),
            ).props(f'accept="video/*,{",".join(VIDEO_SUFFIXES)}" data-testid="upload"').classes(
                "w-1/2"
            )
            ui.upload(
                label="its subtitles (.srt, .vtt)",
                max_file_size=MOST_SUBTITLES_BYTES,
                auto_upload=True,
                on_upload=self._upload_subtitles,
                on_rejected=lambda: ui.notify("refused: too large"),
            ).props('accept=".srt,.vtt" data-testid="subtitles"').classes("w-1/2")

    async def _search(self) -> None:
        found = await run_in_threadpool(self.library.videos, self.search.value or "")
        self.videos.set_options(found)

    def _chose(self) -> None:
        if self.videos.value and self.videos.value != self.chosen.video:
            self._show_video(self.videos.value)

    def _show_video(self, name: str) -> None:
        """Begin anew with another video."""
        self.chosen = Chosen(video=name)
        self.player.set_source(f"/media/{quote(name)}")
        self.player.set_visibility(True)
        if name not in self.videos.options:
            self.videos.set_options([name, *self.videos.options])
        self.videos.set_value(name)
        self._forget()

    async def _fetch(self) -> None:
        ui.notify("fetching ...")
        try:
            self._show_video(
                await run_in_threadpool(self.library.fetch, (self.url.value or "").strip())
            )
        except CANNOT as error:
            ui.notify(str(error), type="negative", multi_line=True)

    async def _upload(self, event: UploadEventArguments) -> None:
        try:
            path = self.library.new_file()
            await event.file.save(path)
            self._show_video(await run_in_threadpool(self.library.add, path, event.file.name))
        except CANNOT as error:
            ui.notify(str(error), type="negative", multi_line=True)

    async def _upload_subtitles(self, event: UploadEventArguments) -> None:
        from assets.inference.subtitles import SUFFIXES, parse_subtitles

        name = event.file.name.lower()
        suffix = next((end for end in SUFFIXES if name.endswith(end)), SUFFIXES[0])
        try:
            cues = parse_subtitles(await event.file.read(), suffix)
        except ValueError as error:
            ui.notify(str(error), type="negative")
            return
        self.chosen.subtitles = tuple(cues)
        self._forget()
        ui.notify(f"{len(cues)} subtitles stand above the next questions")

    # -- questions and answers --------------------------------------------------------------------

    def _build_chat(self) -> None:
        names = list(self.library.checkpoints())
        self.checkpoints = ui.select(
            names, label="Checkpoint (two are compared)", multiple=True, value=names[:1]
        ).classes("w-full")
        self.checkpoints.props(f'use-chips max-values="{MOST_COMPARED}"')
        self.talk = ui.column().classes("w-full gap-2").props('data-testid="talk"')
        self.question = ui.textarea("Question").classes("w-full")
        self.question.props(f'autogrow maxlength="{LONGEST_QUESTION}"')
        self.question.on("keydown.enter.prevent", self._ask)
        self.form = OptionsForm()
        with ui.row():
            self.button = ui.button("Ask", on_click=self._ask)
            ui.button("Begin anew", on_click=self._forget).props("flat")

    def _forget(self) -> None:
        """What was asked before is no part of the next question."""
        self.chosen.said.clear()
        self.talk.clear()
        self.bands.clear()

    async def _ask(self, _: GenericEventArguments | Any = None) -> None:
        question, names = (self.question.value or "").strip(), list(self.checkpoints.value or [])
        if not question or not names or not self.chosen.video:
            ui.notify("choose a checkpoint and a video, and write a question")
            return
        if not self.button.enabled:
            return
        try:
            options = self.form.options()
        except ValueError as error:
            ui.notify(str(error), type="negative")
            return
        self.button.disable()
        self.question.set_value("")
        self.bands.clear()
        try:
            with self.talk:
                ui.label(question).classes("self-end bg-blue-100 rounded p-2 whitespace-pre-wrap")
                with ui.row().classes("w-full no-wrap items-start"):
                    labels = [self._answer_card(name) for name in names[:MOST_COMPARED]]
            for name, (text, told) in zip(names, labels, strict=False):
                await self._answer(name, question, options, text, told)
        finally:
            if not self.button.is_deleted:
                self.button.enable()

    def _answer_card(self, name: str) -> tuple[ui.label, ui.label]:
        """An empty answer: its text, and what is told of it."""
        with ui.card().classes("grow basis-0 min-w-0"):
            ui.label(name).classes("text-xs text-gray-500")
            text = (
                ui.label("")
                .classes("whitespace-pre-wrap [overflow-wrap:anywhere]")
                .props('data-testid="answer"')
            )
            told = ui.label("waiting ...").classes("text-xs text-gray-500")
        return text, told.props('data-testid="told"')

    async def _answer(
        self, name: str, question: str, options: AskOptions, text: ui.label, told: ui.label
    ) -> None:
        """Write one checkpoint's answer while it comes, as long as somebody looks."""
        from assets.inference.prompts import Said

        chosen = self.chosen
        said = [Said(words) for turn in chosen.said[name] for words in turn]
        asked = Asked(
            checkpoint=name,
            said=(*said, Said(question)),
            video=chosen.video,
            subtitles=chosen.subtitles,
            options=options,
            attention=True,
        )
        answer = ""
        try:
            async with aclosing(self.engine.stream(asked)) as pieces:
                async for piece in pieces:
                    if text.is_deleted:  # the window is closed, or begins anew
                        return
                    if isinstance(piece, str):
                        answer += piece
                        text.set_text(answer)
                        told.set_text("writing ...")
                    else:
                        self._finish(name, piece, options, told)
        except CANNOT as error:
            told.set_text(str(error))
            return
        chosen.said[name].append((question, answer))

    def _finish(self, name: str, outcome: Outcome, options: AskOptions, told: ui.label) -> None:
        facts = [f"first token {outcome.first_token:.2f} s", f"{outcome.tokens} tokens"]
        facts += [f"{option} {value}" for option, value in options.given().items()]
        facts += ["cut off"] if outcome.cut_off else []
        facts += ["the answer is empty"] if not outcome.tokens else []
        facts += [f"the video is damaged: {outcome.damage}"] if outcome.damage else []
        told.set_text(", ".join(facts))
        if outcome.attention:
            with self.bands:
                self._band(name, outcome)

    def _band(self, name: str, outcome: Outcome) -> None:
        """Where MemAug looked, below the player; a click goes there."""

        def jump(event: MouseEventArguments) -> None:
            self.player.seek(outcome.duration * min(max(event.image_x / WIDTH, 0), 1))

        ui.label(f"Where MemAug of {name} looked").classes("text-xs text-gray-500")
        # Made of numbers alone, so nothing has to be cleaned; what would do it is loaded while a
        # band may be gone already.
        ui.interactive_image(
            size=(WIDTH, HEIGHT),
            content=band_svg(outcome.attention),
            on_mouse=jump,
            sanitize=False,
        ).classes("w-full cursor-pointer").props('data-testid="band"')
        with ui.row().classes("items-center gap-1"):
            ui.label("most at").classes("text-xs text-gray-500")
            for second in peaks(outcome.attention, outcome.duration):
                ui.button(clock(second), on_click=lambda _, at=second: self.player.seek(at)).props(
                    "flat dense size=sm"
                )
