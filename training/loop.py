"""The training loop of all stages: the story of one step, told once.

`train` sets the scene (ranks, model, optimizer, data, checkpoints), `Training.run` takes the steps,
and the end of a run is its export and, last of all, ``result.json``. Started again at any moment,
also after it was killed, it goes on from the newest committed checkpoint, takes the same steps with
the same samples, and ends in the same bytes.
"""

from __future__ import annotations

import json
import logging
import math
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from model.config import VARIANTS
from model.hf import HourLlavaForCausalLM
from model.processor import Processor
from training.checkpoint import Checkpoints
from training.data.micro_batch import MicroBatchLoader
from training.data.prefetch import DevicePrefetcher, PackGroup, Prefetcher
from training.device import device_name, free_memory, hardware
from training.export import publish_export
from training.flops import flops
from training.formats.hashing import seed_of
from training.loading import empty_model, load_weights
from training.memory_plan import plan_memory
from training.metrics import MetricsWriter
from training.optimizer import build_optimizer, gradient_norm, scale_gradients, select, set_rates
from training.parallel import Ranks, prepare
from training.reporting import Reporter
from training.run_config import RunConfig
from training.run_identity import fingerprint_of, finished, remove_foreign_state, write_result
from training.supervise import stop_requested

log = logging.getLogger(__name__)

MakeLoader = Callable[[RunConfig, Processor, int, int], MicroBatchLoader]


class Preempted(Exception):
    """The run was asked to stop, wrote a checkpoint and left; started again it continues."""


class StopAsked(Exception):
    """A rank was asked to stop; all of them are at the same place."""


class Diverged(RuntimeError):
    """Loss or gradients were not finite for several steps in a row."""


@dataclass(slots=True)
class Progress:
    """What a checkpoint remembers of the run besides tensors."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    supervised: int = 0
    seconds: float = 0.0
    skipped: int = 0  # steps with a loss or gradient that is not finite
    skipped_in_a_row: int = 0


@dataclass(slots=True)
class Done:
    """What one step did, on one rank or summed over all."""

    loss_sum: float = 0.0
    supervised: float = 0
    tokens: float = 0
    samples: float = 0
    packs: float = 0
    work: float = 0.0  # floating point operations of the model
    waited_s: float = 0.0  # for data


def train(
    run: RunConfig, ranks: Ranks, reporter: Reporter, make_loader: MakeLoader
) -> dict[str, Any]:
    """Train one stage to its end and return what ``result.json`` holds.

    A finished run with the same configuration is left as it is. State of another configuration in
    the same folder is removed: its data, its start or its recipe are not those of this run.

    Raises:
        ValueError: the configuration cannot work here (it names what to change).
        Preempted: asked to stop, after a checkpoint.
        Diverged, OSError: see there.
    """
    out = Path(run.out)
    fingerprint = fingerprint_of(run)
    if (done := finished(out, fingerprint)) is not None:
        reporter.note(f"{out}: this run is finished already; nothing to do")
        return done
    checkpoints = Checkpoints(out / "state", run.keep, ranks)
    if ranks.first:
        remove_foreign_state(out, fingerprint)
        checkpoints.remove_incomplete()
    ranks.barrier()
    training = Training(run, ranks, reporter, make_loader, checkpoints)
    try:
        training.resume()
        training.run()
        dropped = _added(ranks.gather(training.loader.report()))
    finally:
        training.close()
    folder = publish_export(out, training.wrapper, ranks, Path(run.start))
    result = {}
    if ranks.first:
        result = write_result(
            out, asdict(training.progress), fingerprint, folder, ranks.world, dropped
        )
        reporter.note(
            f"finished: loss {result['first_loss']} -> {result['last_loss']} in {result['steps']} "
            "steps"
        )
    ranks.barrier()
    return result


class Training:
    """One run on this rank: the model, laid over the ranks, its data, and how far it is.

    Raises:
        ValueError: the configuration cannot work here: the ranks cannot share the batch, memory
            does not suffice, the start is of another variant, there are too few samples.
    """

    def __init__(
        self,
        run: RunConfig,
        ranks: Ranks,
        reporter: Reporter,
        make_loader: MakeLoader,
        checkpoints: Checkpoints,
    ) -> None:
        self.config, self.recipe = run, run.recipe
        self.ranks, self.reporter, self.checkpoints = ranks, reporter, checkpoints
        self.micro_batch, self.accumulation = run.batches(ranks.world)
        self.wrapper, self.processor, checkpointing = _model(run)
        self.model, self.model_config = self.wrapper.model, self.processor.config
        self.memory = plan_memory(
            run, self.model_config, ranks.world, free_memory(ranks), checkpointing
        )
        reporter.note(
            f"stage {run.stage} of {run.variant} on {ranks.world} x {device_name(ranks)}: packs of "
            f"at most {self.memory.budget.tokens} tokens, estimated need {self.memory.needed}"
        )
        _seed(run, ranks)
        self.model.config = self.model_config
        select(self.model, run.modules)
        compiled = ranks.device.type == "cuda" if run.compile is None else run.compile
        self.recomputation = prepare(
            self.model, ranks, compiled=compiled, checkpointing=checkpointing
        )
        load_weights(self.wrapper, Path(run.start))
        self.model.train()
        self.optimizer = build_optimizer(self.model, self.recipe)
        self.parameters = [
            parameter for group in self.optimizer.param_groups for parameter in group["params"]
        ]
        self.loader = make_loader(run, self.processor, ranks.rank, ranks.world)
        self.steps = min(
            self.recipe.epochs * self.loader.steps_per_epoch, run.max_steps or sys.maxsize
        )
        if not self.steps:
            raise ValueError(
                f"the streams hold less than one global batch of {self.recipe.global_batch} "
                "samples; add samples or set a smaller global_batch"
            )
        self.device_prefetcher = DevicePrefetcher(ranks.device)
        self.progress = Progress()
        self.position: dict[str, Any] | None = None
        self.metrics: MetricsWriter | None = None
        self.seen: MetricsWriter | None = None
        self._saved = 0  # the step of the newest checkpoint
        self._signalled = False

    def resume(self) -> None:
        """Go on from the newest committed checkpoint, if there is one."""
        if (newest := self.checkpoints.newest()) is not None:
            saved = self.checkpoints.load(newest, self.model, self.optimizer)
            self.progress = Progress(**saved["progress"])
            self.loader.load_state_dict(saved["position"])
            self._saved = self.progress.step
            self.reporter.note(f"continuing from {newest.name}")

    def run(self) -> None:
        """Take all steps that are left; the last one is in a committed checkpoint when this
        returns.
        """
        out, done = Path(self.config.out), self.progress.step
        if self.ranks.first:
            self.metrics = MetricsWriter(out, after=done, tensorboard=self.config.tensorboard)
        self.seen = MetricsWriter(
            out / "samples", after=done, tensorboard=False, name=f"rank-{self.ranks.rank}.jsonl"
        )
        previous = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        groups = self.pack_groups()
        try:
            while self.progress.step < self.steps:
                self.step(groups)
                self.checkpoints.settle()
                last = self.progress.step == self.steps
                if last or self.progress.step % self.recipe.save_every == 0:
                    self._save(wait=last)
        except StopAsked:
            self._leave()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            groups.close()

    def pack_groups(self) -> Generator[PackGroup]:
        """This rank's data for all steps that are left; to be closed."""
        prefetcher = Prefetcher(
            self.loader,
            steps=self.steps - self.progress.step,
            accumulation=self.accumulation,
            micro_batch=self.micro_batch,
            budget=self.memory.budget,
            config=self.model_config,
            tuned=self.config.modules,
            ranks=self.ranks,
        )
        return iter(prefetcher)

    def step(self, groups: Generator[PackGroup]) -> None:
        """One optimizer step. Raises StopAsked, and leaves all as it was before, if a rank was
        asked to stop.
        """
        began = time.monotonic()
        rates = set_rates(self.optimizer, self.progress.step, self.steps, self.recipe.warmup)
        done = Done()
        loss = torch.zeros((), device=self.ranks.device)
        for group in self._until_step_ends(groups, done):
            for pack in self.device_prefetcher.on_device(group.packs):
                self.recomputation.wanted = pack.sizes.tokens > self.memory.kept_tokens
                output = self.model(
                    pack.samples, forgetting="random", lockstep=self.ranks.world > 1
                )
                loss += output.loss_sum.detach()
                if output.loss_sum.requires_grad:
                    self._objective(output.loss_sum, output.supervised).backward()
                done.supervised += output.supervised
                done.tokens += sum(output.lengths)
                done.samples += len(pack.samples)
                done.packs += 1
                done.work += flops(pack.sizes, self.model_config, self.config.modules)
        done.loss_sum = float(loss)

        everywhere = Done(*self.ranks.sum(*astuple(done)))
        norm, finite = self._update(everywhere)
        waited, seconds = self.ranks.max(done.waited_s, time.monotonic() - began)
        self._account(everywhere, finite, seconds)
        self._record(everywhere, rates, norm, seconds, waited)
        if not finite:
            self._not_finite(everywhere, norm)

    def _until_step_ends(self, groups: Generator[PackGroup], done: Done) -> Iterator[PackGroup]:
        """Groups up to the end of this step; the time spent waiting for them is counted.

        A step may take minutes, so before each group all ranks ask each other whether to go on.
        """
        self._ids: list[str] = []
        ended = False
        while not ended:
            if self.ranks.max(self._signalled or stop_requested())[0]:
                raise StopAsked
            asked = time.monotonic()
            group = next(groups)
            done.waited_s += time.monotonic() - asked
            yield group
            self._ids += group.sample_ids
            self._stream, ended = group.stream, group.ends_step
        self.position = group.position

    def _objective(self, loss_sum: torch.Tensor, supervised: int) -> torch.Tensor:
        """What is differentiated; `_update` divides the gradients by what is known only at the end
        of the step.
        """
        return loss_sum if self.config.loss == "tokens" else loss_sum / max(supervised, 1)

    def _update(self, everywhere: Done) -> tuple[float, bool]:
        """Normalise and clip the gradients and move the parameters, unless something is not finite.

        Returns:
            The gradient's norm before clipping, and whether all was finite.
        """
        if not everywhere.supervised:  # every sample of the step was unusable
            self.optimizer.zero_grad(set_to_none=True)
            return 0.0, True
        # Sharded gradients are means over the ranks; the loss is a sum over tokens (or over packs'
        # means).
        parts = everywhere.supervised if self.config.loss == "tokens" else everywhere.packs
        factor = self.ranks.world / parts
        norm = float(gradient_norm(self.parameters)) * factor
        finite = math.isfinite(norm) and math.isfinite(everywhere.loss_sum)
        if finite:
            scale_gradients(self.parameters, factor * min(1.0, self.recipe.clip / (norm + 1e-6)))
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, finite

    def _account(self, everywhere: Done, finite: bool, seconds: float) -> None:
        progress = self.progress
        self.progress = Progress(
            step=progress.step + 1,
            samples=progress.samples + int(everywhere.samples),
            tokens=progress.tokens + int(everywhere.tokens),
            supervised=progress.supervised + int(everywhere.supervised),
            seconds=progress.seconds + seconds,
            skipped=progress.skipped + (not finite),
            skipped_in_a_row=0 if finite else progress.skipped_in_a_row + 1,
        )

    def _record(
        self, done: Done, rates: dict[str, float], norm: float, seconds: float, waited: float
    ) -> None:
        step = self.progress.step
        loss = done.loss_sum / done.supervised if done.supervised else math.nan
        record: dict[str, Any] = {
            "step": step,
            "steps": self.steps,
            "loss": loss if math.isfinite(loss) else None,
            "grad_norm": norm if math.isfinite(norm) else None,
            "rates": rates,
            "stream": self.config.streams[self._stream].name,
            "supervised": int(done.supervised),
            "tokens": int(done.tokens),
            "samples": int(done.samples),
            "packs": int(done.packs),
            "step_s": seconds,
            "data_wait_s": waited,
            "tokens_per_s": done.tokens / seconds,
            "samples_per_s": done.samples / seconds,
        }
        measured = hardware(self.ranks, done.work, seconds)
        record |= measured
        if self.metrics is not None:
            self.metrics.write(record)
        if self.seen is not None:
            self.seen.write({"step": step, "ids": self._ids})
        used = f", {100 * measured['mfu']:.1f} % MFU" if "mfu" in measured else ""
        self.reporter.step(
            f"step {step}/{self.steps} loss {loss:.4f} grad norm {norm:.3f} {seconds:.2f} s (data "
            f"{waited:.2f} s) {done.tokens / seconds:.0f} tokens/s{used}"
        )

    def _not_finite(self, everywhere: Done, norm: float) -> None:
        """Name the samples of a step that was not taken; give up after several in a row."""
        step, row = self.progress.step, self.progress.skipped_in_a_row
        ids = [name for names in self.ranks.gather(self._ids) for name in names]  # type: ignore[attr-defined]
        if self.ranks.first:
            record = {
                "step": step,
                "loss_sum": str(everywhere.loss_sum),
                "grad_norm": str(norm),
                "ids": ids,
            }
            with open(Path(self.config.out) / "nonfinite.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self.reporter.note(
            f"step {step} was not taken: its loss or gradient is not finite; samples: "
            f"{', '.join(ids)}"
        )
        if row >= self.config.nonfinite_limit:
            raise Diverged(
                f"loss or gradient were not finite in {row} steps in a row, up to step {step}; "
                f"nonfinite.jsonl in {self.config.out} names the samples. Look at them, or lower "
                "the rates"
            )

    def _save(self, wait: bool) -> None:
        state = {
            "progress": asdict(self.progress),
            "position": self.position,
            "world": self.ranks.world,
        }
        self.checkpoints.save(self.progress.step, self.model, self.optimizer, state)
        self._saved = self.progress.step
        if wait:
            self.checkpoints.settle(wait=True)

    def _leave(self) -> None:
        """Write down the steps that were taken, and go; the one that was begun is taken again
        later.
        """
        step = self.progress.step
        self.checkpoints.settle(wait=True)
        if step != self._saved:
            self._save(wait=True)
        raise Preempted(
            f"asked to stop after step {step} of {self.steps}; what was done is in a checkpoint"
        )

    def _on_signal(self, number: int, frame: object) -> None:
        self._signalled = True

    def close(self) -> None:
        """Close what reads and what writes."""
        self.loader.close()
        for writer in (self.metrics, self.seen):
            if writer is not None:
                writer.close()


def _model(run: RunConfig) -> tuple[HourLlavaForCausalLM, Processor, bool]:
    """The model, still empty, its processor, and whether activations are to be recomputed."""
    start = Path(run.start)
    wrapper = empty_model(start)
    config = wrapper.config.model_config
    if config.variant != run.variant:
        raise ValueError(
            f"start: {start} holds variant {config.variant!r}, but the run is of variant "
            f"{run.variant!r}"
        )
    tokenizer = AutoTokenizer.from_pretrained(start)
    config = replace(config, max_length=min(config.max_length, run.recipe.max_length))
    cuda = torch.cuda.is_available() if run.device == "auto" else run.device == "cuda"
    checkpointing = (
        (cuda and not VARIANTS[run.variant].is_demo)
        if run.checkpointing is None
        else run.checkpointing
    )
    return wrapper, Processor(config, tokenizer), checkpointing


def _added(counts: list[Any]) -> dict[str, int]:
    """Sums of counts by name."""
    return dict(sorted(sum((Counter(found) for found in counts), Counter()).items()))


def _seed(run: RunConfig, ranks: Ranks) -> None:
    """Nothing random should come from the global generators; what does is at least the same every
    time.
    """
    seed = seed_of(run.seed, run.variant, run.stage, "rank", ranks.rank)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
