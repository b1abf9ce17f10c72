"""Steps of a trainer that are timed, in our way or in the published one. Used by
`benchmarks.train` and `benchmarks.stages`.

The published way: batches padded to their longest sample, logits of all tokens in float32,
FlashAttention-2, nothing compiled, activations of vision encoder and language model recomputed, a
blank image through the model for each text.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

import model.attention as attention
from benchmarks.communication import communication
from model.attention import SequenceLengths
from model.hour_llava import HourLlava, Output
from model.inputs import IGNORE_INDEX, IMAGE_TOKEN_INDEX, SampleInputs, Visual
from training.data.packing import Budget
from training.loop import Trainer
from training.rates import CARDS, GIB

H200 = CARDS["H200"]


def measure(
    trainer: Trainer,
    steps: int,
    *,
    warm: int = 1,
    published: int | None = None,
    profiled: bool = False,
    then: Callable[[Callable[[], object]], None] | None = None,
) -> dict[str, Any]:
    """Take `warm` steps and then `steps` that count; means over those.

    Args:
        published: samples of a batch of the published way; None: our way.
        profiled: take one more step, for the share of collectives.
        then: gets a function that takes one more step.
    """
    records: list[dict[str, Any]] = []
    recorder = types.SimpleNamespace(write=records.append, close=lambda: None)
    trainer.metrics = recorder  # type: ignore[assignment]
    trainer.state = replace(trainer.state, step=0)
    trainer.steps = warm + steps + profiled + (then is not None)
    with ExitStack() as stack:
        if published is not None:
            _train_as_published(trainer, published, stack)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        groups = trainer.pack_groups()
        stack.callback(groups.close)
        for _ in range(warm + steps):
            trainer.step(groups)
        shares = communication(lambda: trainer.step(groups)) if profiled else {}
        if then is not None:
            then(lambda: trainer.step(groups))
    timed = records[warm : warm + steps]
    seconds = sum(record["step_s"] for record in timed)
    mfu = sum(record.get("mfu", 0) * record["step_s"] for record in timed) / seconds
    return {
        "samples": sum(record["samples"] for record in timed),
        "samples_per_s": sum(record["samples"] for record in timed) / seconds,
        "tokens_per_s": sum(record["tokens"] for record in timed) / seconds,
        "s_per_step": seconds / len(timed),
        "data_wait": sum(record["data_wait_s"] for record in timed) / seconds,
        "packs_per_step": sum(record["packs"] for record in timed) / len(timed),
        "mfu": mfu,
        "mfu_datasheet": mfu * H200.products / H200.stated,
        "peak_gib": max(record.get("peak_gib", 0) for record in timed),
        "memory_retries": timed[-1].get("memory_retries", 0),
        "estimated_gib": trainer.memory.needed.total / GIB,
        "loss": timed[-1]["loss"],
        "losses": [record["loss"] for record in records],
        "step_seconds": [round(record["step_s"], 3) for record in records],
        **shares,
    }


def _train_as_published(trainer: Trainer, batch: int, stack: ExitStack) -> None:
    """Replace what the published way does otherwise; all is put back when `stack` closes."""
    held = (trainer.group_samples, trainer.memory, attention.PRIORITY, trainer.model.forward)

    def restore() -> None:
        trainer.group_samples, trainer.memory, attention.PRIORITY, trainer.model.forward = held
        torch.compiler.set_stance("default")

    stack.callback(restore)
    trainer.group_samples = batch
    trainer.memory = replace(
        trainer.memory,
        budget=Budget(1 << 40, 1 << 40, 1 << 40),
        steps=((1 << 40, trainer.memory.total_layers),),
        room=None,
        keeps_gradients=False,
    )
    attention.PRIORITY = [
        backend for backend in attention.PRIORITY if backend is not attention.PRIORITY[0]
    ]
    trainer.model.forward = types.MethodType(_published_forward, trainer.model)
    torch.compiler.set_stance("force_eager")


def _published_forward(self: HourLlava, samples: list[SampleInputs], forgetting: Any) -> Output:
    """A batch padded to its longest sample, and logits of all its tokens."""
    # In one pass with the rest: ranks that share parameters call each part equally often.
    blanks = [_blank(self) for sample in samples if not sample.visuals]
    prepared = self.prepare([*samples, *blanks], forgetting=forgetting)
    lengths = prepared.plan.lengths[: len(samples)]
    embeds = prepared.embeds_SD.split(prepared.plan.lengths)[: len(samples)]
    longest, count = max(lengths), len(lengths)
    padded = torch.nn.utils.rnn.pad_sequence(list(embeds), batch_first=True)
    hidden = self.llm.model(
        inputs_embeds=padded.flatten(0, 1)[None],
        position_ids=torch.arange(longest, device=padded.device).repeat(count)[None],
        attention_mask={"full_attention": None},
        sequence_lengths=SequenceLengths.of([longest] * count, padded.device),
        use_cache=False,
    ).last_hidden_state[0]
    targets = torch.full((count * longest,), IGNORE_INDEX)
    rows, wanted = prepared.plan.targets
    starts = torch.tensor([0, *lengths]).cumsum(0)
    owner = torch.bucketize(rows, starts[1:], right=True)
    targets[owner * longest + rows - starts[owner]] = wanted
    logits = self.llm.lm_head(hidden).float()
    loss = F.cross_entropy(
        logits, targets.to(logits.device), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    if blanks:  # the vision encoder's backward pass, too, is taken by all ranks
        loss = loss + 0 * prepared.embeds_SD[sum(lengths) :].float().sum()
    return Output(loss, len(rows), lengths)


def _blank(model: HourLlava) -> SampleInputs:
    """A question about a black image, with nothing to learn."""
    size = model.config.vision.image_size
    picture = Visual("images", pixels=torch.zeros(1, 3, size, size, dtype=torch.uint8))
    ids = torch.tensor([IMAGE_TOKEN_INDEX, 0])
    return SampleInputs("blank", ids, torch.full_like(ids, IGNORE_INDEX), [picture], seed=0)
