"""Prompts that the language model has read: what it would write after them, and how likely given
answers are. All of this starts from one pass over the prompts.

Shapes: B prompts, K candidates of all prompts together, L tokens of the longest candidate, S prompt
tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM

from model.generate import CACHE


class CachedPrompts:
    """A batch of prompts in the language model's cache of keys and values.

    Args:
        embeds_SD: the prompts as the language model takes them, one after another.
        lengths: tokens of each prompt; they add up to S.
        end: the token that ends an answer.
    """

    def __init__(
        self, llm: Qwen2ForCausalLM, embeds_SD: Tensor, lengths: Sequence[int], end: int
    ) -> None:
        self.llm, self.end = llm, end
        with torch.inference_mode():
            embeds_BSD, self.mask_BS = _pad_left(embeds_SD, lengths)
            output = llm(
                inputs_embeds=embeds_BSD,
                attention_mask=self.mask_BS,
                position_ids=_positions(self.mask_BS),
                use_cache=True,
                logits_to_keep=1,
            )
        self.logits_BV: Tensor = output.logits[:, -1].float()
        self.cache = output[CACHE]
        self.length = self.mask_BS.shape[1]

    def generate(self, longest: int) -> list[list[int]]:
        """Each prompt's most likely continuation.

        The cache is then as it was before.

        Args:
            longest: where an answer is cut off, in tokens.

        Returns:
            token ids of each answer, without the end token.
        """
        mask_BS, logits_BV = self.mask_BS, self.logits_BV
        ended_B = torch.zeros(len(mask_BS), dtype=torch.bool, device=mask_BS.device)
        steps: list[list[int]] = []  # in each step a token for every prompt
        for step in range(longest):
            chosen_B = logits_BV.argmax(-1).where(~ended_B, self.end)
            ended_B = ended_B | (chosen_B == self.end)
            steps.append(chosen_B.tolist())
            if bool(ended_B.all()) or step + 1 == longest:
                break
            logits_BV, mask_BS = self._step(chosen_B[:, None], mask_BS)
        # Told as tokens to take away, which every version understands; 0 would be another thing.
        if added := self.cache.get_seq_length() - self.length:
            self.cache.crop(-added)
        answers = ([tokens[row] for tokens in steps] for row in range(len(ended_B)))
        return [ids[: ids.index(self.end)] if self.end in ids else ids for ids in answers]

    def scores(self, candidates: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        """Log-probability of each candidate answer after its prompt, summed over its tokens.

        The cache is used up: nothing can be asked of these prompts afterwards.

        Args:
            candidates: for each prompt its candidates as token ids. A candidate that ends with the
                end token is scored as exactly that answer, so that candidates of any length
                compare.

        Raises:
            ValueError: a candidate has no tokens.
        """
        if any(not ids for group in candidates for ids in group):
            raise ValueError("a candidate answer has no tokens")
        device = self.mask_BS.device
        prompt_K = torch.tensor(
            [row for row, group in enumerate(candidates) for _ in group], device=device
        )
        flat = [list(ids) for group in candidates for ids in group]
        longest = max(map(len, flat))
        lengths_K = torch.tensor([len(ids) for ids in flat], device=device)
        ids_KL = torch.tensor([ids + [0] * (longest - len(ids)) for ids in flat], device=device)
        logits_KV, mask_KS = self.logits_BV[prompt_K], self.mask_BS[prompt_K]
        totals_K = torch.zeros(len(flat), device=device)
        if longest > 1:
            self.cache.batch_select_indices(prompt_K)
        for step in range(longest):
            chosen_K = logits_KV.log_softmax(-1).gather(1, ids_KL[:, step : step + 1])[:, 0]
            totals_K += chosen_K.where(step < lengths_K, 0.0)
            if step + 1 < longest:
                logits_KV, mask_KS = self._step(ids_KL[:, step : step + 1], mask_KS)
        totals = iter(totals_K.tolist())
        return [[next(totals) for _ in group] for group in candidates]

    def _step(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """One more token for each row.

        Args:
            ids: the tokens, [rows, 1].
            mask: what is real in the cache, [rows, places].

        Returns:
            logits [rows, V] of what follows, and the mask with one more place.
        """
        with torch.inference_mode():
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            output = self.llm(
                input_ids=ids,
                attention_mask=mask,
                position_ids=_positions(mask)[:, -1:],
                use_cache=True,
                **{CACHE: self.cache},
            )
        return output.logits[:, -1].float(), mask


def _pad_left(embeds_SD: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Prompts one after another as a batch in which all end together: embeddings [B, longest, D]
    and mask [B, longest] (int64).
    """
    batch = embeds_SD.new_zeros(len(lengths), max(lengths), embeds_SD.shape[-1])
    mask = torch.zeros(batch.shape[:2], dtype=torch.int64, device=batch.device)
    for row, part_SD in enumerate(embeds_SD.split(list(lengths))):
        batch[row, -len(part_SD) :], mask[row, -len(part_SD) :] = part_SD, 1
    return batch, mask


def _positions(mask: Tensor) -> Tensor:
    """Positions that count from each row's first real token."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
