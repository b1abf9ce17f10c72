"""Which tokens survive forgetting and where they stand: exact, against recorded indices."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import HourLlavaConfig, LLMConfig, VisionConfig
from model.forgetting import RULES, spread
from model.inputs import IGNORE_INDEX, IMAGE_TOKEN_INDEX, SampleInputs, Visual
from model.memory import build_memory, lay_out
from model.packing import plan_pack, plan_sample
from tests.model import golden

CONFIG = HourLlavaConfig(
    variant="test",
    vision=VisionConfig(
        image_size=18, patch_size=2, hidden_size=4, intermediate_size=4, num_layers=1, num_heads=1
    ),
    llm=LLMConfig(8, 1, 1, 1, 8, vocab_size=16),
)
REAL_GRID = dataclasses.replace(CONFIG, vision=VisionConfig(384, 14, 4, 4, 1, 1))


def video(frames, config=CONFIG):
    return Visual(
        "features",
        features=torch.zeros(frames, config.memory.frame_tokens, config.vision.hidden_size),
    )


def sample(ids, visuals, prompt=None, seed=0):
    ids = torch.tensor(ids)
    labels = (
        torch.where(ids < (prompt or 0), IGNORE_INDEX, ids)
        if prompt
        else torch.full_like(ids, IGNORE_INDEX)
    )
    return SampleInputs(
        "s", ids, labels.where(ids != IMAGE_TOKEN_INDEX, IGNORE_INDEX), visuals, seed
    )


@pytest.mark.parametrize("case", golden.names("forgetting"))
def test_frames_patches_and_positions_are_the_recorded_ones(case):
    recorded, data = golden.facts(f"forgetting/{case}"), golden.tensors(f"forgetting/{case}")
    before, after, answers = (
        recorded[k] for k in ("tokens_before_video", "question_tokens_after", "answer_tokens")
    )
    ids = torch.tensor([1] * before + [IMAGE_TOKEN_INDEX] + [1] * after + [2] * answers)
    labels = torch.where(ids == 2, 2, IGNORE_INDEX)
    inputs = SampleInputs(case, ids, labels, [video(recorded["T"])], recorded["seed"])
    plan = plan_sample(inputs, CONFIG, recorded["sampling"])

    frames = recorded["memory_frames"]
    source_frame = spread(frames, recorded["T"]) if recorded["T"] < frames else torch.arange(frames)
    assert torch.equal(source_frame.int(), data["kv_source_frame"])
    assert len(plan.layout.memory_positions_N) == recorded["kv_tokens"]
    assert torch.equal(plan.layout.memory_positions_N, torch.arange(recorded["kv_tokens"]))
    assert torch.equal(plan.layout.query_positions_Q.int(), data["q_position_base"])
    rows = plan.layout.query_rows_Q.view(-1, 17)
    assert torch.equal((rows[:, -1] // 65).int(), data["q_memory_frame"])
    assert torch.equal((rows[:, :-1] % 65).short(), data["q_patch"])
    assert torch.equal(source_frame[rows[:, -1] // 65].int(), data["q_source_frame"])

    visual = plan.query_sources_M >= len(ids)
    assert len(visual) == recorded["q_total_tokens"]
    assert torch.equal(plan.query_positions_M[visual].int(), data["video_q_position_ids"])
    assert torch.equal(plan.query_positions_M[~visual].int(), data["text_q_position_ids"])
    if "full_q_position_ids" in data:
        assert torch.equal(plan.query_positions_M.int(), data["full_q_position_ids"])


@pytest.mark.parametrize(
    "row",
    golden.facts("anyres/anyres")["rows"],
    ids=lambda row: "x".join(map(str, row["image_size"])),
)
def test_anyres_images_become_the_recorded_numbers_of_tokens(row):
    visual = Visual(
        "anyres", torch.empty(row["num_patches"], 0), image_size=tuple(row["image_size"])
    )
    layout = lay_out([visual], REAL_GRID, "uniform", None)
    assert len(layout.memory_positions_N) == row["kv_tokens"]
    assert len(layout.query_rows_Q) == row["q_tokens_uniform"]
    drawn = lay_out(
        [visual], REAL_GRID, "random", torch.Generator().manual_seed(row["random_seed"])
    )
    assert len(drawn.query_rows_Q) == row["q_tokens_random"]


@pytest.mark.parametrize(
    "entry",
    golden.facts("anyres/anyres")["tensors_for"],
    ids=lambda e: "x".join(map(str, e["image_size"])),
)
def test_anyres_positions_are_the_recorded_ones(entry):
    data = {
        k.partition(".")[2]: v
        for k, v in golden.tensors("anyres/anyres").items()
        if k.startswith(f"{entry['index']}.")
    }
    row = next(
        r for r in golden.facts("anyres/anyres")["rows"] if r["image_size"] == entry["image_size"]
    )
    visual = Visual(
        "anyres",
        torch.empty(row["num_patches"], 3, 384, 384, device="meta"),
        image_size=tuple(row["image_size"]),
    )
    ids = torch.tensor([1, 1, 1, IMAGE_TOKEN_INDEX, 1, 1, 2, 2])
    inputs = SampleInputs(
        "s", ids, torch.where(ids == 2, 2, IGNORE_INDEX), [visual], row["random_seed"]
    )
    plan = plan_sample(inputs, REAL_GRID, "uniform")
    assert torch.equal(plan.layout.memory_positions_N.int(), data["k_position_ids"])
    assert torch.equal(plan.query_positions_M.int(), data["q_position_ids"])
    assert torch.equal(plan.query_sources_M < len(ids), data["q_is_text"])
    drawn = plan_sample(inputs, REAL_GRID, "random")
    assert torch.equal(drawn.query_positions_M.int(), data["random_q_position_ids"])


def test_queries_are_rows_of_the_memory_that_stand_where_their_positions_say():
    """Tokens that carry their own (picture, row, column) are found again through the layout."""
    size, pictures = (40, 30), 1 + 6  # 3 x 2 tiles of 18 pixels
    visual = Visual("anyres", torch.empty(pictures, 3, 18, 18, device="meta"), image_size=size)
    layout = lay_out([visual], CONFIG, "random", torch.Generator().manual_seed(1))
    side = CONFIG.vision.patches_per_side
    tokens = torch.stack(
        torch.meshgrid(
            torch.arange(pictures), torch.arange(side), torch.arange(side), indexing="ij"
        ),
        dim=-1,
    ).float()
    memory = build_memory(visual, tokens.flatten(1, 2), torch.full((3,), -1.0), CONFIG)
    query = memory[layout.query_rows_Q]
    newline = (query == -1).all(dim=1)
    assert newline.any()
    assert torch.equal(memory[layout.query_rows_Q[newline]], query[newline])
    assert torch.equal(layout.memory_positions_N[layout.query_rows_Q], layout.query_positions_Q)


@given(frames=st.integers(1, 700), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=40)
def test_random_forgetting_keeps_the_frames_of_uniform_and_as_many_tokens(frames, seed):
    uniform = lay_out([video(frames)], CONFIG, "uniform", None).query_rows_Q.view(-1, 17)
    drawn = lay_out(
        [video(frames)], CONFIG, "random", torch.Generator().manual_seed(seed)
    ).query_rows_Q.view(-1, 17)
    assert torch.equal(drawn[:, -1], uniform[:, -1])
    assert (drawn.diff(dim=1) > 0).all()
    assert len(drawn) == min(512, max(frames, 128) // 4)
    assert int(drawn[-1, -1]) == max(frames, 128) * 65 - 1  # the last frame is always kept


def test_the_same_seed_forgets_the_same_whatever_the_global_generator():
    first = plan_sample(sample([1, IMAGE_TOKEN_INDEX, 1], [video(200)], seed=7), CONFIG, "random")
    torch.manual_seed(99)
    again = plan_sample(sample([1, IMAGE_TOKEN_INDEX, 1], [video(200)], seed=7), CONFIG, "random")
    other = plan_sample(sample([1, IMAGE_TOKEN_INDEX, 1], [video(200)], seed=8), CONFIG, "random")
    assert torch.equal(first.layout.query_rows_Q, again.layout.query_rows_Q)
    assert not torch.equal(first.layout.query_rows_Q, other.layout.query_rows_Q)


def test_a_pack_is_its_samples_one_after_another():
    samples = [
        sample([1, IMAGE_TOKEN_INDEX, 3, 4], [video(130)], prompt=4),
        sample([5, 6, 7], []),
        sample(
            [1, IMAGE_TOKEN_INDEX, 2, IMAGE_TOKEN_INDEX],
            [Visual("images", torch.zeros(2, 3, 18, 18))],
        ),
    ]
    plans = [plan_sample(s, CONFIG, "uniform") for s in samples]
    pack = plan_pack(samples, CONFIG, "uniform")
    assert pack.lengths == tuple(plan.length for plan in plans)
    assert torch.equal(pack.labels_S, torch.cat([plan.labels_S for plan in plans]))
    assert pack.positions_S.tolist() == [i for plan in plans for i in range(plan.length)]
    queries = [plan for plan in plans if plan.layout]
    assert torch.equal(
        pack.query_positions_M, torch.cat([plan.query_positions_M for plan in queries])
    )
    visual = sum(len(plan.layout.query_rows_Q) for plan in queries)
    used = pack.sources_S[pack.sources_S >= len(pack.ids_L)] - len(pack.ids_L)
    assert used.tolist() == list(range(visual))
    assert len(pack.memory_rows_Q) == len(pack.visual_rows_Q) == visual
    assert int(pack.memory_rows_Q.max()) < sum(pack.memory_lengths) == len(pack.memory_positions_N)


def test_a_sample_never_predicts_the_next_ones_first_token():
    first = SampleInputs("a", torch.tensor([1, 2]), torch.tensor([1, 2]))
    second = SampleInputs("b", torch.tensor([3, 4]), torch.tensor([3, IGNORE_INDEX]))
    rows, targets = plan_pack([first, second], CONFIG, "uniform").targets
    assert rows.tolist() == [0]
    assert targets.tolist() == [2]


BAD = {
    "more placeholders than visuals": (
        sample([1, IMAGE_TOKEN_INDEX, IMAGE_TOKEN_INDEX], [video(3)]),
        "2 <image> .* 1 visual",
    ),
    "more visuals than placeholders": (sample([1, 1], [video(3)]), "0 <image> .* 1 visual"),
    "features of another variant": (
        sample([IMAGE_TOKEN_INDEX], [Visual("features", features=torch.zeros(3, 64, 5))]),
        r"features of shape \[3, 64, 5\]; variant test takes",
    ),
    "pixels of another size": (
        sample([IMAGE_TOKEN_INDEX], [Visual("frames", torch.zeros(3, 3, 20, 20))]),
        r"frames of shape \[3, 3, 20, 20\]",
    ),
    "no frames": (
        sample([IMAGE_TOKEN_INDEX], [Visual("frames", torch.zeros(0, 3, 18, 18))]),
        "at least 1",
    ),
    "ids of another vocabulary": (sample([1, 16], []), "tokenised for another variant"),
    "a sequence that is too long": (sample([1] * 40000, []), "40000 tokens .* more than the 32768"),
    "tiles that don't fit the image": (
        sample(
            [IMAGE_TOKEN_INDEX], [Visual("anyres", torch.zeros(3, 3, 18, 18), image_size=(18, 18))]
        ),
        "must hold 2 pictures, not 3",
    ),
    "random forgetting without a seed": (
        sample([IMAGE_TOKEN_INDEX], [video(3)], seed=None),
        "needs a seed",
    ),
    "a video beside an image": (
        sample([IMAGE_TOKEN_INDEX] * 2, [video(3), Visual("images", torch.zeros(1, 3, 18, 18))]),
        "must all be of kind 'images'",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=lambda case: case)
def test_bad_input_is_refused_by_sample_and_reason(case):
    inputs, message = BAD[case]
    with pytest.raises(ValueError, match=f"sample 's': .*{message}"):
        plan_sample(inputs, CONFIG, "random")


def test_an_unknown_rule_of_forgetting_is_named_with_the_known_ones():
    assert set(RULES) == {"random", "uniform"}
    with pytest.raises(ValueError, match="unknown forgetting 'lru'; known: random, uniform"):
        lay_out([video(3)], CONFIG, "lru", None)
