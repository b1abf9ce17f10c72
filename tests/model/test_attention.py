"""Every kernel gives what plain softmax attention in float64 gives."""

import pytest
import torch

from model.attention import (
    LONG_SEQUENCE_SCORES,
    SequenceLengths,
    attention,
    packed_attention,
)
from model.config import LLMConfig
from model.hour_llava import qwen2_config
from model.llm_attention import llm_attention

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def draw(*shape, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()


def plain(q, k, v, causal=False, mask=None):
    """[B, T, H, D] in float64, keys repeated for every query head."""
    q, k, v = (x.detach().double().transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("kv_heads", [1, 2, 4], ids=["MQA", "GQA", "MHA"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_grouped_heads_share_their_keys(kv_heads, causal):
    q, k, v = draw(2, 9, 4, 8), draw(2, 9, kv_heads, 8, seed=1), draw(2, 9, kv_heads, 8, seed=2)
    torch.testing.assert_close(
        attention(q, k, v, causal=causal).double(), plain(q, k, v, causal), atol=1e-6, rtol=0
    )


def test_a_mask_hides_keys():
    q, k, v = draw(2, 5, 4, 8), draw(2, 7, 2, 8, seed=1), draw(2, 7, 2, 8, seed=2)
    mask = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(3)) < 0.7
    mask[..., 0] = True
    torch.testing.assert_close(
        attention(q, k, v, mask=mask).double(), plain(q, k, v, mask=mask), atol=1e-6, rtol=0
    )


def test_packed_sequences_attend_within_themselves():
    lengths, key_lengths = [3, 1, 6], [4, 9, 2]
    q, k, v = draw(10, 4, 8), draw(15, 2, 8, seed=1), draw(15, 2, 8, seed=2)
    packed = packed_attention(
        q, k, v, SequenceLengths.of(lengths, "cpu"), SequenceLengths.of(key_lengths, "cpu")
    )
    parts = zip(q.split(lengths), k.split(key_lengths), v.split(key_lengths), strict=True)
    alone = torch.cat([plain(a[None], b[None], c[None])[0] for a, b, c in parts])
    torch.testing.assert_close(packed.double(), alone, atol=1e-6, rtol=0)


def test_packs_that_do_not_pair_up_are_refused():
    q, k = draw(4, 2, 8), draw(4, 2, 8)
    with pytest.raises(ValueError, match="2 sequences of queries but 1 of keys"):
        packed_attention(q, k, k, SequenceLengths.of([2, 2], "cpu"), SequenceLengths.of([4], "cpu"))


def test_a_cache_gives_token_by_token_what_causal_attention_gives_at_once():
    q, k, v = draw(1, 4, 6, 8), draw(1, 2, 6, 8, seed=1), draw(1, 2, 6, 8, seed=2)
    whole, _ = llm_attention(None, q, k, v, None)
    steps = [
        llm_attention(None, q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1], None)[0]
        for t in range(6)
    ]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-6, rtol=0)


def test_several_tokens_on_a_cache_without_a_mask_are_refused():
    q, k = draw(1, 4, 2, 8), draw(1, 2, 6, 8)
    with pytest.raises(ValueError, match="need an attention mask"):
        llm_attention(None, q, k, k, None)


def test_the_language_model_gives_a_pack_what_transformers_own_attention_gives_each_sample():
    from transformers import Qwen2ForCausalLM

    config = qwen2_config(LLMConfig(32, 2, 4, 2, 64, vocab_size=50, rope_theta=1e6))
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    ids, lengths = torch.arange(24) % 50, [7, 12, 5]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    ours = model.model(
        ids[None],
        position_ids=positions,
        attention_mask={"full_attention": None},
        sequence_lengths=SequenceLengths.of(lengths, "cpu"),
        use_cache=False,
    ).last_hidden_state[0]
    model.set_attn_implementation("eager")
    theirs = torch.cat(
        [model.model(part[None]).last_hidden_state[0] for part in ids.split(lengths)]
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("lengths", [[700], [40, 300, 5, 90]], ids=["one", "many short"])
def test_gpu_kernels_give_the_same_output_and_gradients(dtype, causal, lengths):
    total = sum(lengths)
    q, k, v = (
        draw(total, heads, 64, dtype=dtype, device="cuda", seed=heads) for heads in (8, 2, 3)
    )
    v = draw(total, 2, 64, dtype=dtype, device="cuda", seed=9)
    weight = draw(total, 8, 64, device="cuda", seed=4).detach()
    packing = SequenceLengths.of(lengths, "cuda")
    output = packed_attention(q, k, v, packing, packing, causal=causal)
    (output.float() * weight).sum().backward()

    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    parts = zip(*(x.split(lengths) for x in exact), strict=True)
    expected = torch.cat([_differentiable(a, b, c, causal) for a, b, c in parts])
    (expected * weight).sum().backward()
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 2e-3}[dtype]
    torch.testing.assert_close(output.double(), expected, atol=tolerance, rtol=tolerance)
    for ours, theirs in zip((q, k, v), exact, strict=True):
        assert (
            ours.grad.double() - theirs.grad
        ).abs().max() <= 2 * tolerance * theirs.grad.abs().max()


def _differentiable(q, k, v, causal):
    groups = q.shape[1] // k.shape[1]
    q, k, v = (
        q.transpose(0, 1),
        *(x.transpose(0, 1).repeat_interleave(groups, dim=0) for x in (k, v)),
    )
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(
            torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1), -torch.inf
        )
    return (scores.softmax(-1) @ v).transpose(0, 1)


@needs_gpu
def test_long_and_short_sequences_take_different_kernels_with_the_same_result():
    side = int(LONG_SEQUENCE_SCORES**0.5) + 64
    lengths = [side, side]
    q, k, v = (
        draw(2 * side, heads, 64, dtype=torch.bfloat16, device="cuda", seed=heads)
        for heads in (4, 2, 1)
    )
    v = draw(2 * side, 2, 64, dtype=torch.bfloat16, device="cuda", seed=9)
    together = packed_attention(
        q,
        k,
        v,
        SequenceLengths.of(lengths, "cuda"),
        SequenceLengths.of(lengths, "cuda"),
        causal=True,
    )
    one = SequenceLengths.of([side], "cuda")
    alone = [
        packed_attention(*parts, one, one, causal=True)
        for parts in zip(*(x.split(side) for x in (q, k, v)), strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-2, rtol=2e-2)
