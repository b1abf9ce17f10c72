"""The tile grid, token map and token order of one image, against the published system's numbers."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from model.anyres import (
    arrange_map,
    base_positions,
    choose_grid,
    memory_order,
    paste_box,
    plan_anyres,
    query_order,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "anyres"
ROWS = json.loads((GOLDEN / "anyres.json").read_text())["rows"]
TENSORS_FOR = json.loads((GOLDEN / "anyres.json").read_text())["tensors_for"]
TILE, SIDE = 384, 27
# Text tokens before the image in the golden samples: they shift query positions, not memory
# positions.
PROMPT = 3


def plan(size):
    return plan_anyres(tuple(size), tile=TILE, side=SIDE)


def every_second(height, width):
    return torch.arange(height * width).reshape(height, width)[::2, ::2].flatten()


def drawn(count):
    return torch.rand(1, count)[0].argsort()[: -(-count // 4)].sort().values


def tile_row_col(layout):
    """[base | tiles] tokens whose three channels say where they come from, as the golden pictures
    do.
    """
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    cells = torch.stack([row.flatten(), column.flatten()], -1).float()
    return torch.stack(
        [torch.cat([torch.full((SIDE**2, 1), float(t)), cells], 1) for t in range(layout.tiles + 1)]
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "x".join(map(str, row["image_size"])))
def test_geometry_of_an_image_is_the_published_one(row):
    layout = plan(row["image_size"])
    assert [layout.columns, layout.rows] == row["grid_wh"]
    assert list(layout.resolution) == row["best_resolution"]
    assert layout.tiles + 1 == row["num_patches"]
    assert list(paste_box(layout.image_size, layout.resolution)) == row["paste_box_xyxy"]
    assert [layout.crop_height, layout.crop_width] == row["unpadded_hw"]
    assert [layout.height, layout.width] == row["final_hw"]
    assert layout.shrunk == row["resized"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "x".join(map(str, row["image_size"])))
def test_token_counts_and_positions_are_the_published_ones(row):
    layout = plan(row["image_size"])
    source, position = memory_order(layout)
    assert len(source) == len(position) == layout.memory_tokens == row["kv_tokens"]
    base = base_positions(layout).reshape(SIDE, SIDE)
    assert (base[:, 0] // layout.width).tolist() == row["base_position_rows"]
    assert base[0].tolist() == row["base_position_cols"]

    source, position = query_order(
        layout, every_second(SIDE, SIDE), every_second(layout.height, layout.width)
    )
    assert len(source) == row["q_tokens_uniform"]
    assert int((source == layout.newline_row).sum()) == row["q_newlines_uniform"]
    assert int(position.max()) + PROMPT == row["q_position_max"]

    torch.manual_seed(row["random_seed"])
    base_kept, map_kept = drawn(SIDE**2), drawn(layout.map_tokens)
    assert [len(base_kept), len(map_kept)] == row["q_random_patches"]
    source, _ = query_order(layout, base_kept, map_kept)
    assert len(source) == row["q_tokens_random"]
    assert int((source == layout.newline_row).sum()) == row["q_newlines_random"]


@pytest.mark.parametrize(
    "entry", TENSORS_FOR, ids=lambda entry: "x".join(map(str, entry["image_size"]))
)
def test_every_token_comes_from_the_published_place(entry):
    golden = {
        name.split(".", 1)[1]: tensor
        for name, tensor in load_file(GOLDEN / "anyres.safetensors").items()
        if name.startswith(f"{entry['index']}.")
    }
    layout = plan(entry["image_size"])
    tokens = tile_row_col(layout)
    rows = torch.cat(
        [tokens[0], arrange_map(tokens[1:], layout).flatten(0, 1), torch.full((1, 3), -1.0)]
    )

    source, position = memory_order(layout)
    torch.testing.assert_close(rows[source], golden["kv_tile_row_col"], atol=1e-4, rtol=0)
    assert torch.equal(position, golden["k_position_ids"].long())

    visual = ~golden["q_is_text"]
    source, position = query_order(
        layout, every_second(SIDE, SIDE), every_second(layout.height, layout.width)
    )
    torch.testing.assert_close(rows[source], golden["q_tile_row_col"][visual], atol=1e-4, rtol=0)
    assert torch.equal(position + PROMPT, golden["q_position_ids"][visual].long())
    assert torch.equal(source == layout.newline_row, golden["q_is_newline"][visual])

    row = next(row for row in ROWS if row["image_size"] == entry["image_size"])
    torch.manual_seed(row["random_seed"])
    source, position = query_order(layout, drawn(SIDE**2), drawn(layout.map_tokens))
    text = len(golden["random_q_position_ids"]) - len(source) - PROMPT
    assert torch.equal(position + PROMPT, golden["random_q_position_ids"][PROMPT:-text].long())
    assert torch.equal(source == layout.newline_row, golden["random_q_is_newline"][PROMPT:-text])


sizes = st.tuples(st.integers(1, 6000), st.integers(1, 6000))


@given(sizes)
@settings(max_examples=80)
def test_any_image_has_a_map_inside_its_grid_and_positions_inside_its_map(size):
    layout = plan(size)
    assert {layout.columns, layout.rows} <= set(range(1, 7))
    assert 0 <= layout.top <= layout.top + layout.crop_height <= layout.rows * SIDE
    assert 0 <= layout.left <= layout.left + layout.crop_width <= layout.columns * SIDE
    assert min(layout.height, layout.width) >= 1
    left, top, right, bottom = paste_box(size, layout.resolution)
    assert 0 <= left < right <= layout.resolution[0]
    assert 0 <= top < bottom <= layout.resolution[1]
    source, position = memory_order(layout)
    assert len(source) == layout.memory_tokens
    assert source[source != layout.newline_row].tolist() == list(range(layout.newline_row))
    assert sorted(position.unique().tolist()) == list(range(layout.newline_position + 1))


@given(sizes)
@settings(max_examples=80)
def test_no_grid_shows_more_of_an_image_or_wastes_less(size):
    columns, rows = choose_grid(size, tile=TILE)

    def shown(columns, rows):
        scale = min(columns * TILE / size[0], rows * TILE / size[1])
        return min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])

    best = shown(columns, rows)
    for other in [(c, r) for c in range(1, 7) for r in range(1, 7)]:
        assert shown(*other) < best or (
            shown(*other) == best and other[0] * other[1] >= columns * rows
        )


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match="0x7"):
        choose_grid((0, 7), tile=TILE)


def test_tokens_of_another_grid_are_refused_with_both_shapes():
    layout = plan((768, 384))
    with pytest.raises(ValueError, match=r"expected tokens of 2 tiles x 729, got \(3, 729\)"):
        arrange_map(torch.zeros(3, 729, 4), layout)


@pytest.mark.parametrize("side", [8, 27])
@pytest.mark.parametrize("size", [(12, 112), (112, 12), (3, 2000), (2000, 3), (1, 1)])
def test_a_thin_image_keeps_its_middle_and_has_no_negative_position(size, side):
    layout = plan_anyres(size, tile=14 * side, side=side)
    assert layout.height >= 1
    assert layout.width >= 1
    map_HWD = arrange_map(torch.zeros(layout.tiles, side**2, 2), layout)
    assert map_HWD.shape == (layout.height, layout.width, 2)
    _, positions = memory_order(layout)
    assert positions.min() == 0
    assert positions.max() == layout.newline_position
