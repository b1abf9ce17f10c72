"""What saves memory changes no loss and no gradient; a run with it goes on to the same bytes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from model.chunks import in_chunks
from model.inputs import IMAGE_TOKEN_INDEX, SampleInputs, Visual
from tests.model import golden
from tests.training.fake_training import start, torchrun_command
from tests.training.generated_samples import (
    LoaderBehaviour,
    losses,
    make_run,
    single_rank,
    tiny_base,
    train_in_process,
)
from training.host_optimizer import AdamWOnHost
from training.loading import empty_model, load_weights
from training.optimizer import select
from training.parallel import Savings, keep_gradients, prepare
from training.recipes import RECIPES
from training.run_config import SavingsWanted


def gradients_of(model, samples):
    model.zero_grad()
    output = model(samples, forgetting="uniform")
    output.loss_sum.backward()
    return output.loss_sum.detach(), {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_same(found, wanted, tolerance=1e-5):
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-6, atol=0)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        limit = tolerance * gradient.abs().max().item() + 1e-8
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=limit)


def test_a_memory_made_in_chunks_gives_the_same_loss_and_gradients():
    model, samples = golden.mixed()
    generator = torch.Generator().manual_seed(0)
    frames = model.config.memory.min_frames + 3
    shape = (frames, model.config.memory.frame_tokens, model.config.vision.hidden_size)
    features = torch.randn(shape, generator=generator)
    samples.append(replace(samples[0], id="long", visuals=[Visual("features", features=features)]))
    wanted = gradients_of(model, samples)
    model.memory_chunk = 7
    found = gradients_of(model, samples)
    assert_same(found, wanted)
    assert found[1]["projector.up.weight"].abs().max() > 0


def test_chunks_pass_gradients_to_their_input_as_well():
    torch.manual_seed(0)
    x, weight = torch.randn(7, 3, requires_grad=True), torch.randn(3, 4, requires_grad=True)

    def function(rows):
        return (rows @ weight).tanh().repeat_interleave(2, dim=0)

    torch.autograd.gradcheck(
        lambda x, w: in_chunks(lambda rows: (rows @ w).tanh(), x, 3, (w,)),
        (x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()),
    )
    assert torch.equal(in_chunks(function, x, 3, (weight,)), function(x))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("plain"), max_steps=3)
    train_in_process(run)
    return losses(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "savings",
    [
        {"chunks": True, "memaug": True, "layers": 1},
        {"layers": 2, "inputs_on_host": True, "gathered_again": True},
        {"optimizer_on_host": True},
        {"parameters_on_host": True, "chunks": True},
    ],
    ids=lambda savings: ", ".join(savings),
)
def test_each_saving_takes_the_same_steps(plain, tmp_path, savings):
    run = make_run(tmp_path, max_steps=3, savings=savings)
    train_in_process(run)
    assert losses(run) == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
def test_a_run_whose_optimizer_is_on_the_host_goes_on_to_the_same_bytes(tmp_path):
    straight = make_run(tmp_path, max_steps=4, save_every=2, savings={"optimizer_on_host": True})
    train_in_process(straight)
    again = replace(straight, out=str(tmp_path / "again"))
    with pytest.raises(RuntimeError, match="told to fail"):
        train_in_process(again, LoaderBehaviour(crash_at=3))
    train_in_process(again)
    for run in (straight, again):
        assert losses(run) == losses(straight)
    path = "export/model.safetensors"
    assert (Path(again.out) / path).read_bytes() == (Path(straight.out) / path).read_bytes()


@pytest.mark.slow
def test_a_run_may_go_on_with_other_savings(tmp_path):
    straight = make_run(tmp_path, max_steps=4, save_every=2)
    with pytest.raises(RuntimeError, match="told to fail"):
        train_in_process(straight, LoaderBehaviour(crash_at=3))
    moved = SavingsWanted(optimizer_on_host=True, memaug=True)
    assert train_in_process(replace(straight, savings=moved))["steps"] == 4


def test_the_hosts_step_is_torchs_own(monkeypatch):
    monkeypatch.setattr("training.host_optimizer.PIECE", 7)  # several pieces of each parameter
    generator = torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(n, 5, generator=generator)) for n in (3, 4)]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    own = AdamWOnHost([{"params": ours, "lr": 1e-2}], (0.9, 0.95), 0.1)
    plain = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            other.grad = torch.randn(other.shape, generator=generator)
            mine.grad = other.grad.clone()
        own.step()
        plain.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(own.state[mine]["exp_avg"], plain.state[other]["exp_avg"])
        assert own.state[mine]["step"] == plain.state[other]["step"]


def test_recomputed_inputs_wait_on_the_host():
    """Whatever a recomputed layer starts from passes through torch's own hooks."""
    with single_rank() as ranks:
        wrapper = empty_model(tiny_base())
        select(wrapper.model, RECIPES["tiny", 3].rates)
        savings = Savings(inputs_on_host=True)
        switch = prepare(wrapper.model, ranks, compiled=False, savings=savings).llm
        load_weights(wrapper, tiny_base())
        switch.layers = 1
        packed = []
        with pytest.MonkeyPatch.context() as patch:
            plain = torch.autograd.graph.save_on_cpu.__init__

            def counted(self, *args, **kwargs):
                packed.append(self)
                plain(self, *args, **kwargs)

            patch.setattr(torch.autograd.graph.save_on_cpu, "__init__", counted)
            _, samples = golden.mixed()
            text = replace(samples[3], input_ids=samples[3].input_ids % 500)
            wrapper.model([text], forgetting="uniform")
        assert len(packed) == 1


def test_as_many_layers_of_the_vision_encoder_run_twice_as_a_pass_says():
    """And the gradients are the same to the last bit."""
    with single_rank() as ranks:
        wrapper = empty_model(tiny_base())
        select(wrapper.model, RECIPES["tiny", 2].rates)
        switch = prepare(wrapper.model, ranks, compiled=False, savings=Savings(chunks=True)).vision
        load_weights(wrapper, tiny_base())
        ran = [0, 0]
        for number, layer in enumerate(wrapper.model.vision.layers):

            def count(*_, number=number):
                ran[number] += 1

            layer.up.register_forward_hook(count)
        found = []
        for layers in (sys.maxsize, 1, 0):
            switch.layers, ran[:] = layers, [0, 0]
            wrapper.model([picture_sample()], forgetting="uniform").loss_sum.backward()
            gradient = wrapper.model.vision.layers[0].up.weight.grad
            found.append((list(ran), gradient.full_tensor().clone()))
            wrapper.model.zero_grad(set_to_none=True)
    assert [counts for counts, _ in found] == [[2, 2], [2, 1], [1, 1]]
    assert all(torch.equal(gradient, found[0][1]) for _, gradient in found)
    assert float(found[0][1].abs().max()) > 0


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_gradients_kept_from_pass_to_pass_are_those_that_were_reduced_each_time(half, monkeypatch):
    """To the last bit; also of parts that the last pass does not use. Only what a pass uses twice,
    the tied embeddings, may be rounded once instead of twice in bfloat16.
    """
    if half:  # as on a GPU
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        monkeypatch.setattr("training.parallel.MixedPrecisionPolicy", lambda: policy)
    with single_rank() as ranks:
        wrapper = empty_model(tiny_base())
        select(wrapper.model, RECIPES["tiny", 2].rates)
        prepare(wrapper.model, ranks, compiled=False)
        load_weights(wrapper, tiny_base())
        text = SampleInputs("text", torch.tensor([5, 6, 7]), torch.tensor([-100, 6, 7]))
        passes = [[picture_sample()], [picture_sample(), text], [text]]
        weight = wrapper.model.vision.layers[0].up

        def gradients(kept):
            for number, samples in enumerate(passes, start=1):
                if kept:
                    keep_gradients(wrapper.model, ranks, until_next=number < len(passes))
                wrapper.model(samples, forgetting="uniform").loss_sum.backward()
                assert isinstance(weight.weight, DTensor) == (not kept or number == len(passes))
            found = {n: p.grad.full_tensor() for n, p in wrapper.model.named_parameters()}
            wrapper.model.zero_grad(set_to_none=True)
            return found

        plain, kept = gradients(False), gradients(True)
    assert plain.keys() == kept.keys()
    tied = "llm.model.embed_tokens.weight"
    apart = float((kept[tied] - plain[tied]).norm() / plain[tied].norm())
    assert apart <= (2**-9 if half else 0)
    assert all(torch.equal(plain[name], kept[name]) for name in plain if name != tied or not half)
    assert all(float(gradient.abs().max()) > 0 for gradient in plain.values())


def picture_sample():
    pixels = torch.randint(
        0, 256, (2, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    ids = torch.tensor([5, IMAGE_TOKEN_INDEX, IMAGE_TOKEN_INDEX, 6, 7])
    labels = torch.tensor([-100, -100, -100, 6, 7])
    return SampleInputs("two", ids, labels, [Visual("images", pixels=pixels)], seed=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", ["optimizer_on_host", "parameters_on_host"])
def test_two_ranks_with_adapters_and_savings_take_the_steps_of_one(tmp_path, place):
    lora = {"rank": 4, "alpha": 8, "rate": 1e-2}
    savings = {"chunks": True, "memaug": True, "layers": 1, "inputs_on_host": True, place: True}
    alone = make_run(tmp_path, max_steps=3, lora=lora)
    train_in_process(alone)
    shared = replace(alone, out=str(tmp_path / "two"), savings=SavingsWanted(**savings))
    process = start(torchrun_command(shared, 2, LoaderBehaviour().json()))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-3)
    name = "export/adapter/adapter_model.safetensors"
    one, two = (load_file(Path(run.out) / name) for run in (alone, shared))
    assert one.keys() == two.keys()
    for tensor, wanted in one.items():
        torch.testing.assert_close(two[tensor], wanted, rtol=0.05, atol=5e-3)
