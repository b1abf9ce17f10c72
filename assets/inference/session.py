"""A checkpoint that answers prompts about a video, images, or text alone.

What `hourllava ask`, the evaluation and lmms-eval share. A session loads the checkpoint, turns
media into prompts, and answers: greedily, hence always the same.

    session = Session(Path("checkpoints/tiny/stage3/export"))
    video = session.video(Path("talk.mp4"))  # read once, for any number of questions
    print(*session.ask("Who speaks first?", video), sep="")
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from assets.inference.checkpoint import find_checkpoint, load_checkpoint, log_to_terminal
from assets.inference.decoders import VideoDecoders
from assets.inference.likelihood import CachedPrompts
from assets.inference.prompts import AS_TRAINED, Prompt, RememberedVideo, Said
from assets.inference.subtitles import Cue, with_subtitles
from assets.inference.videos import (
    GREY,
    VideoFeatures,
    check_encoder,
    check_variant,
    encode_video,
    grey_video,
)
from model.config import HourLlavaConfig
from model.conversation import IMAGE, Conversations
from model.generate import greedy_tokens
from model.hour_llava import LLMInput
from model.images import ImageSource
from model.inputs import IMAGE_TOKEN_INDEX, Visual, with_template_tokens
from model.media.sampling import stored_frame_indices
from model.memory import video_token_counts
from model.memory_attention import memory_attention
from model.options import AskOptions
from model.packing import plan_sample
from training.formats.feature_file import FeatureFile

# What a character decodes to while some of its bytes are still to come.
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# What people write in its place where `<image>` would stand for a visual.
LITERAL_IMAGE = "\u2039image\u203a"


class Session:
    """One loaded checkpoint.

    Each prompt stands for itself: what was asked before is part of it only where it is given.

    Args:
        checkpoint: an export folder, the folder of a stage's run, or a released checkpoint.
        device: `auto`, `cpu` or `cuda`.
        decoders: of its videos; its own by default.

    Attributes:
        export: the export folder that was loaded.
        model: the model on its device.
        processor: what makes its inputs.
        end: the token that ends an answer.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: not a checkpoint, or there is no GPU where one is asked for.
    """

    def __init__(
        self, checkpoint: Path, device: str = "auto", decoders: VideoDecoders | None = None
    ) -> None:
        self.export = find_checkpoint(checkpoint, log_to_terminal)
        self.model, self.processor = load_checkpoint(self.export, device)
        end = self.model.config.eos_token_id
        if not isinstance(end, int):
            raise ValueError(
                f"the checkpoint's config.json must name one eos_token_id, it has {end!r}"
            )
        self.end = end
        self.decoders = decoders or VideoDecoders()
        # Only the last video is kept: who asks about many asks about one after another.
        self._last: tuple[tuple[Path, bool, bool], RememberedVideo] | None = None

    # -- from media to prompts --------------------------------------------------------------------

    def video(
        self, path: Path, *, grey: bool = False, own_encoder: bool = False
    ) -> RememberedVideo:
        """Read a video and lay out its memory. The one that was read last is not read again.

        Args:
            path: a video file, or a feature file of the checkpoint's variant.
            grey: show grey frames, as many as the video has.
            own_encoder: refuse features that another vision encoder made than the checkpoint's.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a video that cannot be decoded, or features that the checkpoint cannot use.
        """
        key = path, grey, own_encoder
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        self._last = None  # its memory makes room
        stored: VideoFeatures | FeatureFile = encode_video(self.model.model, path, self.decoders)
        if isinstance(stored, FeatureFile):
            check_variant(stored, self.processor.config)
            if own_encoder:
                check_encoder(stored, self.export)
        if grey:
            stored = grey_video(self.model.model, stored)
        video = self.remember(stored)
        self._last = key, video
        return video

    def remember(self, stored: VideoFeatures | FeatureFile) -> RememberedVideo:
        """Lay out the memory of a video that this checkpoint's vision encoder has seen."""
        shown_TPC = stored.read(stored_frame_indices(stored.frames, stored.duration))
        with torch.inference_mode():
            memory_ND = self.model.model.remember(Visual("features", features=shown_TPC))
        return RememberedVideo(shown_TPC, stored.duration, stored.damage, memory_ND=memory_ND)

    def prompt(
        self,
        text: str,
        *,
        video: RememberedVideo | None = None,
        images: Sequence[ImageSource] = (),
        earlier: Conversations = (),
        grey: bool = False,
        options: AskOptions = AS_TRAINED,
        id: str = "",
    ) -> Prompt:
        """A prompt about a video, about images, or about nothing but its text.

        Args:
            text: the human turn, with one `<image>` for the video or for each image.
            earlier: turns before it; where there are any, their first holds the video's `<image>`.
            grey: show grey images of the same number and size.
            id: names the prompt in errors.

        Raises:
            ValueError: the placeholders do not fit the visuals, or an image cannot be used.
            OSError: an image cannot be read.
        """
        inputs = self.processor.sample(
            [*earlier, {"from": "human", "value": text}],
            video=video,
            images=images,
            id=id,
            seed=options.forgetting_seed,
            add_generation_prompt=True,
        )
        if video is not None:
            return Prompt(inputs, video.memory_ND, options)
        if not inputs.visuals:
            return Prompt(inputs, None)
        [visual] = inputs.visuals  # several images are one visual
        if grey:
            assert visual.pixels is not None
            visual = replace(visual, pixels=torch.full_like(visual.pixels, GREY))
            inputs.visuals = [visual]
        with torch.inference_mode():
            return Prompt(inputs, self.model.model.remember(visual), options)

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt with its chat template, and `<image>` where a visual stands."""
        parts: list[list[int]] = [[]]
        for token in prompt.inputs.input_ids.tolist():
            if token == IMAGE_TOKEN_INDEX:
                parts.append([])
            else:
                parts[-1].append(token)
        return IMAGE.join(self.processor.tokenizer.decode(part) for part in parts)

    # -- from prompts to answers ------------------------------------------------------------------

    def ask(
        self,
        question: str,
        video: RememberedVideo,
        longest: int = 512,
        *,
        subtitles: Sequence[Cue] = (),
        earlier: Sequence[tuple[str, str]] = (),
        options: AskOptions = AS_TRAINED,
    ) -> StreamedAnswer:
        """The answer to a question about a video, while it is written.

        Args:
            longest: where the answer is cut off, in tokens.
            subtitles: of the video; they stand above the first question, see
                `assets/inference/subtitles.py`.
            earlier: questions and answers that this one follows.
            options: see `model/options.py`.

        Raises:
            ValueError: an empty question. One that is too long is told when the first piece is
                asked for.
        """
        started = time.perf_counter()
        texts = [text for turn in earlier for text in turn]
        said = [Said(text) for text in (*texts, question)]
        prompt = self.conversation(said, video=video, subtitles=subtitles, options=options)
        return StreamedAnswer(self, prompt, longest, started)

    def conversation(
        self,
        said: Sequence[Said],
        *,
        video: RememberedVideo | None = None,
        images: Sequence[ImageSource] = (),
        subtitles: Sequence[Cue] = (),
        system: str = "",
        options: AskOptions = AS_TRAINED,
    ) -> Prompt:
        """A prompt of what a person and the model said in turn, the person first and last. Nothing
        in these texts is more than text: beside visuals, `<image>` is written with other brackets.

        Args:
            system: replaces the system message that the model was trained with.

        Raises:
            ValueError: the last question is empty, the visuals do not fit, or an option has
                nothing to act on.
        """
        if not said[-1].text.strip():
            raise ValueError("the question is empty")
        options.check_visuals(video is not None, len(images) > 0)
        shown = video is not None or len(images) > 0
        texts = [system, *(turn.text for turn in said)]
        if shown:
            texts = [text.replace(IMAGE, LITERAL_IMAGE) for text in texts]
        system, *texts = texts
        if video is not None:
            texts[0] = f"{IMAGE}\n{self.subtitled(texts[0], video, subtitles, options)}"
        texts = [IMAGE * turn.images + text for turn, text in zip(said, texts, strict=True)]
        senders = ("human", "gpt")
        turns = [{"from": "system", "value": system}] if system else []
        turns += [{"from": senders[n % 2], "value": text} for n, text in enumerate(texts)]
        return self.prompt(
            texts[-1],
            video=video,
            images=images,
            earlier=turns[:-1],
            options=options,
            id="question",
        )

    def answer(self, prompt: Prompt, longest: int = 512) -> StreamedAnswer:
        """The answer to any prompt, while it is written; at most `longest` tokens."""
        return StreamedAnswer(self, prompt, longest, time.perf_counter())

    def subtitled(
        self,
        question: str,
        video: RememberedVideo,
        cues: Sequence[Cue],
        options: AskOptions = AS_TRAINED,
    ) -> str:
        """A question below its video's subtitles, which take at most half of the room that the
        video leaves.
        """
        config = self._config(options)
        _, visual = video_token_counts(video.frames, config)
        room = (config.max_length - visual) // 2
        return with_subtitles(question, cues, lambda text: len(self.ids(text)), room)

    def check(self, prompt: Prompt) -> None:
        """Raise ValueError where the language model cannot take a prompt. It is told before the
        prompt passes the model together with others.
        """
        plan_sample(prompt.inputs, self._config(prompt.options), prompt.options.forgetting)

    def _config(self, options: AskOptions) -> HourLlavaConfig:
        """What a prompt with these options is laid out by."""
        config = self.processor.config
        if options.kept_frames is None:
            return config
        return replace(config, memory=config.memory.keeping(options.kept_frames))

    def attention(self, prompt: Prompt) -> Tensor:
        """Where MemAug looks for a prompt about a video, see `model/memory_attention.py`: [T]."""
        return memory_attention(
            self.model.model, prompt.inputs, prompt.memory_ND, options=prompt.options
        )

    def tokens(self, prompt: Prompt, longest: int) -> Iterator[int]:
        """The tokens of one answer as they come, at most `longest`, without the end token.

        Raises:
            ValueError: the prompt is too long.
        """
        yield from self.continued(self.llm_input(prompt), longest)

    def continued(self, llm_input: LLMInput, longest: int) -> Iterator[int]:
        """The same of a prompt that MemAug has augmented."""
        if longest < 1:
            return
        embeds_SD, ends = llm_input.embeds_SD, frozenset({self.end})
        for token in greedy_tokens(self.model.model.llm, embeds_SD, longest, ends):
            if token == self.end:
                return
            yield token

    def llm_input(self, *prompts: Prompt) -> LLMInput:
        """Prompts as the language model takes them, with what MemAug found for each.

        Raises:
            ValueError: a prompt is too long, or they are to be asked with different options.
        """
        if len(asked := {prompt.options for prompt in prompts if prompt.inputs.visuals}) > 1:
            raise ValueError("prompts with different options cannot pass the model together")
        options = next(iter(asked), AS_TRAINED)
        inputs = [prompt.inputs for prompt in prompts]
        if options.template_tokens is not None:
            inputs = [with_template_tokens(sample, options.template_tokens) for sample in inputs]
        memories = [prompt.memory_ND for prompt in prompts if prompt.memory_ND is not None]
        with torch.inference_mode():
            # One memory is not copied: an hour's takes gigabytes.
            memory_ND = torch.cat(memories) if len(memories) > 1 else next(iter(memories), None)
            return self.model.model.prepare(
                inputs,
                forgetting=options.forgetting,
                memory_ND=memory_ND,
                memory_scale=options.memory_scale,
                kept_frames=options.kept_frames,
            )

    def generate(self, prompts: Sequence[Prompt], longest: int) -> list[list[int]]:
        """The tokens of each prompt's answer, at most `longest`, without the end token.

        One prompt takes the fast path of `model/generate.py`, several pass the model together.

        Raises:
            ValueError: a prompt is too long.
        """
        if len(prompts) == 1:
            return [list(self.tokens(prompts[0], longest))]
        return self.read(prompts).generate(longest)

    def read(self, prompts: Sequence[Prompt]) -> CachedPrompts:
        """Let prompts pass the model once, to write answers to them and to rate given ones.

        Raises:
            ValueError: a prompt is too long.
        """
        llm_input = self.llm_input(*prompts)
        return CachedPrompts(
            self.model.model.llm, llm_input.embeds_SD, llm_input.plan.lengths, self.end
        )

    def text(self, ids: Sequence[int]) -> str:
        """What an answer's tokens say."""
        return self.processor.tokenizer.decode(list(ids), skip_special_tokens=True)

    def ids(self, answer: str) -> list[int]:
        """The tokens of an answer, without the end token."""
        return self.processor.tokenizer(answer, add_special_tokens=False).input_ids


class StreamedAnswer:
    """An answer's text in pieces, as they come; joined they are the whole of it. Iterate over it
    once.

    Attributes:
        prompt: what is answered.
        prompt_tokens: of the language model, text and visual tokens.
        tokens: of the answer, so far.
        cut_off: whether it ended because it was as long as it may be.
        first_token: seconds from the question to its first token: MemAug looks the memory up for
            this question, and the language model reads the prompt.
        seconds: from the question to the end of the answer.
    """

    def __init__(self, session: Session, prompt: Prompt, longest: int, started: float) -> None:
        self.prompt, self.prompt_tokens, self.tokens = prompt, 0, 0
        self.cut_off, self.first_token, self.seconds = False, 0.0, 0.0
        self._session, self._longest, self._started = session, longest, started

    def __iter__(self) -> Iterator[str]:
        written: list[int] = []
        told = ""
        for token in self._tokens():
            if not written:
                self.first_token = time.perf_counter() - self._started
            written.append(token)
            self.tokens = len(written)
            text = self._session.text(written)
            if not text.endswith(UNFINISHED):
                yield text[len(told) :]
                told = text
        rest = self._session.text(written)[len(told) :]
        if rest:  # the answer stopped in the middle of a character
            yield rest
        self.cut_off = self.tokens >= self._longest
        self.seconds = time.perf_counter() - self._started
        if not written:  # the first token ended the answer
            self.first_token = self.seconds

    def _tokens(self) -> Iterator[int]:
        llm_input = self._session.llm_input(self.prompt)
        self.prompt_tokens = llm_input.plan.lengths[0]
        return self._session.continued(llm_input, self._longest)
