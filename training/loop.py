"""The training loop of all stages: the story of one step, told once.

`train` sets up a run (ranks, model, optimizer, data, checkpoints), `Trainer.run` takes the steps,
and the end of a run is its export and, last of all, `result.json`. Started again at any moment,
also after it was killed, it goes on from the newest committed checkpoint, takes the same steps with
the same samples, and ends in the same bytes.
"""

from __future__ import annotations

import json
import logging
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.processor import Processor
from training.adapters import fill_adapters
from training.checkpoint import Checkpoints
from training.data.micro_batch import MicroBatchLoader
from training.data.packing import group_samples
from training.data.prefetch import DevicePrefetcher, PackGroup, Prefetcher, longest_silence
from training.device import (
    device_name,
    free_host_memory,
    free_memory,
    share_host_cores,
    utilisation,
)
from training.export import companions_of, publish_export
from training.flops import flops
from training.formats.hashing import seed_of
from training.formats.machine_faults import MachineFault
from training.held_out import HeldOutMeasure
from training.loading import load_vision, load_weights, model_and_processor
from training.memory_plan import plan_memory
from training.metrics import MetricsWriter, held_out_line, step_line, step_record
from training.optimizer import build_optimizer, gradient_norm, scale_gradients, select, set_rates
from training.parallel import keep_gradients, prepare
from training.ranks import Ranks
from training.reporting import Reporter
from training.run_config import RunConfig
from training.run_folder import NONFINITE_NAME, SAMPLES_FOLDER, STATE_FOLDER, RunFolder
from training.run_identity import Identity, identity_of, short_name, weights_version
from training.run_lock import holding
from training.state import StepTotals, TrainState
from training.supervise import StopRequest
from training.tracking import BackgroundTracker, open_tracker

log = logging.getLogger(__name__)

BuildLoader = Callable[[RunConfig, Processor, int, int], MicroBatchLoader]


class Preempted(Exception):
    """The run was asked to stop, wrote a checkpoint and ended; started again it continues."""


class StopRequested(Exception):
    """A rank was asked to stop; all of them are at the same place."""


class Diverged(RuntimeError):
    """Loss or gradients were not finite for several steps in a row."""


def train(
    run: RunConfig, ranks: Ranks, reporter: Reporter, build_loader: BuildLoader
) -> dict[str, Any]:
    """Train one stage to its end and return what `result.json` holds.

    A finished run whose export is whole is left as it is. State of another run in the same folder
    is refused or set aside, see `RunConfig.on_other_state`; nothing is deleted.

    Raises:
        ValueError: the configuration cannot work here (it names what to change).
        FolderInUse: another launcher works in the folder.
        Preempted: asked to stop, after a checkpoint.
        MachineFault, Diverged, OSError: see there.
    """
    out = Path(run.out)
    folder = RunFolder(out, reporter.note)
    checkpoints = Checkpoints(
        out / STATE_FOLDER, run.keep, ranks, run.milestone_every, reporter.note
    )
    with ExitStack() as held:
        # Weights and exports are hashed on one rank, which takes as long as the disk needs.
        opened = ranks.together(
            lambda: _open(run, folder, checkpoints, held, reporter) if ranks.first else None
        )
        first = ranks.gather(opened)[0]
        assert first is not None
        identity, done = first
        if done is not None:
            reporter.note(f"{out}: this run is finished already; nothing to do")
            return dict(done)
        trainer = Trainer(run, identity, ranks, reporter, build_loader, checkpoints)
        try:
            trainer.resume()
            trainer.run()
        finally:
            trainer.close()
        name = publish_export(run, trainer.wrapper, ranks, trainer.companions)
        result = ranks.together(
            lambda: (
                folder.write_result(trainer.state, identity, name, ranks.world)
                if ranks.first
                else {}
            )
        )
        if ranks.first:
            reporter.note(
                f"finished: loss {result['first_loss']} -> {result['last_loss']} in "
                f"{result['steps']} steps"
            )
        ranks.barrier()
    return result


def _open(
    run: RunConfig,
    folder: RunFolder,
    checkpoints: Checkpoints,
    held: ExitStack,
    reporter: Reporter,
) -> tuple[Identity, dict[str, Any] | None]:
    """Lock the run's folder until `held` ends, and look at what lies there: the run's identity, and
    its result if it is finished.
    """
    held.enter_context(holding(folder.out, reporter.note))
    version = weights_version(Path(run.start))
    if run.start_version not in (None, version):
        raise ValueError(
            f"start: the weights in {run.start} are {version[:12]} and were recorded as "
            f"{str(run.start_version)[:12]}; they are damaged, make what comes before this stage "
            "again"
        )
    identity = identity_of(run, version)
    folder.claim(identity, run.on_other_state)
    if run.continue_from is not None:
        folder.go_back(run.continue_from)
    if (done := folder.finished()) is None:
        folder.remove_incomplete()
        checkpoints.remove_incomplete()
    return identity, done


class Trainer:
    """One run on this rank: the model, laid over the ranks, its data, and how far it is.

    Attributes:
        identity: of the run; every checkpoint carries it.
        group_samples: samples of this rank that are cut into packs together.
        companions: files of the start that the export takes over.
        state: what was done so far.
        position: the loader's state after the last step that was taken.

    Raises:
        ValueError: the configuration cannot work here: the ranks cannot share the batch, memory
            does not suffice, the start is of another variant, there are too few samples.
    """

    def __init__(
        self,
        run: RunConfig,
        identity: Identity,
        ranks: Ranks,
        reporter: Reporter,
        build_loader: BuildLoader,
        checkpoints: Checkpoints,
    ) -> None:
        self.config, self.recipe, self.identity = run, run.recipe, identity
        self.ranks, self.reporter, self.checkpoints = ranks, reporter, checkpoints
        self.micro_batch, self.accumulation = run.batches(ranks.world)
        self.companions = companions_of(Path(run.start))
        self.wrapper, self.processor, checkpointing = model_and_processor(run)
        self.model, self.model_config = self.wrapper.model, self.processor.config
        # Before anything is loaded: what is wrong with the data is known within seconds.
        self.loader = build_loader(run, self.processor, ranks.rank, ranks.world)
        for text in self.loader.notes:
            reporter.note(text)
        compiled = ranks.device.type == "cuda" if run.compile is None else run.compile
        self.memory = plan_memory(
            run,
            self.model_config,
            ranks.world,
            free_memory(ranks),
            checkpointing,
            host=free_host_memory(ranks),
            compiled=compiled,
        )
        reporter.note(
            f"stage {run.stage} of {run.variant} on {ranks.world} x {device_name(ranks)}: "
            f"{self.memory}"
        )
        _seed(run, ranks)
        self.model.config = self.model_config
        select(self.model, run.modules, run.adapted)
        savings = self.memory.savings
        self.switches = prepare(self.model, ranks, compiled=compiled, savings=savings)
        load_weights(self.wrapper, Path(run.start), run.seed)
        if run.vision_start is not None:
            load_vision(self.wrapper, Path(run.vision_start))
        fill_adapters(self.model, run.seed)
        self.model.train()
        if savings.optimizer_on_host or savings.parameters_on_host:
            share_host_cores(ranks)
        self.optimizer = build_optimizer(self.model, self.recipe, savings)
        self.parameters = [
            parameter for group in self.optimizer.param_groups for parameter in group["params"]
        ]
        self.steps = min(
            self.recipe.epochs * self.loader.steps_per_epoch, run.max_steps or sys.maxsize
        )
        if not self.steps:
            raise ValueError(
                f"the streams hold less than one global batch of {self.recipe.global_batch} "
                "samples; add samples or set a smaller global_batch"
            )
        self.held_out = HeldOutMeasure(run, self.model, self.loader, ranks)
        self.group_samples = group_samples(run.stage)
        self.device_prefetcher = DevicePrefetcher(ranks.device)
        self.state = TrainState()
        self.position: dict[str, Any] | None = None
        self.metrics: MetricsWriter | None = None  # of all ranks, written by rank 0
        self.sample_log: MetricsWriter | None = None  # ids of this rank's samples, step by step
        self.stop_request = StopRequest()
        self._saved_step = 0  # of the newest checkpoint

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole, if there is one."""
        adopted = self.config.on_other_state == "adopt"
        if (newest := self.checkpoints.newest_whole(unmarked=adopted)) is not None:
            saved = self.checkpoints.load(newest, self.model, self.optimizer)
            self.state = TrainState.of_saved(saved["progress"])
            self.position = dict(saved["position"])
            if "identity" not in saved:  # of an earlier release, and adopted
                self.position.pop("identity", None)
            dropped = sum(self.state.dropped.values())
            self.loader.load_state_dict({**self.position, "dropped": dropped})
            self._saved_step = self.state.step
            self.reporter.note(f"continuing from {newest.name}")

    def run(self) -> None:
        """Take all steps that are left; the last one is in a committed checkpoint when this
        returns.

        Raises:
            Preempted: asked to stop, after a checkpoint.
            MachineFault: data could not be read for a fault that did not pass, after a checkpoint.
            Diverged: too many steps in a row were not finite.
            OSError: a checkpoint could not be written.
        """
        out, done = Path(self.config.out), self.state.step
        if self.ranks.first:
            self.metrics = MetricsWriter(
                out, after=done, tensorboard=self.config.tensorboard, tracker=self._tracker()
            )
        self.sample_log = MetricsWriter(
            out / SAMPLES_FOLDER,
            after=done,
            tensorboard=False,
            name=f"rank-{self.ranks.rank}.jsonl",
        )
        with closing(self.pack_groups()) as groups, self.stop_request:
            try:
                while self.state.step < self.steps:
                    self.step(groups)
                    self.checkpoints.commit_written()
                    if self._save_due():
                        self._save(wait=self.state.step == self.steps)
                if self.metrics is not None and self.metrics.tracker is not None:
                    checkpoint = f"{short_name(self.identity)}/step-{self.state.step}"
                    self.metrics.tracker.tell({"checkpoint": checkpoint})
            except StopRequested:
                raise Preempted(self._save_and_stop("asked to stop")) from None
            except MachineFault as fault:
                stopped = self.ranks.max(self.stop_request.made())[0]
                text = self._save_and_stop(str(fault))
                raise (Preempted if stopped else MachineFault)(text) from fault

    def _tracker(self) -> BackgroundTracker | None:
        """The run at a tracking server, under the name of its identity."""
        run = self.config
        if run.tracker is None:
            return None
        name = f"{run.variant} stage {run.stage} {short_name(self.identity)}"
        parameters = {**self.identity, "identity": short_name(self.identity)}
        return open_tracker(run.tracker, Path(run.out), name, parameters)

    def _save_due(self) -> bool:
        paces = (self.recipe.save_every, self.config.milestone_every)
        step = self.state.step
        return step == self.steps or any(pace and step % pace == 0 for pace in paces)

    def pack_groups(self) -> Generator[PackGroup]:
        """This rank's data for all steps that are left; to be closed."""
        prefetcher = Prefetcher(
            self.loader,
            steps=self.steps - self.state.step,
            accumulation=self.accumulation,
            micro_batch=self.micro_batch,
            budget=self.memory.budget,
            config=self.model_config,
            tuned=self.config.modules,
            ranks=self.ranks,
            group_samples=self.group_samples,
            limit_s=longest_silence(self.config),
        )
        return iter(prefetcher)

    def step(self, groups: Generator[PackGroup]) -> None:
        """One optimizer step: all packs forward and backward, then one update.

        Raises:
            StopRequested: a rank was asked to stop; all is as it was before the step.
            Diverged: too many steps in a row were not finite.
        """
        began = time.monotonic()
        rates = set_rates(self.optimizer, self.state.step, self.steps, self.recipe.warmup)
        own = StepTotals()
        loss = torch.zeros((), device=self.ranks.device)
        for group in self._groups_of_step(groups, own):
            packs = self.device_prefetcher.on_device(group.packs)
            for number, pack in enumerate(packs, start=1):
                if self.memory.keeps_gradients:
                    follows = number < len(group.packs) or not group.ends_step
                    keep_gradients(self.model, self.ranks, until_next=follows)
                self.switches.llm.layers = self.memory.recomputed(pack.sizes.tokens)
                self.switches.vision.layers = self.memory.vision_recomputed(pack.sizes)
                output = self.model(pack.samples, forgetting="random")
                loss += output.loss_sum.detach()
                self._objective(output.loss_sum, output.supervised).backward()
                own.supervised += output.supervised
                own.tokens += sum(output.lengths)
                own.packs += 1
                own.taught += output.supervised > 0
                own.work += flops(pack.sizes, self.model_config, self.config.modules)
            own.samples += len(group.sample_ids)
        own.loss_sum = float(loss)

        totals = StepTotals(*self.ranks.sum(*astuple(own)))
        norm, finite = self._update(totals)
        waited, seconds = self.ranks.max(own.waited_s, time.monotonic() - began)
        self.state = self.state.after(totals, finite, seconds, self._dropped_by_all())
        held_out = {}
        if self.held_out.due(self.state.step, last=self.state.step == self.steps):
            held_out = {"held_out": self.held_out.measure(self.state.step)}
        self._record(totals, rates, norm, seconds, waited, held_out)
        if not finite:
            self._report_nonfinite(totals, norm)

    def _groups_of_step(self, groups: Generator[PackGroup], own: StepTotals) -> Iterator[PackGroup]:
        """Groups up to the end of this step; the time spent waiting for them is counted.

        A step may take minutes, so before each group all ranks ask each other whether to go on.
        """
        self._sample_ids: list[str] = []
        self._dropped: Counter[str] = Counter()
        self._streams: set[int] = set()
        ended = False
        while not ended:
            if self.ranks.max(self.stop_request.made())[0]:
                raise StopRequested
            asked = time.monotonic()
            group = next(groups)
            own.waited_s += time.monotonic() - asked
            yield group
            self._sample_ids += group.sample_ids
            self._dropped += group.dropped
            self._streams |= group.streams
            ended = group.ends_step
        self.position = group.position

    def _dropped_by_all(self) -> Counter[str]:
        """Samples of the step that could not be used, on all ranks, by reason."""
        if not self.ranks.sum(self._dropped.total())[0]:
            return Counter()
        return sum(map(Counter, self.ranks.gather(self._dropped)), Counter())

    def _objective(self, loss_sum: torch.Tensor, supervised: int) -> torch.Tensor:
        """What is differentiated; `_update` divides the gradients by what is known only at the end
        of the step.
        """
        return loss_sum if self.config.loss == "tokens" else loss_sum / max(supervised, 1)

    def _update(self, totals: StepTotals) -> tuple[float, bool]:
        """Normalise and clip the gradients and move the parameters, unless something is not finite.

        Returns:
            The gradient's norm before clipping, and whether all was finite.
        """
        if not totals.supervised:  # every sample of the step was unusable
            self.optimizer.zero_grad(set_to_none=True)
            return 0.0, True
        # Sharded gradients are means over the ranks; the loss is a sum over tokens (or over packs'
        # means: a pack that a rank takes only because others do has none).
        parts = totals.supervised if self.config.loss == "tokens" else totals.taught
        factor = self.ranks.world / parts
        norm = float(gradient_norm(self.parameters)) * factor
        finite = math.isfinite(norm) and math.isfinite(totals.loss_sum)
        if finite:
            # 1e-6 as in torch's clip_grad_norm_.
            scale_gradients(self.parameters, factor * min(1.0, self.recipe.clip / (norm + 1e-6)))
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, finite

    def _record(
        self,
        totals: StepTotals,
        rates: dict[str, float],
        norm: float,
        seconds: float,
        waited: float,
        held_out: dict[str, Any],
    ) -> None:
        """Write and say what the step did, and what was measured after it."""
        stream = " + ".join(self.config.streams[n].name for n in sorted(self._streams))
        measured = utilisation(self.ranks, totals.work, seconds)
        record = step_record(
            self.state.step, self.steps, totals, stream, rates, norm, seconds, waited
        )
        mean = self.state.seconds / self.state.step
        record |= {**measured, **held_out, "left_s": mean * (self.steps - self.state.step)}
        if self.metrics is not None:
            self.metrics.write(record)
        if self.sample_log is not None:
            self.sample_log.write({"step": self.state.step, "ids": self._sample_ids})
        self.reporter.step(step_line(record))
        if held_out:
            self.reporter.note(held_out_line(record))

    def _report_nonfinite(self, totals: StepTotals, norm: float) -> None:
        """Name the samples of a step that was not taken; give up after several in a row."""
        step, in_a_row = self.state.step, self.state.skipped_in_a_row
        ids = [name for names in self.ranks.gather(self._sample_ids) for name in names]
        if self.ranks.first:
            record = {
                "step": step,
                "loss_sum": str(totals.loss_sum),
                "grad_norm": str(norm),
                "ids": ids,
            }
            with open(Path(self.config.out) / NONFINITE_NAME, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self.reporter.note(
            f"step {step} was not taken: its loss or gradient is not finite; samples: "
            f"{', '.join(ids)}"
        )
        if in_a_row >= self.config.nonfinite_limit:
            raise Diverged(
                f"loss or gradient were not finite in {in_a_row} steps in a row, up to step "
                f"{step}; {NONFINITE_NAME} in {self.config.out} names the samples. Look at them, "
                "or lower the rates"
            )

    def _save(self, wait: bool) -> None:
        """Write a checkpoint in the background; with `wait`, it is committed when this returns."""
        saved = {
            "progress": asdict(self.state),
            "position": self.position,
            "world": self.ranks.world,
            "identity": self.identity,
            "continued_from": self.config.continue_from,
        }
        self.checkpoints.save(self.state.step, self.model, self.optimizer, saved)
        self._saved_step = self.state.step
        if wait:
            self.checkpoints.commit_written(wait=True)

    def _save_and_stop(self, why: str) -> str:
        """Save the steps that were taken; the one that was begun is taken again later. What to tell
        of it.
        """
        step = self.state.step
        self.checkpoints.commit_written(wait=True)
        if step != self._saved_step:
            self._save(wait=True)
        return f"{why} after step {step} of {self.steps}; what was done is in a checkpoint"

    def close(self) -> None:
        """Close what reads and what writes."""
        self.loader.close()
        for writer in (self.metrics, self.sample_log):
            if writer is not None:
                writer.close()


def _seed(run: RunConfig, ranks: Ranks) -> None:
    """Nothing random should come from the global generators; what does is at least the same every
    time.
    """
    seed = seed_of(run.seed, run.variant, run.stage, "rank", ranks.rank)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
