"""Products of two matrices that are both computed, many at once, as attention has them: (B, M, K) · (B, K, N).

Tiling: Q vectors of L columns × P rows of sums stay in registers over all of K. A vector of the left matrix holds L
steps of K for one row; each of its lanes multiplies Q vectors of a row of the right matrix, which is read where it
lies: K · N of one product stay in the caches, so nothing is packed. Steps of K that fill no vector are multiplied by
scalars. Columns that fill no vector are computed by a last vector that overlaps the one before.

Registers: Q·P sums, P vectors of the left matrix, Q + 1 of the right one. Instructions per L steps: L·P·Q
multiply-adds, P + L·Q loads.
Roofline: P·Q / (P·Q + Q + P/L) of the multipliers' rate: 0.79 with P = 5, Q = 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from targets.arm_tvm.kernels.emitter import PARALLEL_WORK, Emitter, broadcast, fma, int32, lane, load, store
from targets.arm_tvm.kernels.floating_point.direct import split
from targets.arm_tvm.kernels.floating_point.epilogue import finish
from targets.arm_tvm.kernels.machine import Machine

MAX_ROWS, MAX_VECTORS = 8, 8
"""Rows and vectors of one tile, at most: they bound the search."""
TILE_OVERHEAD = 14
"""As in `direct`."""
LEAST_VECTOR_BITS = 128
"""Of the machines that there are: x86 has narrower forms of its wide vectors."""


@dataclass(frozen=True)
class Matmul:
    """Products of matrices, one for each of a batch.

    Args:
        batch: How many.
        rows: M.
        depth: K.
        columns: N.
        dtype: Of all.
        steps: What follows each sum, as in `ConvWorkload.epilogue`, without residuals.
    """

    batch: int
    rows: int
    depth: int
    columns: int
    dtype: str
    steps: tuple[str, ...] = ()


def vectors_for(work: Matmul, machine: Machine) -> Machine | None:
    """The machine with its widest vectors of which a row of the result has one; None where it has none.

    The last vector overlaps the one before it, so a row must have room for one.
    """
    while machine.vector_bits > LEAST_VECTOR_BITS and work.columns < machine.lanes(work.dtype):
        machine = replace(machine, vector_bits=machine.vector_bits // 2)
    return machine if work.columns >= machine.lanes(work.dtype) else None


def emit_matmul(work: Matmul, machine: Machine) -> Any:
    """The kernel: (left, right, result)."""
    return _Kernel(work, machine).function()


def _tile(work: Matmul, machine: Machine) -> tuple[int, int]:
    """Rows and vectors of the cheapest tile that fits the registers."""
    vectors = -(-work.columns // machine.lanes(work.dtype))
    fitting = [
        (rows, q)
        for rows, q in product(range(1, min(MAX_ROWS, work.rows) + 1), range(1, min(MAX_VECTORS, vectors) + 1))
        if rows * q + (rows if machine.by_element else 0) + q + 1 <= machine.registers
    ]
    return min(fitting, key=lambda tile: _cost(work, machine, *tile))


def _cost(work: Matmul, machine: Machine, rows: int, q: int) -> float:
    lanes = machine.lanes(work.dtype)
    total, pair = 0.0, 2 if machine.pairs else 1
    for _, row_count, tile_rows in split(work.rows, rows):
        for _, count, tile_q in split(-(-work.columns // lanes), q):
            scalars = tile_rows / lanes if machine.by_element else tile_rows
            step = tile_rows * tile_q + -(-tile_q // pair) + scalars
            total += row_count * count * (work.depth * step + TILE_OVERHEAD + 2 * tile_rows * tile_q)
    return total


class _Kernel:
    """One kernel while it is written."""

    def __init__(self, work: Matmul, machine: Machine) -> None:
        self.work, self.machine, self.lanes = work, machine, machine.lanes(work.dtype)
        self.vector, self.emitter = f"{work.dtype}x{self.lanes}", Emitter()

    def function(self) -> Any:
        work, emitter, lanes = self.work, self.emitter, self.lanes
        self.left = emitter.parameter((work.batch, work.rows, work.depth), work.dtype, "a")
        self.right = emitter.parameter((work.batch, work.depth, work.columns), work.dtype, "b")
        self.result = emitter.parameter((work.batch, work.rows, work.columns), work.dtype, "y")
        rows, q = _tile(work, self.machine)
        whole = work.columns // lanes
        heavy = work.batch * work.rows * work.depth * whole > PARALLEL_WORK
        for first_row, row_count, tile_rows in split(work.rows, rows):
            with emitter.loop(work.batch * row_count, parallel=heavy) as part:
                from tvm import tirx

                batch, row = tirx.floordiv(part, int32(row_count)), tirx.floormod(part, int32(row_count))
                at = emitter.let(batch), emitter.let(row * tile_rows + first_row)
                for first, count, tile_q in split(whole, q):
                    with emitter.loop(count) as group:
                        self._tile(at, (group * tile_q + first) * lanes, (tile_rows, tile_q))
                if work.columns % lanes:
                    # Some results are computed twice, with the same value; none outside of the row.
                    self._tile(at, int32(work.columns - lanes), (tile_rows, 1))
        return emitter.function()

    def _tile(self, at: tuple[Any, Any], column: Any, tile: tuple[int, int]) -> None:
        (batch, row), (rows, q), work, emitter = at, tile, self.work, self.emitter
        sums = emitter.allocate(rows * q, self.vector)
        for place in range(rows * q):
            emitter.add(store(sums, place, broadcast(0.0, self.lanes, work.dtype), 1))
        left = emitter.view(self.left, (batch * work.rows + row) * work.depth)
        right = emitter.view(self.right, batch * (work.depth * work.columns) + column)
        whole = work.depth // self.lanes
        if whole:
            with emitter.loop(whole) as block:
                self._steps(sums, tile, (left, right), (emitter.let(block * self.lanes), self.lanes))
        for step in range(whole * self.lanes, work.depth):
            self._steps(sums, tile, (left, right), (int32(step), 1))
        result = emitter.view(self.result, (batch * work.rows + row) * work.columns + column)
        for i, j in product(range(rows), range(q)):
            total = load(sums, i * q + j, 1)
            value = finish(emitter, total, work.steps, None, lanes=self.lanes, dtype=work.dtype)
            emitter.add(store(result, i * work.columns + j * self.lanes, value, self.lanes))

    def _steps(self, sums: Any, tile: tuple[int, int], given: tuple[Any, Any], steps: tuple[Any, int]) -> None:
        """Some neighbouring steps of K."""
        (rows, q), (left, right), (first, count), emitter = tile, given, steps, self.emitter
        by_element = self.machine.by_element and count == self.lanes
        places = [first + i * self.work.depth for i in range(rows)]
        vectors = [emitter.let(load(left, place, count)) for place in places] if by_element else []
        for step in range(count):
            line = (first + step) * self.work.columns
            factors = [emitter.let(load(right, line + j * self.lanes, self.lanes)) for j in range(q)]
            for i in range(rows):
                scalar = lane(vectors[i], step) if by_element else load(left, places[i] + step, 1)
                operand = emitter.let(broadcast(scalar, self.lanes))
                for j, factor in enumerate(factors):
                    total = fma(factor, operand, load(sums, i * q + j, 1), self.vector)
                    emitter.add(store(sums, i * q + j, total, 1))
