"""Where the pixels and tokens of one image go: tile grid, token map, memory and query order. Pure
geometry.

An image is seen twice: squashed into one square (the *base*), and cut into the tiles of a grid that
keeps its aspect ratio (the *map*). The image is padded to fill the grid; the padding is cut off
again from the token map, and a map much larger than `max_squares` squares of tokens is shrunk.

Token order everywhere: base tokens, then the map row by row with one newline token after each row.
Orders are given as indices into the rows of `[base tokens | map tokens | newline]`, so that memory
and query are one `index_select` each.

Sizes are (width, height) in pixels as PIL has them; maps are (height, width) in tokens as tensors
have them. Shape suffixes: T tiles, P tokens of a tile (side * side), H W map, D channels, N memory,
Q query, K kept tokens.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SHRINK_ABOVE = (
    1.1  # published constant: maps up to 10 % over the limit (in side length) are left as they are
)


@dataclass(frozen=True, slots=True)
class AnyresLayout:
    """Everything that follows from an image's size; two images of one size share a layout.

    `columns` x `rows` tiles of `tile` pixels and `side` x `side` tokens; the rectangle of the full
    token map that holds the picture (`top`, `left`, `crop_height`, `crop_width`); the final map
    (`height`, `width`), smaller if shrunk.
    """

    image_size: tuple[int, int]
    tile: int
    side: int
    columns: int
    rows: int
    top: int
    left: int
    crop_height: int
    crop_width: int
    height: int
    width: int

    @property
    def resolution(self) -> tuple[int, int]:
        """(width, height) in pixels of the padded picture that is cut into tiles."""
        return self.columns * self.tile, self.rows * self.tile

    @property
    def tiles(self) -> int:
        return self.columns * self.rows

    @property
    def shrunk(self) -> bool:
        return (self.height, self.width) != (self.crop_height, self.crop_width)

    @property
    def base_tokens(self) -> int:
        return self.side * self.side

    @property
    def map_tokens(self) -> int:
        return self.height * self.width

    @property
    def memory_tokens(self) -> int:
        return self.base_tokens + self.map_tokens + self.height

    @property
    def newline_row(self) -> int:
        """Index of the newline in `[base tokens | map tokens | newline]`."""
        return self.base_tokens + self.map_tokens

    @property
    def newline_position(self) -> int:
        """The one position that all newlines of the image share: just past the map."""
        return self.map_tokens


def plan_anyres(
    image_size: tuple[int, int], *, tile: int, side: int, grid: int = 6, max_squares: int = 9
) -> AnyresLayout:
    """Lay out an image of `image_size` (width, height) on the best grid of up to `grid` x `grid`
    tiles.

    `tile` is the encoder's picture size in pixels, `side` its tokens per side. `max_squares` bounds
    the map: when its side length exceeds that of `max_squares` squares by more than a tenth it is
    shrunk (`anyres_max_9` is 9).
    """
    columns, rows = choose_grid(image_size, tile=tile, grid=grid)
    full_height, full_width = rows * side, columns * side
    crop_height, crop_width = _without_padding(image_size, full_height, full_width)
    height, width = crop_height, crop_width
    times = math.sqrt(height * width / (max_squares * side**2))
    if times > SHRINK_ABOVE:
        height, width = max(1, int(height // times)), max(1, int(width // times))
    return AnyresLayout(
        image_size=image_size,
        tile=tile,
        side=side,
        columns=columns,
        rows=rows,
        top=(full_height - crop_height) // 2,
        left=(full_width - crop_width) // 2,
        crop_height=crop_height,
        crop_width=crop_width,
        height=height,
        width=width,
    )


def choose_grid(image_size: tuple[int, int], *, tile: int, grid: int = 6) -> tuple[int, int]:
    """(columns, rows) that show the most of the image's own pixels, and among those waste the
    fewest of the grid's.
    """
    width, height = image_size
    if width < 1 or height < 1:
        raise ValueError(f"an image needs at least one pixel a side, this one is {width}x{height}")

    def score(columns: int, rows: int) -> tuple[int, int]:
        scale = min(columns * tile / width, rows * tile / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        wasted = columns * tile * rows * tile - shown
        return shown, -wasted

    return max(
        _grids(grid), key=lambda candidate: score(*candidate)
    )  # max keeps the first of equals


def _grids(grid: int) -> Iterator[tuple[int, int]]:
    return ((columns, rows) for columns in range(1, grid + 1) for rows in range(1, grid + 1))


def paste_box(
    image_size: tuple[int, int], resolution: tuple[int, int]
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the image, resized to fit, in the middle of a padded picture of
    `resolution`.
    """
    (width, height), (target_width, target_height) = image_size, resolution
    scale_width, scale_height = target_width / width, target_height / height
    if scale_width < scale_height:
        fit_width, fit_height = target_width, min(math.ceil(height * scale_width), target_height)
    else:
        fit_width, fit_height = min(math.ceil(width * scale_height), target_width), target_height
    left, top = (target_width - fit_width) // 2, (target_height - fit_height) // 2
    return left, top, left + fit_width, top + fit_height


def _without_padding(
    image_size: tuple[int, int], full_height: int, full_width: int
) -> tuple[int, int]:
    """(height, width) of the map once the padding is cut off both sides alike.

    The picture's extent is truncated, not rounded, and what is left is symmetric, so that an odd
    margin leaves one more row or column than the picture fills: released weights were trained so.
    """
    width, height = image_size
    if width / height > full_width / full_height:
        margin = _margin(full_height, int(height * (full_width / width)))
        return full_height - 2 * margin, full_width
    margin = _margin(full_width, int(width * (full_height / height)))
    return full_height, full_width - 2 * margin


def _margin(full: int, filled: int) -> int:
    """Rows or columns to cut off each side. Of a picture thinner than one of them the middle stays,
    one or two: the published system leaves none where their number is even, and crashes.
    """
    return (full - max(1, filled)) // 2


def arrange_map(tiles_TPD: Tensor, layout: AnyresLayout) -> Tensor:
    """Tokens of the tiles (row by row, base excluded), [T, P, D] -> the image's map [height, width,
    D].
    """
    if tiles_TPD.shape[:2] != (layout.tiles, layout.base_tokens):
        raise ValueError(
            f"image of {layout.image_size}: expected tokens of {layout.tiles} tiles x "
            f"{layout.base_tokens}, got {tuple(tiles_TPD.shape[:2])}"
        )
    rows, columns, side, channels = layout.rows, layout.columns, layout.side, tiles_TPD.shape[-1]
    full_HWD = tiles_TPD.reshape(rows, columns, side, side, channels).transpose(1, 2)
    full_HWD = full_HWD.reshape(rows * side, columns * side, channels)
    map_HWD = full_HWD[
        layout.top : layout.top + layout.crop_height, layout.left : layout.left + layout.crop_width
    ]
    if not layout.shrunk:
        return map_HWD
    map_1DHW = map_HWD.permute(2, 0, 1)[None]
    map_1DHW = F.interpolate(
        map_1DHW, (layout.height, layout.width), mode="bilinear", align_corners=False
    )
    return map_1DHW[0].permute(1, 2, 0)


def base_positions(layout: AnyresLayout) -> Tensor:
    """Positions [base_tokens] of the base: each token takes that of the nearest map cell."""
    rows = torch.linspace(0, layout.height - 1, layout.side).round().long()
    columns = torch.linspace(0, layout.width - 1, layout.side).round().long()
    return (rows[:, None] * layout.width + columns[None, :]).flatten()


def memory_order(layout: AnyresLayout) -> tuple[Tensor, Tensor]:
    """Row of `[base | map | newline]` of each memory token, and its position: two int64 [N]."""
    return query_order(layout, torch.arange(layout.base_tokens), torch.arange(layout.map_tokens))


def query_order(
    layout: AnyresLayout, base_kept_K: Tensor, map_kept_K: Tensor
) -> tuple[Tensor, Tensor]:
    """Which row of `[base | map | newline]` each query token is, and its position: two int64 [Q].

    `base_kept_K` and `map_kept_K` are ascending int64 indices into the base and the map. Only map
    rows that kept a token are closed by a newline.
    """
    device = map_kept_K.device
    row = map_kept_K // layout.width
    ends_row = torch.ones_like(row, dtype=torch.bool)
    ends_row[:-1] = row[1:] != row[:-1]
    place = torch.arange(len(row), device=device) + ends_row.cumsum(0) - ends_row.long()

    total = len(row) + int(ends_row.sum())
    map_source = torch.full((total,), layout.newline_row, dtype=torch.long, device=device)
    map_position = torch.full((total,), layout.newline_position, dtype=torch.long, device=device)
    map_source[place] = map_kept_K + layout.base_tokens
    map_position[place] = map_kept_K

    source_Q = torch.cat([base_kept_K, map_source])
    position_Q = torch.cat([base_positions(layout).to(device)[base_kept_K], map_position])
    return source_Q, position_Q
