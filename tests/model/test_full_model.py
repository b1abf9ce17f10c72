"""The whole model, against embeddings, positions, logits, loss and gradients recorded from the
published system.

How cases are compared. Ours packs samples instead of padding them, so every comparison is over the
rows that are not padding; those must match in full. Where the published system counts positions
from left padding or is handed `position_ids`, ours counts 0 .. L-1 in each sample: the same model
output, as rotary attention only sees differences. With left padding its loss also has a padding row
predict each shorter sample's first token; that row is left out and the loss is taken from the
recorded logits. Where it cuts sequences that are too long, ours refuses them, so nothing but the
samples that fit is compared. Its text samples carry a dummy image, whose MemAug call ours does not
make.
"""

import pytest
import torch
import torch.nn.functional as F

from model import packing
from model.inputs import IGNORE_INDEX, SampleInputs, Visual
from tests.model import golden

CASES = [name for name in golden.names("full_model", "v*") if not name.endswith(".weights")]


class Case:
    """A recorded batch, and what ours makes of it."""

    def __init__(self, name, monkeypatch):
        self.data, self.facts = (
            golden.tensors(f"full_model/{name}"),
            golden.facts(f"full_model/{name}"),
        )
        self.model, self.samples = golden.model_of(name), golden.samples_of(name, seed=0)
        self.mask = self.data["out.attention_mask"]
        self.forgetting = self.facts["config_overrides"].get("spatial_sampling_type", "uniform")
        # The recording drew all samples' random numbers from one generator; ours has one for each
        # sample.
        self.generator = torch.Generator()
        monkeypatch.setattr(packing, "forgetting_generator", lambda sample: self.generator)
        self.restart()

    def restart(self):
        self.generator.manual_seed(self.facts["rng_seed"] or 0)

    def prepare(self):
        self.restart()
        return self.model.prepare(self.samples, forgetting=self.forgetting)

    def forward(self):
        self.restart()
        return self.model(self.samples, forgetting=self.forgetting)

    @property
    def complete(self):
        """Whether the published loss is over the same rows as ours."""
        return self.facts["padding_side"] == "right"

    def loss(self):
        """Mean loss over supervised rows that are not padding."""
        if self.complete:
            return self.data["loss"][0]
        rows, logits = self.data["logits_rows"].long(), self.data["logits"]
        batch, at = rows.T
        last = at == self.mask.shape[1] - 1
        target = self.data["out.labels"][batch, (at + 1) % self.mask.shape[1]]
        used = self.mask[batch, at] & ~last & (target != IGNORE_INDEX)
        return F.cross_entropy(logits[used], target[used])


def truncated(name):
    return (
        golden.facts(f"full_model/{name}")["config_overrides"].get("tokenizer_model_max_length")
        is not None
    )


@pytest.fixture(params=[name for name in CASES if not truncated(name)])
def case(request, monkeypatch):
    return Case(request.param, monkeypatch)


def test_embeddings_labels_lengths_and_positions_are_the_recorded_ones(case):
    prepared = case.prepare()
    assert list(prepared.plan.lengths) == case.mask.sum(dim=1).tolist()
    assert torch.equal(prepared.plan.labels_S, case.data["out.labels"][case.mask])
    torch.testing.assert_close(
        prepared.embeds_SD, case.data["out.inputs_embeds"][case.mask], atol=2e-4, rtol=0
    )


def test_memaug_sees_the_recorded_tokens_at_the_recorded_positions(case):
    seen = {}

    def note(_module, inputs, output):
        x_q, x_kv, q_positions, k_positions, queries, memories = inputs
        seen["calls"] = zip(
            *(t.split(queries.lengths) for t in (x_q, q_positions, output)),
            *(t.split(memories.lengths) for t in (x_kv, k_positions)),
            strict=True,
        )

    case.model.memaug.register_forward_hook(note)
    case.prepare()
    recorded = [number for number, sample in enumerate(case.samples) if sample.visuals]
    for number, (x_q, q_positions, output, x_kv, k_positions) in zip(
        recorded, seen.get("calls", ()), strict=True
    ):
        data = {k: v for k, v in case.data.items() if k.startswith(f"memaug_{number}.")}
        assert torch.equal(q_positions.int(), data[f"memaug_{number}.q_position_ids"])
        assert torch.equal(k_positions.int(), data[f"memaug_{number}.k_position_ids"])
        for name, tensor in (("x_q", x_q), ("x_kv", x_kv), ("out", output)):
            torch.testing.assert_close(
                tensor.mean(-1), data[f"memaug_{number}.{name}_rowmean"], atol=5e-5, rtol=0
            )


def test_logits_and_loss_are_the_recorded_ones(case):
    with torch.no_grad():
        logits = case.model.llm.lm_head(case.model.run_llm(case.prepare()))
        output = case.forward()
    batch, at = case.data["logits_rows"].long().T
    valid = case.mask[batch, at]
    assert valid.all()
    row_of = torch.zeros_like(case.mask, dtype=torch.int64)
    row_of[case.mask] = torch.arange(int(case.mask.sum()))
    torch.testing.assert_close(logits[row_of[batch, at]], case.data["logits"], atol=5e-4, rtol=0)
    torch.testing.assert_close(output.loss_sum / output.supervised, case.loss(), atol=2e-5, rtol=0)


def test_gradients_are_the_recorded_ones(case):
    if not case.complete:
        pytest.skip("the recorded loss has rows of padding in it")
    output = case.forward()
    (output.loss_sum / output.supervised).backward()
    ours = {
        golden.published_name(name): parameter.grad
        for name, parameter in case.model.named_parameters()
    }
    for name, norm in case.facts["grad_norms"].items():
        if name not in ours or "k_proj.bias" in name or ".Wkv.bias" in name or "Wqkv.bias" in name:
            # The carried norm; and sums whose exact value is zero in part, so that only noise is
            # recorded.
            continue
        value = 0.0 if ours[name] is None else ours[name].norm().item()
        assert value == pytest.approx(norm or 0.0, rel=1e-3, abs=1e-6), name
    for name, recorded in case.data.items():
        kind, _, name = name.partition(".")
        if kind not in ("grad", "grad_rownorm"):
            continue
        value = torch.zeros_like(recorded) if ours[name] is None else ours[name]
        if kind == "grad_rownorm":
            value = value.norm(dim=-1)
        assert (value - recorded).abs().max() <= 1e-3 * recorded.abs().max(), name


@pytest.mark.parametrize("name", [name for name in CASES if truncated(name)])
def test_what_the_published_system_cuts_is_refused(name):
    model = golden.model_of(name)
    samples = golden.samples_of(name)
    kept = golden.facts(f"full_model/{name}")["valid_lengths"]
    for sample, length in zip(samples, kept, strict=True):
        if length < model.config.max_length:
            assert model.prepare([sample], forgetting="uniform").plan.lengths == (length,)
        else:
            with pytest.raises(
                ValueError,
                match=f"sample '{sample.id}': .* more than the {model.config.max_length}",
            ):
                model.prepare([sample], forgetting="uniform")


def test_a_pack_gives_each_sample_what_it_gets_alone():
    model, samples = golden.mixed()
    packed = model.run_llm(model.prepare(samples, forgetting="random"))
    alone = torch.cat(
        [model.run_llm(model.prepare([sample], forgetting="random")) for sample in samples]
    )
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_long_videos_train_the_vision_encoder_only_if_asked():
    import dataclasses

    model, _ = golden.mixed()
    ids = torch.tensor([1, -200, 2, 3])
    labels = torch.tensor([-100, -100, -100, 3])
    pixels = torch.randint(
        0, 256, (5, 3, 19, 19), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    sample = SampleInputs("v", ids, labels, [Visual("frames", pixels)])
    losses = []
    for limit, trained in ((5, True), (4, False), (None, True)):
        model.config = dataclasses.replace(model.config, vision_gradient_frames=limit)
        model.zero_grad()
        output = model([sample], forgetting="uniform")
        output.loss_sum.backward()
        losses.append(output.loss_sum.item())
        assert (model.vision.patch_embedding.weight.grad is not None) == trained
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_features_of_a_video_give_what_its_frames_give():
    model, _ = golden.mixed()
    pixels = torch.randint(
        0, 256, (6, 3, 19, 19), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    ids, labels = torch.tensor([1, -200, 2, 3]), torch.tensor([-100, -100, -100, 3])
    features = model.encode_frames(pixels)
    assert features.shape == (6, 64, 32)
    by_frames = model(
        [SampleInputs("f", ids, labels, [Visual("frames", pixels)])], forgetting="uniform"
    )
    by_features = model(
        [SampleInputs("f", ids, labels, [Visual("features", features=features)])],
        forgetting="uniform",
    )
    torch.testing.assert_close(by_frames.loss_sum, by_features.loss_sum, atol=1e-5, rtol=0)
