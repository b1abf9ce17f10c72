"""Two processes that share one model, each shard held once, stay in step whatever each of them is
given.
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.model import golden
from training.lockstep import keep_in_step
from training.parallel import recompute, units

RANKS = 2
CASE, LONG_VIDEO = "v9.r_random_sampling", "v9.a_video_pixels_long"


@pytest.mark.parametrize("chosen", [[], [3], [0], [2, 3], [0, 1, 2, 3]], ids=str)
def test_in_lockstep_every_parameter_gets_a_gradient_and_the_loss_stays_the_same(chosen):
    model, samples = golden.mixed()
    batch = [samples[number] for number in chosen]
    expected = model(batch, forgetting="uniform").loss_sum if batch else torch.tensor(0.0)
    keep_in_step(model)
    output = model(batch, forgetting="uniform")
    assert torch.equal(output.loss_sum, expected)
    output.loss_sum.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    if chosen in ([], [3]):
        assert not model.memaug.blocks[0].up.weight.grad.any()


def test_a_frozen_vision_encoder_need_not_run_and_all_else_gets_a_gradient():
    model, samples = golden.mixed()
    model.vision.requires_grad_(False)
    keep_in_step(model)
    calls = []
    model.vision.register_forward_hook(lambda *_: calls.append("vision"))
    model([samples[3]], forgetting="uniform").loss_sum.backward()
    assert calls == []
    tuned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert tuned
    assert [name for name, parameter in tuned.items() if parameter.grad is None] == []


def test_a_text_gives_the_newline_a_gradient_also_where_memaug_has_no_blocks():
    model, samples = golden.mixed()
    model.memaug.blocks = torch.nn.ModuleList()
    keep_in_step(model)
    model([samples[3]], forgetting="uniform").loss_sum.backward()
    assert model.image_newline.grad is not None


def test_every_unit_runs_exactly_once_in_lockstep():
    model, samples = golden.mixed()
    keep_in_step(model)
    for batch in ([], samples, [samples[3]]):
        calls = dict.fromkeys(units(model), 0)
        hooks = [
            unit.register_forward_hook(
                lambda module, *_, calls=calls: calls.__setitem__(module, calls[module] + 1)
            )
            for unit in units(model)
        ]
        model(batch, forgetting="uniform")
        assert set(calls.values()) == {1}
        for hook in hooks:
            hook.remove()


def batches():
    """For each micro-step, what each rank gets. The long video gives the vision encoder no
    gradient.
    """
    video, anyres, images, text = golden.samples_of(CASE)
    return [
        ([video], [text]),
        ([], [anyres, images]),
        ([text], []),
        ([video, anyres], [images, text]),
        (golden.samples_of(LONG_VIDEO), [anyres]),
    ]


def work(rank: int, meeting: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    whole, model = golden.model_of(CASE), golden.model_of(CASE)
    recompute(model, "llm", "projector")
    keep_in_step(model)
    for unit in units(model):
        fully_shard(unit, mesh=mesh, reshard_after_forward=unit is not model.vision)
    fully_shard(model, mesh=mesh)
    for step, given in enumerate(batches()):
        whole.zero_grad()
        model.zero_grad()
        for samples in filter(None, given):
            whole(samples, forgetting="uniform").loss_sum.backward()
        model(given[rank], forgetting="uniform").loss_sum.backward()
        for (name, expected), parameter in zip(
            whole.named_parameters(), model.parameters(), strict=True
        ):
            gradient = parameter.grad.full_tensor() * RANKS  # the default reduction averages
            exact = torch.zeros_like(gradient) if expected.grad is None else expected.grad
            tolerance = 1e-5 * exact.abs().max().item()
            torch.testing.assert_close(
                gradient, exact, rtol=0, atol=tolerance, msg=f"micro-step {step}: {name}"
            )
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_with_different_kinds_of_samples_give_the_gradients_of_one_process(tmp_path):
    mp.spawn(work, (tmp_path / "meeting",), nprocs=RANKS)
