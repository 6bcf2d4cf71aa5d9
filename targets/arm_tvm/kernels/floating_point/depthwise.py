"""Depthwise convolutions: each channel by itself, any stride and dilation, on blocked activations (N, C/L, H, W, L).

Tiling. A vector holds L channels of one pixel. `rows` × `columns` pixels of the result are summed in registers: each of
the source's vectors under them is loaded once and multiplied by the weights of every tap that reaches it. Tiles over
the border are code of their own, in which what lies outside is left out: nothing is padded.

Registers: rows · columns sums, the weights of one row of taps, and vectors of the source on their way. Instructions per
tile: taps · rows · columns multiply-adds, and a load for each source vector under the tile.
Roofline: at stride 1 and 3×3, 9 multiply-adds per element: the loads of a large map from memory, else the multipliers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from compiler.target import Array
from targets.arm_tvm.kernels.emitter import PARALLEL_WORK, Emitter, fma, load, store
from targets.arm_tvm.kernels.floating_point.epilogue import finish
from targets.arm_tvm.kernels.floating_point.sources import result_shape, source_shape
from targets.arm_tvm.kernels.floating_point.spans import Span, find_spans
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload, blocks, packed_bytes
from targets.arm_tvm.kernels.machine import Machine

MAX_CHOICES = 16
"""Choices of one workload: each of them is compiled and measured when it is tuned."""
MAX_ROWS, MAX_COLUMNS = 3, 8
"""Pixels of one tile, at most: they bound the search, and the code that is written out."""
SPARE_REGISTERS = 3
"""For vectors of the source on their way."""
MAX_TAPS = 49
"""Taps that are written out, at most."""
TILE_OVERHEAD = 8
"""Instructions of a tile besides loads, multiply-adds and stores: its offsets and the loop around it."""


def choices(workload: ConvWorkload, machine: Machine, *, like: Choice | None = None) -> tuple[Choice, ...]:
    """Register tiles that fit, the cheapest first; none where channels are mixed or the window is large.

    Weights are packed in one way, so that `like` changes nothing.
    """
    taps = workload.kernel[0] * workload.kernel[1]
    if not applies(workload):
        return ()
    height, width = workload.result
    size = packed_bytes(workload, machine.lanes(workload.dtype), taps, sources=1)
    fitting = [
        Choice("depthwise", {"rows": rows, "columns": columns}, _cost(workload, machine, rows, columns), size)
        for rows, columns in product(range(1, min(MAX_ROWS, height) + 1), range(1, min(MAX_COLUMNS, width) + 1))
        if rows * columns + workload.kernel[1] + SPARE_REGISTERS <= machine.registers
    ]
    return tuple(sorted(fitting, key=lambda choice: choice.cost)[:MAX_CHOICES])


def applies(workload: ConvWorkload) -> bool:
    """Whether each channel is convolved by itself, with a window of not too many taps."""
    one_each = workload.groups == workload.channels == workload.filters
    return one_each and workload.layout == "blocked" and workload.kernel[0] * workload.kernel[1] <= MAX_TAPS


def _cost(workload: ConvWorkload, machine: Machine, rows: int, columns: int) -> float:
    (height, width), taps = workload.result, workload.kernel[0] * workload.kernel[1]
    under = [_reach(workload, axis, size) for axis, size in enumerate((rows, columns))]
    # 1.5 and not 2: not every load has a neighbour that ldp could take with it.
    loads = (under[0] * under[1] + taps) / (1.5 if machine.pairs else 1)
    tile = rows * columns * (taps + 2 + len(workload.epilogue)) + loads + TILE_OVERHEAD
    planes = workload.batch * blocks(workload.channels, machine.lanes(workload.dtype))
    return planes * -(-height // rows) * -(-width // columns) * tile


def _reach(work: ConvWorkload, axis: int, tile: int) -> int:
    """Source lines under `tile` lines of the result."""
    return (tile - 1) * work.strides[axis] + (work.kernel[axis] - 1) * work.dilations[axis] + 1


def pack(workload: ConvWorkload, choice: Choice, weights: Array, machine: Machine) -> Array:
    """Weights block by block: [C/L][row][column][L], flat."""
    lanes = machine.lanes(workload.dtype)
    full = np.zeros((blocks(workload.channels, lanes) * lanes, *workload.kernel), workload.dtype)
    full[: workload.channels] = weights[:, 0]
    return np.ascontiguousarray(full.reshape(-1, lanes, *workload.kernel).transpose(0, 2, 3, 1).ravel())


def emit(workload: ConvWorkload, choice: Choice, machine: Machine) -> Any:
    """The kernel."""
    return _Depthwise(workload, choice, machine).function()


class _Depthwise:
    """One kernel while it is written."""

    def __init__(self, workload: ConvWorkload, choice: Choice, machine: Machine) -> None:
        self.work, self.lanes, self.dtype = workload, machine.lanes(workload.dtype), workload.dtype
        self.rows, self.columns = choice.parameters["rows"], choice.parameters["columns"]
        self.blocks = blocks(workload.channels, self.lanes)
        self.down, self.across = (_spans(workload, axis, tile) for axis, tile in enumerate((self.rows, self.columns)))
        self.emitter = Emitter()

    def function(self) -> Any:
        emitter, lanes, work = self.emitter, self.lanes, self.work
        taps, shape = work.kernel[0] * work.kernel[1], result_shape(work, lanes)
        self.source = emitter.parameter(source_shape(work, lanes), self.dtype, "x")
        self.weights = emitter.parameter((self.blocks * taps * lanes,), self.dtype, "w")
        self.bias = emitter.parameter((self.blocks * lanes,), self.dtype, "bias")
        self.residual = emitter.parameter(shape, self.dtype, "r") if "add" in work.epilogue else None
        self.result = emitter.parameter(shape, self.dtype, "y")
        planes, (height, width) = work.batch * self.blocks, work.result
        with emitter.loop(planes, parallel=planes * height * width * taps > PARALLEL_WORK) as plane:
            from tvm import tirx

            block = emitter.let(tirx.floormod(plane, tirx.const(self.blocks, "int32")))
            for rows, columns, ty, tx in self._kinds():
                self._tile(plane, block, (rows, columns), (ty, tx))
        return emitter.function()

    def _kinds(self) -> Iterator[tuple[Span, Span, Any, Any]]:
        """Opens, one after the other, the code of each kind of tile; yields the tile's row and column."""
        for rows in self.down:
            with self.emitter.loop(rows.count) as ty:
                for columns in self.across:
                    with self.emitter.loop(columns.count) as tx:
                        yield rows, columns, ty + rows.first, tx + columns.first

    def _tile(self, plane: Any, block: Any, spans: tuple[Span, Span], at: tuple[Any, Any]) -> None:
        work, lanes, emitter, (rows, columns), (ty, tx) = self.work, self.lanes, self.emitter, spans, at
        (down, right), (top, left), (height, width) = work.strides, work.padding[:2], work.result
        line, column = ty * (self.rows * down) - top, tx * (self.columns * right) - left
        source = emitter.view(self.source, ((plane * work.height + line) * work.width + column) * lanes)
        weights = emitter.view(self.weights, block * (work.kernel[0] * work.kernel[1] * lanes))
        bias = emitter.let(load(self.bias, block * lanes, lanes))
        sums = {pixel: bias for pixel in product(range(rows.lines), range(columns.lines))}
        loaded: dict[tuple[int, int], Any] = {}
        for tap_row, tap_column in product(*map(range, work.kernel)):
            weight = emitter.let(load(weights, (tap_row * work.kernel[1] + tap_column) * lanes, lanes))
            for row, place in sums:
                i, j = row * down + tap_row * work.dilations[0], place * right + tap_column * work.dilations[1]
                if rows.inside[0] <= i < rows.inside[1] and columns.inside[0] <= j < columns.inside[1]:
                    # One load per vector of the source, however many taps and results use it.
                    if (i, j) not in loaded:
                        loaded[i, j] = emitter.let(load(source, (i * work.width + j) * lanes, lanes))
                    total = fma(weight, loaded[i, j], sums[row, place], f"{self.dtype}x{lanes}")
                    sums[row, place] = emitter.let(total)
        start = ((plane * height + ty * self.rows) * width + tx * self.columns) * lanes
        self._finish(sums, emitter.let(start))

    def _finish(self, sums: dict[tuple[int, int], Any], start: Any) -> None:
        result = self.emitter.view(self.result, start)
        residual = None if self.residual is None else self.emitter.view(self.residual, start)
        for (row, column), total in sums.items():
            at = (row * self.work.result[1] + column) * self.lanes
            added = None if residual is None else load(residual, at, self.lanes)
            value = finish(self.emitter, total, self.work.epilogue, added, lanes=self.lanes, dtype=self.dtype)
            self.emitter.add(store(result, at, value, self.lanes))


def _spans(work: ConvWorkload, axis: int, tile: int) -> tuple[Span, ...]:
    """The tiles along an axis, by how they lie on its borders."""
    return find_spans(
        work.result[axis],
        tile,
        source=(work.height, work.width)[axis],
        padding=work.padding[axis],
        stride=work.strides[axis],
        reach=_reach(work, axis, tile),
    )
