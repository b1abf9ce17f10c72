"""The thread that prepares packs while the model computes."""

from __future__ import annotations

import threading

import pytest

from model.config import PRESETS
from tests.training.generated_samples import (
    GeneratedLoader,
    LoaderBehaviour,
    make_run,
    single_rank,
    tiny_base,
)
from training.data.packing import Budget
from training.data.prefetch import Prefetcher, longest_silence
from training.data.worker_pool import START_S
from training.formats.machine_faults import MachineFault


def prefetcher_of(run, loader, ranks, steps):
    micro, accumulation = run.batches(1)
    config = PRESETS["tiny"]
    budget, tuned = Budget(200, 4000, 16), run.modules
    return Prefetcher(loader, steps, accumulation, micro, budget, config, tuned, ranks, 8)


@pytest.fixture
def processor():
    from transformers import AutoTokenizer

    from model.processor import Processor

    return Processor(PRESETS["tiny"], AutoTokenizer.from_pretrained(tiny_base()))


def test_groups_carry_every_sample_once_and_the_position_at_the_end_of_each_step(
    tmp_path, processor
):
    run = make_run(tmp_path, global_batch=16, micro_batch=4)
    with single_rank() as ranks:
        loader = GeneratedLoader(run, processor, 0, 1)
        groups = list(
            prefetcher_of(run, loader, ranks, steps=6)
        )  # an epoch is 4 steps: it goes on in the next one
    assert sum(group.ends_step for group in groups) == 6
    assert [len(group.sample_ids) for group in groups] == [8] * 12
    for group in groups:
        assert sorted(sample.id for pack in group.packs for sample in pack.samples) == sorted(
            group.sample_ids
        )
        assert (group.position is not None) == group.ends_step
    assert [g.position for g in groups if g.ends_step][:4] == [
        {"epoch": 0, "step": step} for step in (1, 2, 3, 4)
    ]
    first = [name for group in groups[:8] for name in group.sample_ids]
    assert len(set(first)) == 64


def test_an_error_of_the_loader_is_raised_where_the_data_is_used(tmp_path, processor):
    run = make_run(tmp_path)
    with single_rank() as ranks:
        prefetcher = prefetcher_of(
            run, GeneratedLoader(run, processor, 0, 1, LoaderBehaviour(crash_at=2)), ranks, steps=8
        )
        found = []
        with pytest.raises(RuntimeError, match="told to fail"):
            found.extend(iter(prefetcher))
    assert len(found) <= 2


def test_a_loader_that_hangs_is_given_up_as_a_fault_of_the_machine(tmp_path, processor):
    run = make_run(tmp_path)
    loader = GeneratedLoader(run, processor, 0, 1, LoaderBehaviour(pause_s=10))
    with single_rank() as ranks:
        prefetcher = prefetcher_of(run, loader, ranks, steps=8)
        prefetcher.limit_s = 0.1
        with pytest.raises(MachineFault, match=r"gave nothing for 0\.1 s"):
            list(prefetcher)


def test_a_loader_that_yields_nothing_is_an_error_and_not_an_endless_wait(tmp_path, processor):
    run = make_run(tmp_path)
    with (
        single_rank() as ranks,
        pytest.raises(RuntimeError, match="the data loader yields nothing"),
    ):
        list(
            prefetcher_of(
                run, GeneratedLoader(run, processor, 0, 1, LoaderBehaviour(count=3)), ranks, steps=1
            )
        )


def test_workers_that_hang_and_faults_that_last_are_told_before_the_loader_is_given_up(tmp_path):
    run = make_run(tmp_path, data_timeout_s=50, machine_wait_s=5000)
    assert longest_silence(run) > max(START_S + run.data_timeout_s, run.machine_wait_s + 30)


def test_leaving_early_ends_the_thread(tmp_path, processor):
    run = make_run(tmp_path)
    with single_rank() as ranks:
        groups = iter(prefetcher_of(run, GeneratedLoader(run, processor, 0, 1), ranks, steps=8))
        next(groups)
        groups.close()
        assert not any(thread.name == "prefetcher" for thread in threading.enumerate())
