"""The ways to compute an integer convolution, by predicted instructions: directly, or by Winograd's algorithm.

Winograd's algorithm is for cores without an integer dot product: sdot makes 16 products an instruction, which is what
the four of smlal stand for at F(4×4, 3×3). Results are the same to the bit, so the fewest predicted instructions
decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, TypeAlias

from targets.arm_tvm.kernels.integer.minimal_filters import SIZES, filters
from targets.arm_tvm.kernels.integer.specs import BLOCK, ConvSpec, Dot
from targets.arm_tvm.kernels.integer.tiles import (
    MAX_CHOICES,
    Tile,
    predicted_instructions,
    split,
    tile_choices,
    workload_digest,
)

MAX_TILES = 5
"""Tiles of one product of matrices, at most: 20 sums and 5 vectors of data leave 7 registers for weights."""
BAND_BYTES = 256 * 1024
"""Most that V of one band should take: it is read once per block of output channels, from the second-level cache."""
GROUP_BYTES = 160 * 1024
"""Most that U of a block of output channels takes: each thread has one in the second-level cache, beside V."""
INPUT_COST, OUTPUT_COST = {2: 250.0, 4: 760.0}, {2: 320.0, 4: 1350.0}
"""Instructions to transform one tile of 16 channels, requantization included."""
WEIGHT_COST = {2: 101.0, 4: 270.0}
"""Instructions to transform the weights of 16 filters for one channel."""
LOOP, PART = 13, 16
"""Instructions of eight input channels that are no products, and of one product of matrices, beside those per tile."""
ELEMENT_BYTES = 2
"""Of V and U: int16."""
GREATEST_PRODUCT = 1 << 14
"""Of two int8."""


@dataclass(frozen=True)
class WinogradTile:
    """How a convolution by Winograd's algorithm is cut; see `winograd`.

    Args:
        m: Rows and columns of results of one tile.
        rows: Rows of tiles of a band.
        tiles: Tiles that are multiplied together.
    """

    m: int
    rows: int
    tiles: int

    def to_dict(self) -> dict[str, Any]:
        """What schedules and tuning records keep of it."""
        return {"family": "integer_winograd", **asdict(self)}


Way: TypeAlias = Tile | WinogradTile


def way_of(value: Mapping[str, Any]) -> Way:
    """The way that `to_dict` wrote."""
    parameters = {name: number for name, number in value.items() if name != "family"}
    return WinogradTile(**parameters) if value["family"] == "integer_winograd" else Tile.from_dict(value)


def way_choices(spec: ConvSpec, dot: Dot, *, like: Way | None = None) -> tuple[Way, ...]:
    """Ways that fit, the cheapest first.

    Args:
        spec: The convolution.
        dot: How the machine multiplies int8.
        like: The way that the weights are packed for; None: any packing.
    """
    ways: list[Way] = []
    if not isinstance(like, WinogradTile):
        ways += tile_choices(spec, dot, groups=None if like is None else like.groups)
    if not isinstance(like, Tile):
        ways += winograd_choices(spec, dot)
    return tuple(sorted(ways, key=lambda way: predicted_cost(spec, way, dot))[:MAX_CHOICES])


def choose_way(
    spec: ConvSpec, dot: Dot, schedule: Mapping[str, Mapping[str, object]], *, like: Way | None = None
) -> Way:
    """The schedule's way for the convolution where it has one that still exists, else the cheapest.

    Args:
        spec: The convolution.
        dot: How the machine multiplies int8.
        schedule: `workload_digest` → a way, as `to_dict` gives it.
        like: As of `way_choices`.
    """
    ways = way_choices(spec, dot, like=like)
    wanted = dict(schedule.get(workload_digest(spec, dot), {}))
    return next((way for way in ways if way.to_dict() == wanted), ways[0])


def predicted_cost(spec: ConvSpec, way: Way, dot: Dot) -> float:
    """Predicted instructions of one image; cycles of AMX."""
    return _winograd_cost(spec, way) if isinstance(way, WinogradTile) else predicted_instructions(spec, way, dot)


def winograd_choices(spec: ConvSpec, dot: Dot) -> tuple[WinogradTile, ...]:
    """Tile sizes and register tiles that fit; none where the algorithm does not apply or the core has a dot product."""
    plain = spec.kernel == (3, 3) and spec.strides == spec.dilations == (1, 1) and not spec.depthwise
    if dot != "widen" or not plain or spec.source.layout != "blocked" or spec.result.layout != "blocked":
        return ()
    channels = spec.source.blocks * BLOCK
    return tuple(
        WinogradTile(m, rows, tiles)
        for m in SIZES
        if (m + 2) ** 2 * channels * BLOCK * ELEMENT_BYTES <= GROUP_BYTES
        if 9 * channels * GREATEST_PRODUCT <= filters(m).greatest_sum
        for rows in [_band_rows(spec, m)]
        for tiles in _tiles(rows * ceil(spec.result.width / m))
    )


def _tiles(band: int) -> list[int]:
    """Register tiles that divide a band differently."""
    return sorted({split(band, most)[0][2] for most in range(1, MAX_TILES + 1)})


def _band_rows(spec: ConvSpec, m: int) -> int:
    """Rows of tiles of a band: bands of one size, as few as let V fit."""
    down, across = (ceil(size / m) for size in (spec.result.height, spec.result.width))
    row_bytes = (m + 2) ** 2 * spec.source.blocks * BLOCK * across * ELEMENT_BYTES
    return ceil(down / ceil(down / max(1, BAND_BYTES // row_bytes)))


def _winograd_cost(spec: ConvSpec, way: WinogradTile) -> float:
    m, sources, results = way.m, spec.source.blocks, spec.result.blocks
    down, across = (ceil(size / m) for size in (spec.result.height, spec.result.width))
    rows = min(way.rows, down)
    bands = ceil(down / rows)
    transforms = rows * across * sources * INPUT_COST[m] + sources * BLOCK * results * WEIGHT_COST[m]
    # For each tile: 4 × 8 products of eight input channels, half a load (ldp), and six to zero and to store its sums.
    products = sum(
        count * (2 * sources * (32 * tiles + ceil(tiles / 2) + LOOP) + 6 * tiles + PART)
        for _, count, tiles in split(rows * across, way.tiles)
    )
    return bands * (transforms + (m + 2) ** 2 * results * products) + down * across * results * OUTPUT_COST[m]
