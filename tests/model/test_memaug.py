"""MemAug alone, against numbers recorded from the published implementation."""

import pytest
import torch

from model.attention import SequenceLengths
from model.config import LLMConfig
from model.memaug import MemAug
from model.weights.names import published_name
from tests.model import golden

CASES = golden.names("memaug")


def build(case):
    recorded, data = golden.facts(f"memaug/{case}"), golden.tensors(f"memaug/{case}")
    config = recorded["config"]
    llm = LLMConfig(
        hidden_size=config["hidden_size"],
        num_layers=1,
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        intermediate_size=1,
        vocab_size=1,
        rope_theta=config["rope_theta"],
    )
    memaug = MemAug(llm, config["memaug_depth"])
    memaug.load_state_dict({name: data[f"w.{short(name)}"] for name in memaug.state_dict()})
    return memaug, data


def short(name):
    return published_name(f"memaug.{name}").removeprefix("model.vision_resampler.")


def run(memaug, x_q, x_kv, q_positions, k_positions):
    lengths = SequenceLengths.of([len(x_q)], "cpu"), SequenceLengths.of([len(x_kv)], "cpu")
    return memaug(x_q, x_kv, q_positions, k_positions, *lengths)


@pytest.mark.parametrize("case", CASES)
def test_output_is_the_recorded_one(case):
    memaug, data = build(case)
    output = run(memaug, data["x_q"], data["x_kv"], data["q_position_ids"], data["k_position_ids"])
    torch.testing.assert_close(output, data["output"], atol=5e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_every_step_inside_the_first_block_is_the_recorded_one(case):
    memaug, data = build(case)
    block, seen = memaug.blocks[0], {}
    watched = {
        "self_attn": block.self_attention,
        "norm1": block.self_norm,
        "cross_attn": block.cross_attention,
        "norm2": block.cross_norm,
        "out": block,
    }
    for name, module in watched.items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, output)
        )
    run(memaug, data["x_q"], data["x_kv"], data["q_position_ids"], data["k_position_ids"])
    for name, value in seen.items():
        torch.testing.assert_close(
            value,
            data[f"mid.block0_{name}"],
            atol=5e-5,
            rtol=0,
            msg=lambda m, name=name: f"{name}: {m}",
        )


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_recorded_ones(case):
    memaug, data = build(case)
    x_q, x_kv = data["x_q"].clone().requires_grad_(), data["x_kv"].clone().requires_grad_()
    (
        run(memaug, x_q, x_kv, data["q_position_ids"], data["k_position_ids"]) * data["fixed"]
    ).sum().backward()
    ours = {f"w.{short(name)}": parameter.grad for name, parameter in memaug.named_parameters()}
    ours |= {"x_q": x_q.grad, "x_kv": x_kv.grad}
    recorded = {
        name.removeprefix("grad."): value
        for name, value in data.items()
        if name.startswith("grad.")
    }
    assert len(recorded) >= 10
    for name, value in recorded.items():
        difference = (ours[name] - value).abs().max() / value.abs().max()
        assert difference < 1e-4, f"{name}: {difference:.1e}"


def test_packed_samples_do_not_see_each_other():
    memaug, data = build("memaug_gqa")
    q, kv, q_at, kv_at = (data[key] for key in ("x_q", "x_kv", "q_position_ids", "k_position_ids"))
    cuts = [(slice(0, 20), slice(0, 60)), (slice(20, 41), slice(60, 103))]
    alone = torch.cat([run(memaug, q[a], kv[b], q_at[a], kv_at[b]) for a, b in cuts])
    packed = memaug(
        q, kv, q_at, kv_at, SequenceLengths.of([20, 21], "cpu"), SequenceLengths.of([60, 43], "cpu")
    )
    torch.testing.assert_close(packed, alone, atol=1e-6, rtol=0)
