"""Direct convolution of small maps: what a tap would multiply with padding is left out, and no source is copied.

On a map of 4 × 4 a window of 3 × 3 lies on padding in 44 of 144 places, on one of 3 × 3 in 32 of 81.

Tiling. As `direct`: blocks of output channels × rows × columns of sums stay in registers over the whole reduction.
Tiles are sorted by how they lie on the borders, and each kind is code of its own: per row of taps one loop over the
blocks of input channels, in which each tap multiplies the pixels of the tile that it reaches.

Registers: as `direct`. Instructions per L products of one tap: L·Q multiply-adds and a load for each pixel that it
reaches, and L·Q/2 loads of weights.
Roofline: that of `direct`, with the multiply-adds that are left.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product
from math import prod
from typing import Any

from targets.arm_tvm.kernels.emitter import PARALLEL_WORK, broadcast, int32, lane, load, store
from targets.arm_tvm.kernels.floating_point.direct import (
    LOOP_OVERHEAD,
    TILE_OVERHEAD,
    Direct,
    has_panel,
    pack,
    registers,
    split,
)
from targets.arm_tvm.kernels.floating_point.int8_weights import PANEL_COST, WIDENING
from targets.arm_tvm.kernels.floating_point.spans import Span, find_spans
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload, blocks, packed_bytes
from targets.arm_tvm.kernels.machine import Machine

__all__ = ["choices", "emit", "pack"]

MAX_CHOICES = 12
"""Choices of one workload: each of them is compiled and measured when it is tuned."""
MAX_PIXELS = 64
"""Of a result: of a larger one little lies on padding, and groups of channels alone would not keep all cores busy."""
MAX_CODE = 4096
"""Multiply-adds of all kinds of tiles together, which are all written out: 16 KiB of code."""
MAX_ROWS, MAX_COLUMNS, MAX_BLOCKS = 4, 8, 8
"""Of one tile: they bound the search."""

Tile = tuple[Span, Span]


def choices(workload: ConvWorkload, machine: Machine, *, like: Choice | None = None) -> tuple[Choice, ...]:
    """Register tiles that fit, the cheapest first; none where nothing lies on padding or the code would be long.

    Args:
        workload: What is computed.
        machine: Where.
        like: The choice for the same weights whose packing must do, of this family or of `direct`; None: any packing.
    """
    if workload.layout != "blocked" or workload.groups > 1 or not any(workload.padding) or not machine.by_element:
        return ()
    if prod(workload.result) > MAX_PIXELS:
        return ()
    lanes = machine.lanes(workload.dtype)
    sources = blocks(workload.channels, lanes) * lanes
    size = packed_bytes(workload, lanes, prod(workload.kernel), sources=sources)
    height, width = workload.result
    sizes = product(
        range(1, min(MAX_BLOCKS, blocks(workload.filters, lanes)) + 1),
        range(1, min(MAX_ROWS, height) + 1),
        range(1, min(MAX_COLUMNS, width) + 1),
    )
    fitting = [
        Choice("bordered", {"blocks": q, "rows": rows, "columns": columns}, cost, size)
        for q, rows, columns in sizes
        if like is None or q == like.parameters["blocks"]
        if registers(workload, machine, q, rows * columns) <= machine.registers
        if (cost := _cost(workload, machine, (q, rows, columns))) is not None
    ]
    return tuple(sorted(fitting, key=lambda choice: choice.cost)[:MAX_CHOICES])


def emit(workload: ConvWorkload, choice: Choice, machine: Machine) -> Any:
    """The kernel."""
    return _Bordered(workload, choice, machine).function()


def _cost(work: ConvWorkload, machine: Machine, tile: tuple[int, int, int]) -> float | None:
    """Predicted instructions; None where the code would be too long."""
    lanes, (q, rows, columns), pair = machine.lanes(work.dtype), tile, 2 if machine.pairs else 1
    total, written = 0.0, 0
    for _, q_count, tile_q in split(blocks(work.filters, lanes), q):
        weight = WIDENING[work.dtype] * lanes if work.weights and not has_panel(work, rows * columns) else 1 / pair
        if has_panel(work, rows * columns):
            total += q_count * tile_q * blocks(work.channels, lanes) * lanes * prod(work.kernel) * lanes * PANEL_COST
        for kind in product(_spans(work, 0, rows), _spans(work, 1, columns)):
            reached = [len(_reached(work, kind, tap)) for tap in product(*map(range, work.kernel))]
            taps = [count for count in reached if count]
            inner = sum(lanes * tile_q * (count + weight) + count for count in taps) + work.kernel[0] * LOOP_OVERHEAD
            pixels = kind[0].lines * kind[1].lines
            outer = pixels * tile_q * (1 + len(work.epilogue)) + tile_q + TILE_OVERHEAD
            total += q_count * kind[0].count * kind[1].count * (blocks(work.channels, lanes) * inner + outer)
            written += lanes * tile_q * sum(taps)
    return total * work.batch if written <= MAX_CODE else None


def _spans(work: ConvWorkload, axis: int, tile: int) -> tuple[Span, ...]:
    """The tiles along an axis, by how they lie on its borders."""
    stride, dilation = work.strides[axis], work.dilations[axis]
    return find_spans(
        work.result[axis],
        tile,
        source=(work.height, work.width)[axis],
        padding=work.padding[axis],
        stride=stride,
        reach=(tile - 1) * stride + (work.kernel[axis] - 1) * dilation + 1,
    )


def _reached(work: ConvWorkload, kind: Tile, tap: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """The pixels of a tile for which a tap lies inside: number of the pixel, row and column of the source under it."""
    rows, columns = kind
    down, across = (
        {
            line: at
            for line in range(span.lines)
            if span.inside[0] <= (at := line * stride + own * step) < span.inside[1]
        }
        for span, stride, own, step in zip(kind, work.strides, tap, work.dilations, strict=True)
    )
    return [
        (row * columns.lines + column, down[row], across[column])
        for row, column in product(range(rows.lines), range(columns.lines))
        if row in down and column in across
    ]


class _Bordered(Direct):
    """One kernel while it is written."""

    def _read(self, source: Any) -> None:
        self.source, self.valid_lanes = source, self.lanes

    def _image(self, batch: Any, part: Any) -> None:
        rows, columns = self.choice.parameters["rows"], self.choice.parameters["columns"]
        kinds = list(product(_spans(self.work, 0, rows), _spans(self.work, 1, columns)))
        origin = 0
        for first, count, q in split(self.out_blocks, self.choice.parameters["blocks"]):
            step = q * self.lanes * self.reduction
            heavy = q * count * prod(self.work.result) * self.reduction > PARALLEL_WORK
            with self.emitter.loop(count, parallel=heavy) as group:
                weights = self.emitter.let(group * step + origin)
                if has_panel(self.work, rows * columns):
                    self._widen(weights, q)
                    weights = int32(0)
                for kind in kinds:
                    with self.emitter.loop(kind[0].count) as ty, self.emitter.loop(kind[1].count) as tx:
                        place = (kind[0].first + ty) * rows, (kind[1].first + tx) * columns
                        self._bordered_tile(batch, (group * q + first, *place), (q, kind), weights)
            origin += count * step

    def _bordered_tile(self, batch: Any, place: tuple[Any, Any, Any], tile: tuple[int, Tile], weights: Any) -> None:
        (block, top, left), (q, kind), work, emitter = place, tile, self.work, self.emitter
        pixels = kind[0].lines * kind[1].lines
        sums = emitter.allocate(q * pixels, self.vector)
        for index in range(q):
            bias = self._first_sum(block + index)
            for pixel in range(pixels):
                emitter.add(store(sums, pixel * q + index, bias, 1))
        line, column = top * work.strides[0] - work.padding[0], left * work.strides[1] - work.padding[1]
        origin = emitter.let(
            ((batch * (self.in_blocks * work.height) + line) * work.width + column) * self.lanes + int32(0)
        )
        for row in range(work.kernel[0]):
            with emitter.loop(self.in_blocks) as channels:
                plane = emitter.let(origin + channels * (work.height * work.width * self.lanes))
                for tap in range(work.kernel[1]):
                    at = (channels * work.kernel[0] + row) * work.kernel[1] + tap
                    self._bordered_tap(
                        sums, (q, kind), (row, tap), (plane, weights + at * (self.lanes * q * self.lanes))
                    )
        self._store(sums, (q, kind[0].lines, kind[1].lines), batch, place)

    def _bordered_tap(self, sums: Any, tile: tuple[int, Tile], tap: tuple[int, int], at: tuple[Any, Any]) -> None:
        (q, kind), (plane, weights) = tile, at
        reached = _reached(self.work, kind, tap)
        if not reached:
            return
        offsets = [(row * self.work.width + column) * self.lanes for _, row, column in reached]
        vectors = [self.emitter.let(load(self.source, plane + offset, self.lanes)) for offset in offsets]
        factors: Iterator[Any] = self._factors(weights, self.lanes * q)
        for step in range(self.lanes):
            scalars = [broadcast(lane(vector, step), self.lanes) for vector in vectors]
            for index, factor in enumerate(list(islice(factors, q))):
                for (pixel, _, _), scalar in zip(reached, scalars, strict=True):
                    self._accumulate(sums, pixel * q + index, factor, scalar)
