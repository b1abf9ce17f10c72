"""Where MemAug looked, against a plain softmax over the whole memory."""

import pytest
import torch

from model import memory_attention as subject
from model.config import PRESETS
from model.hour_llava import HourLlava
from model.initialise import initialise
from model.inputs import SampleInputs, Visual
from model.memory_attention import memory_attention
from model.options import AskOptions

CONFIG = PRESETS["tiny"]
FRAME = CONFIG.memory.frame_tokens + 1


@pytest.fixture(scope="module")
def model():
    model = HourLlava(CONFIG).eval()
    initialise(model.named_parameters(), seed="attention", std=0.2)
    return model


@pytest.fixture(scope="module")
def sample():
    ids = torch.tensor([5, -200, 7, 8, 9])
    labels = torch.full_like(ids, -100)
    drawn = torch.Generator().manual_seed(0)
    features = torch.randn(37, FRAME - 1, CONFIG.vision.hidden_size, generator=drawn)
    return SampleInputs("film", ids, labels, [Visual("features", features=features)])


def rotated(x_THE, cos, sin):
    """As complex numbers, where the model turns pairs by hand."""
    pairs = cos.shape[-1]
    turned = torch.complex(x_THE[..., :pairs], x_THE[..., pairs : 2 * pairs]) * torch.complex(
        cos, sin
    ).unsqueeze(1)
    return torch.cat([turned.real, turned.imag, x_THE[..., 2 * pairs :]], dim=-1)


def whole_matrices(model, sample, **options):
    """Each block's probabilities [heads, queries, memory tokens], all at once. That they are the
    model's is shown by its outputs: these times the values are what the block gave.
    """
    calls = []
    hooks = [
        block.cross_attention.register_forward_hook(lambda *call: calls.append(call))
        for block in model.memaug.blocks
    ]
    with torch.no_grad():
        plan = model.prepare([sample], forgetting="uniform", **options).plan
        for hook in hooks:
            hook.remove()
        found = []
        for layer, (x, memory, at_query, at_memory, *_), output in calls:
            q = rotated(layer.q(x).unflatten(-1, (-1, layer.head_dim)), *at_query)
            k, v = layer.kv(memory).unflatten(-1, (-1, layer.head_dim)).chunk(2, dim=1)
            groups = q.shape[1] // k.shape[1]
            k = rotated(k, *at_memory).repeat_interleave(groups, dim=1)
            v = v.repeat_interleave(groups, dim=1)
            scores = q.transpose(0, 1) @ k.permute(1, 2, 0) / layer.head_dim**0.5
            probabilities = scores.softmax(-1)
            mixed = (probabilities @ v.transpose(0, 1)).transpose(0, 1).flatten(1)
            torch.testing.assert_close(layer.out(mixed), output, atol=1e-4, rtol=1e-4)
            found.append(probabilities)
    return plan, found


@pytest.mark.parametrize("queries", ["visual", "prompt"])
@pytest.mark.parametrize("blocks", [None, (1,)])
def test_the_shares_are_those_of_the_whole_softmax(model, sample, queries, blocks, monkeypatch):
    monkeypatch.setattr(subject, "QUERY_CHUNK", 7)  # neither divides what it cuts
    monkeypatch.setattr(subject, "FRAME_CHUNK", 5)
    plan, matrices = whole_matrices(model, sample)
    visual = set(plan.visual_rows_Q.tolist())
    every = range(len(plan.query_sources_M))
    chosen = [row for row in every if (row in visual) == (queries == "visual")]
    used = matrices if blocks is None else matrices[1:]
    expected = torch.stack([matrix[:, chosen].mean((0, 1)) for matrix in used]).mean(0)
    found = memory_attention(model, sample, queries=queries, most=None, blocks=blocks)
    assert found.shape == (37,)
    torch.testing.assert_close(found, expected.unflatten(0, (37, FRAME)).sum(-1))
    assert found.max() > 1.5 / 37  # it is not the even share that nothing would give


def test_a_kept_memory_gives_the_same_and_a_selection_of_queries_nearly_so(model, sample):
    with torch.no_grad():
        memory = model.remember(sample.visuals[0])
    whole = memory_attention(model, sample, most=None)
    torch.testing.assert_close(memory_attention(model, sample, memory, most=None), whole)
    few = memory_attention(model, sample, memory, most=20)
    assert float(few.sum()) == pytest.approx(1)
    assert torch.corrcoef(torch.stack([few, whole]))[0, 1] > 0.8


def test_nothing_stays_attached_to_the_model(model, sample):
    memory_attention(model, sample)
    assert not any(block.cross_attention._forward_pre_hooks for block in model.memaug.blocks)


def test_what_has_no_frames_is_refused(model, sample):
    text = SampleInputs("words", torch.tensor([5, 6]), torch.tensor([-100, -100]), [])
    with pytest.raises(ValueError, match="'words': attention over frames needs one video"):
        memory_attention(model, text)
    with pytest.raises(ValueError, match="blocks 0 to 1, not \\[7\\]"):
        memory_attention(model, sample, blocks=(7,))


def test_of_a_share_of_the_memory_the_frames_that_are_looked_up_have_a_place(model, sample):
    asked = {"memory_scale": 0.5, "kept_frames": 5}
    plan, matrices = whole_matrices(model, sample, **asked)
    blocks = [matrix[:, plan.visual_rows_Q].mean((0, 1)) for matrix in matrices]
    found = memory_attention(model, sample, most=None, options=AskOptions(**asked))
    assert len(found) == 19
    torch.testing.assert_close(found, torch.stack(blocks).mean(0).view(19, -1).sum(-1))
    with pytest.raises(ValueError, match="looks no whole frames up"):
        memory_attention(model, sample, options=AskOptions(memory_scale=0))
