"""Register tiles of the integer convolution: what fits into the vector registers, cheapest first.

A tile is 4·groups output channels × rows · columns pixels. Its cost is what the compiler was seen to make of it: one
instruction per dot product, two vectors per load (ldp), loop control, and the epilogue. On x86 it is what the ports of
the core take: as many loads as products a cycle, and a product that waits for the one before it in its register.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from targets.arm_tvm.kernels.integer.gathered import gathered
from targets.arm_tvm.kernels.integer.runs import as_multiplied, runs_of
from targets.arm_tvm.kernels.integer.specs import BLOCK, ConvSpec, Dot
from targets.arm_tvm.kernels.integer.vectors import vectors_of
from targets.arm_tvm.kernels.runs import chunk_words

MAX_CHOICES = 24
"""Choices of one workload: each of them is compiled and measured when it is tuned."""
COLUMNS_MAX, ROWS_MAX = 16, 4
"""Pixels of one tile along each axis, at most: they bound the search."""
EPILOGUE = 8
"""Instructions per four results."""
WIDENED = 8
"""Registers that widening multiplies in flight take."""
LOOP = 4
"""Instructions that close a loop."""
AMX_ROWS = 16
"""Rows of a tile of AMX: its pixels."""
AMX_LATENCY = 52
"""Cycles from one product to the next that adds to the same tile of sums."""
IN_FLIGHT = 10
"""Products of x86 that are begun before the first one's sum can be added to: two a cycle, five cycles each."""
EPILOGUE_VECTOR = 10
"""Instructions of x86 per vector of results."""


@dataclass(frozen=True)
class Tile:
    """How many results are computed together.

    Args:
        groups: Output channels, in fours.
        rows: Rows of pixels.
        columns: Pixels of a row.
    """

    groups: int
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        """Pixels of the tile."""
        return self.rows * self.columns

    def to_dict(self) -> dict[str, Any]:
        """What schedules and tuning records keep of it."""
        return {"family": "integer", **asdict(self)}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Tile:
        """The tile that `to_dict` wrote."""
        return Tile(value["groups"], value["rows"], value["columns"])


def split(size: int, most: int) -> list[tuple[int, int, int]]:
    """A size in parts that differ by at most one: (first, parts, size of a part), at most two of them."""
    count = -(-size // most)
    small, larger = divmod(size, count)
    parts = [(0, larger, small + 1), (larger * (small + 1), count - larger, small)]
    return [part for part in parts if part[1]]


def tile_choices(spec: ConvSpec, dot: Dot, *, groups: int | None = None) -> tuple[Tile, ...]:
    """Tiles that fit, by predicted instructions.

    Args:
        spec: The convolution.
        dot: How the machine multiplies int8.
        groups: Of the tile that the weights are packed for; None: any.
    """
    spec, vectors = gathered(spec, dot), vectors_of(dot)
    if vectors.tiled:
        return tuple(tile for tile in _amx_choices(as_multiplied(spec, dot)) if groups in (None, tile.groups))
    # 4, 8 and 16 channels divide a block of 16; 32 channels are two blocks.
    counts = (1, 2, 4, 8) if vectors.by_lane else (2, 4, 8, 12, 16)
    dividing = [count for count in counts if spec.result.blocks * 4 % count == 0 and 4 * count % vectors.lanes == 0]
    fit_packing = [count for count in dividing if groups in (None, count)]
    wide = [(1, columns) for columns in range(1, min(spec.result.width, COLUMNS_MAX) + 1)]
    # Tiles of several rows are for images whose rows are too short to fill the registers; windows are gathered by rows.
    most = min(spec.result.height, ROWS_MAX) if spec.strides[0] else 1
    high = [(rows, spec.result.width) for rows in range(2, most + 1)]
    tiles = [Tile(count, rows, columns) for count in fit_packing for rows, columns in wide + high]
    fitting = [tile for tile in tiles if _registers(tile, dot) <= vectors.registers]
    return tuple(sorted(fitting, key=lambda tile: predicted_instructions(spec, tile, dot))[:MAX_CHOICES])


def workload_digest(spec: ConvSpec, dot: Dot) -> str:
    """Names the convolution in tuning logs and plans (64 hex digits)."""
    value = {"family": "int8", "dot": dot, **asdict(spec)}
    if not spec.epilogue.activations:  # so that records without them keep their names
        del value["epilogue"]["activations"], value["epilogue"]["step"]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def predicted_instructions(spec: ConvSpec, tile: Tile, dot: Dot) -> float:
    """Predicted instructions of one image; cycles of AMX."""
    if vectors_of(dot).tiled:
        return _amx_cycles(as_multiplied(spec, dot), tile)
    spec = gathered(spec, dot)
    channels = spec.result.blocks * BLOCK // (4 * tile.groups)
    return channels * sum(
        row_parts * column_parts * _tile_cost(spec, Tile(tile.groups, rows, columns), dot)
        for _, row_parts, rows in split(spec.result.height, tile.rows)
        for _, column_parts, columns in split(spec.result.width, tile.columns)
    )


def _tile_cost(spec: ConvSpec, tile: Tile, dot: Dot) -> float:
    if not vectors_of(dot).by_lane:
        return _tile_cost_by_words(spec, tile, 4 * tile.groups // vectors_of(dot).lanes)
    results = tile.groups * tile.pixels
    contiguous = spec.strides[1] == 1 and spec.source.layout == "blocked"
    # Neighbouring pixels are loaded in pairs (ldp) where they follow each other in memory.
    loads = 2 * tile.groups + tile.pixels * (0.5 if contiguous else 1.0)
    pairs = -(-tile.pixels // 2)
    matrices = 4 * tile.groups * pairs + 2 * pairs
    # widen and generic: 3 instructions per 16 products, for each of the 4 channels of a group.
    products = {"sdot": 4 * results, "smmla": matrices, "widen": 12 * results, "generic": 12 * results}
    lines, vectors = spec.kernel[0] * spec.source.blocks, spec.kernel[1]
    if spec.source.layout == "pixels":
        lines, vectors = spec.kernel[0], -(-spec.kernel[1] * spec.source.channels // BLOCK)
    return lines * (vectors * (products[dot] + loads) + LOOP) + EPILOGUE * results + 5 * LOOP


def _amx_choices(spec: ConvSpec) -> tuple[Tile, ...]:
    """Up to four tiles of sums: of pixels by output channels, pixels divided evenly among their tiles."""
    size = spec.result.width
    if spec.strides == (1, 1):
        size += (spec.result.height - 1) * max(spec.extent[1], spec.source.width)
    columns = -(-size // -(-size // AMX_ROWS))
    counts = ((8, 2), (8, 1), (4, 4), (4, 2), (4, 1))
    tiles = [Tile(groups, rows, columns) for groups, rows in counts if spec.result.blocks * 4 % groups == 0]
    return tuple(sorted(tiles, key=lambda tile: _amx_cycles(spec, tile)))


def _amx_cycles(spec: ConvSpec, tile: Tile) -> float:
    runs = runs_of(spec)
    words, blocks = chunk_words(runs), tile.groups // 4
    size = spec.result.width
    lines = spec.result.height
    if spec.strides == (1, 1):
        size, lines = size + (lines - 1) * max(spec.extent[1], spec.source.width), 1
    groups = -(-lines * -(-size // tile.columns) // tile.rows) * spec.result.blocks // blocks
    products = max(tile.rows * blocks * max(tile.columns, words), AMX_LATENCY)
    loads = (tile.rows * tile.columns + blocks * words) / 2
    steps = runs.total_words // words
    return groups * (steps * max(products, loads) + EPILOGUE_VECTOR * tile.rows * blocks * tile.columns)


def _tile_cost_by_words(spec: ConvSpec, tile: Tile, columns: int) -> float:
    """Of a tile of so many vectors of output channels, whose inputs are broadcast from memory."""
    results, loads = columns * tile.pixels, columns + tile.pixels
    words = runs_of(spec).total_words
    return words * (max(results, loads, IN_FLIGHT) + loads / 4) + EPILOGUE_VECTOR * results + 5 * LOOP


def _registers(tile: Tile, dot: Dot) -> int:
    results = tile.groups * tile.pixels
    if not vectors_of(dot).by_lane:
        columns = 4 * tile.groups // vectors_of(dot).lanes
        return columns * tile.pixels + columns + 1
    if dot in ("widen", "generic"):
        return 4 * results + tile.pixels + WIDENED
    if dot == "smmla":
        return tile.groups * 2 * (-(-tile.pixels // 2)) + tile.pixels + 4
    return results + tile.pixels + max(tile.groups, 2)
