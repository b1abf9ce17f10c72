"""Conversations to token ids and labels, in the Qwen chat format and exactly as the released
weights were trained.

Which tokens are supervised is more than a matter of loss: MemAug sees a prompt token only where its
label is `IGNORE_INDEX`. The published system supervises the answers and also every newline,
`<|im_start|>` and `<|im_end|>` of the system and user turns; released weights depend on it, so it
is kept.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from model.inputs import IGNORE_INDEX, IMAGE_TOKEN_INDEX

IMAGE = "<image>"
SYSTEM_MESSAGE = "You are a helpful assistant."
ROLES = {"human": "user", "gpt": "assistant"}
SYSTEM = "system"  # a first turn from here replaces `SYSTEM_MESSAGE`
START, END = "<|im_start|>", "<|im_end|>"
# A marker that one of the collections left in its text; the published system deletes it.
LEFTOVER_MARKER = "QA_GT_caption_based_noisy"

Conversations = Sequence[dict[str, str]]


def tokenize(
    conversations: Conversations,
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool = False,
    visuals: bool = True,
) -> tuple[Tensor, Tensor]:
    """Turns `{"from": "human" | "gpt", "value": text}` -> (input_ids [L], labels [L]), both int64.

    Each `<image>` becomes one `IMAGE_TOKEN_INDEX`; in a sample without `visuals` it is text like
    any other. So is everywhere the text of a special token: nothing that a turn says ends it. A
    first turn from "system" replaces the usual system message. A leading assistant turn is dropped.
    With `add_generation_prompt` the header of the answer to come is appended, labelled as in
    training, so that inference hides the same tokens.

    Raises ValueError if a turn has an unknown role, an assistant's turn holds an `<image>` that
    stands for a visual, no turn is left, or an answer is asked for after an answer.
    """
    ids, labels, _ = tokenize_seen(
        conversations, tokenizer, add_generation_prompt=add_generation_prompt, visuals=visuals
    )
    return ids, labels


def tokenize_seen(
    conversations: Conversations,
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool = False,
    visuals: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `tokenize`, and bool [L]: all tokens but what the answers say, so also those of the chat
    template. MemAug sees these where a model's `template_tokens` are `seen`.
    """
    turns = _turns(conversations, visuals)
    if add_generation_prompt and turns[-1][0] == "assistant":
        raise ValueError(
            f"the last turn already is an answer: {turns[-1][1][:80]!r}; leave it out to have one "
            "generated"
        )
    newline = _only_token(tokenizer, "\n")
    start, end = (_special(tokenizer, token) for token in (START, END))
    header = [start, *_ids(["assistant\n"], tokenizer)]
    ids: list[int] = []
    labels: list[int] = []
    seen: list[bool] = []
    for role, content in turns:
        text = f"{role}\n{content}"
        pieces = text.split(IMAGE) if visuals else [text]
        message = [start, *_ids(pieces, tokenizer), end, newline]
        ids += message
        # The newline of the header may have become one token with what an answer begins with.
        opening = header if message[: len(header)] == header else header[:-1]
        answer = len(message) - len(opening) - 2 if role == "assistant" else 0
        seen += [True] * (len(message) - answer - 2) + [False] * answer + [True, True]
        if role == "assistant":
            labels += message
        else:
            labels += [
                token if token in (newline, start, end) else IGNORE_INDEX for token in message
            ]
    if add_generation_prompt:
        ids += header
        labels += header
        seen += [True] * len(header)
    return torch.tensor(ids), torch.tensor(labels), torch.tensor(seen)


def video_prompt(
    conversations: Conversations, *, duration: float, frames: int
) -> list[dict[str, str]]:
    """A copy whose first human turn opens with `<image>` and says how long the video is and how
    many frames are shown.

    `duration` is in seconds, `frames` the number the model is given. The turn's own `<image>` is
    taken out, and what stood around it (usually a newline) stays. Raises ValueError without a human
    turn.
    """
    first = next((i for i, turn in enumerate(conversations) if turn.get("from") == "human"), None)
    if first is None:
        raise ValueError(
            "a video's conversation needs a human turn to carry it; it has "
            f"{_senders(conversations)}"
        )
    question = conversations[first]["value"].replace(IMAGE, "")
    opening = (
        f"{IMAGE}\nThe video lasts for {duration:.2f} seconds, and {frames} frames are uniformly "
        "sampled from it. "
        "Please answer the following questions related to this video."
    )
    turns = [dict(turn) for turn in conversations]
    turns[first]["value"] = f"{opening}\n{question}"
    return turns


def count_images(conversations: Conversations) -> int:
    """How many `<image>` the turns hold that `tokenize` keeps."""
    return sum(content.count(IMAGE) for _, content in _turns(conversations))


def _turns(conversations: Conversations, visuals: bool = True) -> list[tuple[str, str]]:
    """(role, content) of every turn that is kept, cleaned up as the published system does; the
    system's is the first.
    """
    system, turns = SYSTEM_MESSAGE, []
    for number, turn in enumerate(conversations):
        sender, value = turn.get("from"), turn.get("value")
        if number == 0 and sender == SYSTEM and isinstance(value, str):
            system = value
            continue
        if sender not in ROLES or not isinstance(value, str):
            raise ValueError(
                f"turn {number} must be {{'from': one of {sorted(ROLES)}, 'value': text}}, it has "
                f"from={sender!r} and a value of type {type(value).__name__} "
                f"(a turn from {SYSTEM!r} may only be the first)"
            )
        value = value.replace(LEFTOVER_MARKER, "")
        turns.append((ROLES[sender], _image_first(value) if visuals else value))
    if turns and turns[0][0] == "assistant":
        turns = turns[1:]
    if not turns:
        raise ValueError(f"the conversation has no human turn; it has {_senders(conversations)}")
    for role, content in [(SYSTEM, system), *turns] if visuals else []:
        if role != "user" and IMAGE in content:
            what = "an answer" if role == "assistant" else "the system message"
            raise ValueError(f"{what} holds {IMAGE}, which only a human turn may: {content[:80]!r}")
    return [(SYSTEM, system), *turns]


def _image_first(content: str) -> str:
    """A single `<image>` that does not open the message is moved to its front, on a line of its
    own.
    """
    if content.count(IMAGE) != 1 or content.startswith(IMAGE):
        return content
    return f"{IMAGE}\n{content.replace(IMAGE, '').strip()}".strip()


def _ids(pieces: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of pieces of text with a placeholder between them, all of it taken as text."""
    ids: list[int] = []
    for place, text in enumerate(pieces):
        if place > 0:
            ids.append(IMAGE_TOKEN_INDEX)
        if text:
            ids += tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    return ids


def _only_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    ids = _ids([text], tokenizer)
    if len(ids) != 1:
        raise ValueError(
            f"the tokenizer splits {text!r} into {ids}: it is not a Qwen chat tokenizer"
        )
    return ids[0]


def _special(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    known = tokenizer.get_added_vocab()
    if token not in known:
        raise ValueError(f"the tokenizer does not know {token!r}: it is not a Qwen chat tokenizer")
    return int(known[token])


def _senders(conversations: Conversations) -> str:
    return f"{len(conversations)} turns from {[turn.get('from') for turn in conversations[:4]]}"
