"""The loss of samples that are never trained on, and a few answers to their questions, while a run
goes on: a stage of forty hours is not flown blind.

Nothing here touches what training computes: no global random state, no gradient, no data position.
All ranks measure together, each its own samples.

Shapes: S prompt tokens, E width.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from model.generate import greedy_tokens
from model.hour_llava import HourLlava
from model.inputs import SampleInputs
from training.data.micro_batch import MicroBatchLoader
from training.data.prefetch import longest_silence
from training.formats.machine_faults import MachineFault
from training.metrics import ANSWERS_NAME, MetricsWriter
from training.ranks import Ranks
from training.run_config import RunConfig

log = logging.getLogger(__name__)

ANSWERS = 2  # questions that are answered in each measurement
ANSWER_TOKENS = 32


class HeldOutMeasure:
    """Measures on this rank.

    Args:
        loader: gives the rows that are held out, and their samples.
    """

    def __init__(
        self, run: RunConfig, model: HourLlava, loader: MicroBatchLoader, ranks: Ranks
    ) -> None:
        self.run, self.model, self.loader, self.ranks = run, model, loader, ranks
        self.limit_s = longest_silence(run)

    def due(self, step: int, last: bool) -> bool:
        """Whether to measure after this step."""
        return bool(self.loader.held_out) and (last or step % self.run.held_out_every == 0)

    def measure(self, step: int) -> dict[str, float]:
        """Loss of each stream's held-out samples, all together and how many they are. Answers go to
        a file of their own.
        """
        began = time.monotonic()
        names = [stream.name for stream in self.run.streams]
        own = [0.0] * (3 * len(names))  # (loss, supervised tokens, samples) of each stream
        answers: list[dict[str, Any]] = []
        try:
            self._add_losses(own)
            self._answer(step, answers)
        except MachineFault as fault:  # on all ranks in the same place; it never ends a run
            log.warning("the rest of the held-out samples is not measured: %s", fault)
        self._write(step, answers)
        _give_parameters_back(self.model)
        sums = self.ranks.sum(*own)
        loss, supervised, samples = (sum(sums[part::3]) for part in range(3))
        found = {"loss": loss / supervised} if supervised else {}
        for number, name in enumerate(names):
            if len(names) > 1 and sums[3 * number + 1]:
                found[name] = sums[3 * number] / sums[3 * number + 1]
        return {**found, "samples": samples, "seconds": time.monotonic() - began}

    @torch.no_grad()
    def _add_losses(self, sums: list[float]) -> None:
        """Add (loss, supervised tokens, samples) of each stream's samples of this rank."""
        rows, world = self.loader.held_out, self.ranks.world
        own = rows[self.ranks.rank :: world]
        for number in range(-(-len(rows) // world)):
            mine = own[number : number + 1]
            # No rank waits in the model for one whose disk or store does not answer.
            taken = self.ranks.together(partial(self._sample, mine), self.limit_s)
            samples = [taken[0]] if taken else []
            if not samples and world == 1:
                continue
            output = self.model(samples, forgetting="random")  # by the sample's own seed
            if taken:
                place = 3 * taken[1]
                sums[place] += float(output.loss_sum)
                sums[place + 1] += output.supervised
                sums[place + 2] += 1

    def _sample(self, rows: Sequence[int]) -> tuple[SampleInputs, int] | None:
        """The sample of the row, if there is one and it can be used, and its stream."""
        return self.loader.held_out_sample(rows[0]) if rows else None

    def _answer(self, step: int, records: list[dict[str, Any]]) -> None:
        """Answer some of the questions, all ranks the same ones."""
        for row in self.loader.held_out[:ANSWERS]:
            ask = partial(self.loader.held_out_question, row)
            question = self.ranks.together(ask, self.limit_s)
            # A rank that cannot ask would leave the others waiting.
            if self.ranks.sum(question is not None)[0] < self.ranks.world:
                continue
            assert question is not None
            ids = self._generate(question.prompt)
            text = self.loader.text_of(ids)
            records.append(
                {
                    "step": step,
                    "id": question.prompt.id,
                    "question": question.question,
                    "expected": question.answer,
                    "answer": text,
                }
            )

    def _write(self, step: int, records: list[dict[str, Any]]) -> None:
        """Write the answers down."""
        if self.ranks.first and records:
            # A run that goes on from an earlier step writes the answers since then again.
            writer = MetricsWriter(
                Path(self.run.out), after=step - 1, tensorboard=False, name=ANSWERS_NAME
            )
            for record in records:
                writer.write(record)
            writer.close()

    @torch.no_grad()
    def _generate(self, prompt: SampleInputs) -> list[int]:
        """Ids of the answer to a prompt. It runs as the model's forward, so that what the ranks
        share is gathered; always as many steps, so that no rank stops before another.
        """
        model = self.model

        def answer(samples: list[SampleInputs]) -> list[int]:
            llm_input = model.prepare(samples, forgetting="random")
            embeds_SE = llm_input.embeds_SD
            return list(
                greedy_tokens(model.llm, embeds_SE, ANSWER_TOKENS, frozenset(), recorded=False)
            )

        plain = model.forward
        model.forward = answer  # type: ignore[method-assign, assignment]
        try:
            ids: list[int] = model([prompt])
        finally:
            model.forward = plain  # type: ignore[method-assign]
        return ids


def _give_parameters_back(model: nn.Module) -> None:
    """Leave no gathered parameters behind, as the end of a backward pass does."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
