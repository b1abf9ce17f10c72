"""A prompt that was read: its continuation, and how likely given answers are. The prompt passes the
model once.

Shapes: B prompts, K candidates of all prompts together, S prompt tokens, N memory tokens, D width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from model.hf import HourLlavaForCausalLM
    from model.inputs import SampleInputs


class Reading:
    """Prompts that the model has read, with the cache that its answers start from.

    Args:
        prompts: samples that end where the answer begins (``add_generation_prompt=True``).
        memory_ND: the memories of their visuals, where they were made before
            (``HourLlava.remember``).
    """

    def __init__(
        self,
        model: HourLlavaForCausalLM,
        prompts: Sequence[SampleInputs],
        memory_ND: Tensor | None = None,
    ) -> None:
        import torch

        self.llm, self.end = model.model.llm, end_token(model)
        with torch.inference_mode():
            prepared = model.model.prepare(prompts, forgetting="uniform", memory_ND=memory_ND)
            embeds_BSD, self.mask_BS = _pad_left(prepared.embeds_SD, prepared.plan.lengths)
            output = self.llm(
                inputs_embeds=embeds_BSD,
                attention_mask=self.mask_BS,
                position_ids=_positions(self.mask_BS),
                use_cache=True,
                logits_to_keep=1,
            )
        self.logits_BV: Tensor = output.logits[:, -1].float()
        self.cache = output.past_key_values
        self.length = self.mask_BS.shape[1]

    def tokens(self, longest: int) -> Iterator[list[int]]:
        """The most likely continuation, one token of each prompt at a time, until all have ended or
        are ``longest``.

        A prompt whose answer has ended yields the end token. The cache is as before once the
        iterator is closed.
        """
        import torch

        mask_BS, logits_BV = self.mask_BS, self.logits_BV
        ended_B = torch.zeros(len(mask_BS), dtype=torch.bool, device=mask_BS.device)
        try:
            for step in range(longest):
                chosen_B = logits_BV.argmax(-1).where(~ended_B, self.end)
                ended_B = ended_B | (chosen_B == self.end)
                yield chosen_B.tolist()
                if bool(ended_B.all()) or step + 1 == longest:
                    return
                logits_BV, mask_BS = self._step(chosen_B[:, None], mask_BS)
        finally:
            self.cache.crop(self.length)

    def generate(self, longest: int) -> list[list[int]]:
        """Each prompt's answer, without the end token."""
        steps = list(self.tokens(longest))
        answers = [list(ids) for ids in zip(*steps, strict=True)]
        return [ids[: ids.index(self.end)] if self.end in ids else ids for ids in answers]

    def scores(self, candidates: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        """Log-probability of each candidate answer after its prompt, summed over its tokens. Uses
        the cache up.

        Args:
            candidates: for each prompt its candidates as token ids, none empty. Ending a candidate
                with the end token makes its score the probability of exactly that answer, so that
                candidates of any length compare.
        """
        import torch

        if any(not ids for group in candidates for ids in group):
            raise ValueError("a candidate answer has no tokens")
        device = self.mask_BS.device
        owner_K = torch.tensor(
            [row for row, group in enumerate(candidates) for _ in group], device=device
        )
        flat = [list(ids) for group in candidates for ids in group]
        longest = max(map(len, flat))
        lengths_K = torch.tensor([len(ids) for ids in flat], device=device)
        ids_KL = torch.tensor([ids + [0] * (longest - len(ids)) for ids in flat], device=device)
        logits_KV, mask_KS = self.logits_BV[owner_K], self.mask_BS[owner_K]
        totals_K = torch.zeros(len(flat), device=device)
        if longest > 1:
            self.cache.batch_select_indices(owner_K)
        for step in range(longest):
            chosen_K = logits_KV.log_softmax(-1).gather(1, ids_KL[:, step : step + 1])[:, 0]
            totals_K += chosen_K.where(step < lengths_K, 0.0)
            if step + 1 < longest:
                logits_KV, mask_KS = self._step(ids_KL[:, step : step + 1], mask_KS)
        totals = iter(totals_K.tolist())
        return [[next(totals) for _ in group] for group in candidates]

    def _step(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """One more token [rows, 1] on the cache: logits [rows, V] of what follows, and the longer
        mask.
        """
        import torch

        with torch.inference_mode():
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            output = self.llm(
                input_ids=ids,
                attention_mask=mask,
                position_ids=_positions(mask)[:, -1:],
                past_key_values=self.cache,
                use_cache=True,
            )
        return output.logits[:, -1].float(), mask


def end_token(model: HourLlavaForCausalLM) -> int:
    """The token that ends an answer."""
    end = model.config.eos_token_id
    if not isinstance(end, int):
        raise ValueError(f"the checkpoint's config.json must name one eos_token_id, it has {end!r}")
    return end


def _pad_left(embeds_SD: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Packed prompts as a batch that ends together: embeddings [B, longest, D] and mask [B,
    longest] (int64).
    """
    import torch

    batch = embeds_SD.new_zeros(len(lengths), max(lengths), embeds_SD.shape[-1])
    mask = torch.zeros(batch.shape[:2], dtype=torch.int64, device=batch.device)
    for row, part_SD in enumerate(embeds_SD.split(list(lengths))):
        batch[row, -len(part_SD) :], mask[row, -len(part_SD) :] = part_SD, 1
    return batch, mask


def _positions(mask: Tensor) -> Tensor:
    """Positions that count from each row's first real token."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
