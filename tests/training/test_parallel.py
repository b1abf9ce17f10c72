"""Blocks that are compiled, or compute their activations again, give the same numbers."""

import gc

import pytest
import torch
import torch._dynamo

from model.attention import SequenceLengths, packed_attention
from model.inputs import IGNORE_INDEX, SampleInputs, Visual
from model.vision_encoders import picture_cost
from tests.model import golden
from training.lockstep import keep_in_step
from training.parallel import compile_blocks, recompute


def test_recomputing_activations_changes_no_gradient():
    model, samples = golden.mixed()
    model(samples, forgetting="uniform").loss_sum.backward()
    plain = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    names = list(model.state_dict())
    model.zero_grad()
    recompute(model, "vision", "projector", "memaug", "llm")
    model(samples, forgetting="uniform").loss_sum.backward()
    assert list(model.state_dict()) == names
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, plain[name], rtol=0, atol=1e-6 * plain[name].abs().max().item()
        )


def packs_of_all_lengths():
    """Packs of one and of several samples, no two of the same length, and one that is empty."""
    generator = torch.Generator().manual_seed(0)

    def sample(frames, text):
        ids = torch.randint(1, 30, (text,), generator=generator)
        visuals = []
        if frames:
            ids[1] = -200
            visuals = [Visual("features", features=torch.rand(frames, 64, 32, generator=generator))]
        labels = torch.where(torch.arange(text) < text // 2, IGNORE_INDEX, ids)
        return SampleInputs(f"{frames} frames, {text} ids", ids, labels, visuals)

    shapes = [
        [(8, 9)],
        [(13, 12), (4, 5), (0, 7)],
        [(6, 8), (11, 10), (9, 5)],
        [],
        [(0, 11), (0, 3)],
        [(19, 6)],
    ]
    return [[sample(*shape) for shape in pack] for pack in shapes]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def compiled_twice_at_most():
    """A third compilation of any function is an error in it."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    return torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True)


def assert_close(left, right):
    """Equal up to rounding, by the largest gradient: some, as of keys' biases, are zero but for
    rounding.
    """
    assert left.keys() == right.keys()
    tolerance = 1e-5 * max((gradient.abs().max().item() for gradient in right.values()), default=0)
    for name, wanted in right.items():
        torch.testing.assert_close(left[name], wanted, rtol=0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_blocks_compute_the_same_and_are_compiled_twice_for_packs_of_all_lengths():
    def run(pack):
        loss = model(pack, forgetting="uniform").loss_sum
        return loss.detach(), gradients(model, loss)

    model, _ = golden.mixed()
    keep_in_step(model)
    packs = packs_of_all_lengths()
    eager = [run(pack) for pack in packs]
    compile_blocks(model)
    with compiled_twice_at_most():
        compiled = [run(pack) for pack in packs]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for (loss, gradient), (wanted_loss, wanted) in zip(compiled, eager, strict=True):
        torch.testing.assert_close(loss, wanted_loss, rtol=1e-5, atol=0)
        assert_close(gradient, wanted)


@pytest.mark.slow
def test_the_compiler_sees_no_fields_of_sequence_lengths():
    """TorchDynamo 2.11 guards on each field of a frozen dataclass, later versions do not."""
    lengths = SequenceLengths.of([3, 4], "cpu")
    assert not torch._dynamo.utils.is_frozen_dataclass(lengths)
    seen = []

    def names(guards):
        seen.extend(guard.name for guard in guards)
        return [True] * len(guards)

    @torch.compile(backend="eager", options={"guard_filter_fn": names})
    def block(x, queries):
        return packed_attention(x, x, x, queries, queries) + 1

    block(torch.rand(7, 2, 8), lengths)
    assert any("queries" in name for name in seen)
    assert not [name for name in seen if "lengths" in name or "offsets" in name]


@pytest.mark.slow
def test_compiled_vision_layers_are_compiled_twice_for_any_number_of_pictures():
    def run(count):
        pixels = torch.randint(
            0,
            256,
            (count, 3, 19, 19),
            dtype=torch.uint8,
            generator=torch.Generator().manual_seed(0),
        )
        return gradients(model.vision, model.vision(pixels).square().sum())

    model, _ = golden.mixed()
    counts = (4, 9, 1, 6)
    eager = [run(count) for count in counts]
    compile_blocks(model)
    with compiled_twice_at_most():
        compiled = [run(count) for count in counts]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for found, wanted in zip(compiled, eager, strict=True):
        assert_close(found, wanted)


@pytest.mark.slow
def test_a_compiled_vision_layer_keeps_what_the_memory_plan_counts():
    model, _ = golden.mixed()
    vision, layer = model.config.vision, model.vision.layers[0]
    compile_blocks(model)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.rand(2, 9, vision.hidden_size, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    counted = picture_cost(vision).kept_compiled[0] * 9 // vision.patches
    # Besides, attention's sums of each head.
    assert sum(kept.values()) == 2 * (counted + 9 * vision.num_heads) * x.element_size()


def test_without_a_compiler_a_recomputed_vision_layer_holds_nothing():
    model, _ = golden.mixed()
    compile_blocks(model)
    recompute(model, "vision")

    def tensors():
        return {id(found): found for found in gc.get_objects() if type(found) is torch.Tensor}

    x = torch.rand(2, 9, model.config.vision.hidden_size, requires_grad=True)
    before = tensors()
    torch.compiler.set_stance("force_eager")
    try:
        output = model.vision.layers[0](x)
        held = [found for number, found in tensors().items() if number not in before]
        assert [found.shape for found in held if found is not output] == []
        output.sum().backward()
    finally:
        torch.compiler.set_stance("default")
    assert float(x.grad.abs().max()) > 0


def test_a_part_that_the_model_does_not_have_cannot_be_recomputed():
    model, _ = golden.mixed()
    with pytest.raises(ValueError, match=r"cannot checkpoint \['head'\]; known parts: .*'llm'"):
        recompute(model, "head")
