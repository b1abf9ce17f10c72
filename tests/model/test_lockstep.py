"""Two processes that share one model, each shard held once, stay in step whatever each of them is
given.
"""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.model import golden

RANKS = 2
CASE, LONG_VIDEO = "v9.r_random_sampling", "v9.a_video_pixels_long"


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


def work(rank: int, port: int) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (RANKS,))
    whole, model = golden.model_of(CASE), golden.model_of(CASE)
    model.optimise(checkpoint_parts=("llm", "projector"))
    for unit in model.units:
        fully_shard(unit, mesh=mesh, reshard_after_forward=unit is not model.vision)
    fully_shard(model, mesh=mesh)
    for step, given in enumerate(batches()):
        whole.zero_grad()
        model.zero_grad()
        for samples in filter(None, given):
            whole(samples, forgetting="uniform").loss_sum.backward()
        model(given[rank], forgetting="uniform", lockstep=True).loss_sum.backward()
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
def test_ranks_with_different_kinds_of_samples_give_the_gradients_of_one_process():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, (port,), nprocs=RANKS)
