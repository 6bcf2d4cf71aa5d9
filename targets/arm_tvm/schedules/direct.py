"""Packed direct convolution, pointwise convolution and matrix product.

Tiling: Q blocks of output channels × P pixels (rows × columns) of sums stay in registers over the whole reduction. A
pixel's vector holds L input channels (blocked, rows) or L neighbouring columns of one channel (planar); each of its
lanes multiplies Q weight vectors, which are packed in the order they are read.

Registers: Q·P sums, the P pixels, Q + 1 for weights on their way: with fewer left over LLVM keeps sums in memory.
Instructions per L products of one tap: L·P·Q multiply-adds, P loads of pixels (half as many where pairs of neighbours
are loaded) and L·Q/2 of weights.
Roofline: the multiply-adds over the core's FMA rate; the weights of one tile are streamed from the second-level cache.
A padded source is copied into a workspace with its border of zeros first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from compiler.numerics import Array
from targets.arm_tvm.emitter import PARALLEL_WORK, Emitter, broadcast, fma, int32, lane, load, store
from targets.arm_tvm.machine import Machine
from targets.arm_tvm.schedules.epilogue import finish
from targets.arm_tvm.schedules.workload import Choice, ConvWorkload, blocks

MAX_CHOICES = 24
TILE_OVERHEAD = 14
LOOP_OVERHEAD = 4
UNROLLED = 600
"""Multiply-adds written out in one loop's body, at most."""


@dataclass(frozen=True)
class _Image:
    """Where a source's elements are: strides in elements; `blocks` of `depth` channels."""

    blocks: int
    depth: int
    batch: int
    block: int
    row: int
    column: int


def choices(workload: ConvWorkload, machine: Machine) -> tuple[Choice, ...]:
    """All register tiles that fit, the cheapest first."""
    lanes = machine.lanes(workload.dtype)
    if workload.groups != 1 or (workload.layout == "rows" and (workload.channels % lanes or workload.filters % lanes)):
        return ()
    height, width = _flat(workload).result
    found = [
        Choice("direct", {"blocks": q, "rows": rows, "columns": columns}, _cost(workload, machine, q, rows, columns))
        for q in range(1, min(8, blocks(workload.filters, lanes)) + 1)
        for rows in range(1, min(4 if workload.layout != "planar" else 1, height) + 1)
        for columns in range(1, min(machine.registers, width) + 1)
        if _registers(workload, machine, q, rows * columns) <= machine.registers
    ]
    return tuple(sorted(found, key=lambda choice: choice.cost)[:MAX_CHOICES])


def _registers(workload: ConvWorkload, machine: Machine, q: int, pixels: int) -> int:
    lanes = machine.lanes(workload.dtype)
    if not machine.by_element:
        return q * pixels + q + 1
    if workload.layout == "planar":
        return q * pixels + _chunks(workload, lanes, pixels) + 2
    return (q + 1) * pixels + q + 1


def _chunks(workload: ConvWorkload, lanes: int, columns: int) -> int:
    reach = (columns - 1) * workload.strides[1] + (workload.kernel[1] - 1) * workload.dilations[1] + 1
    return blocks(reach, lanes)


def _cost(workload: ConvWorkload, machine: Machine, q: int, rows: int, columns: int) -> float:
    flat, lanes = _flat(workload), machine.lanes(workload.dtype)
    height, width = flat.result
    total = 0.0
    for _, row_count, tile_rows in split(height, rows):
        for _, column_count, tile_columns in split(width, columns):
            for _, q_count, tile_q in split(blocks(workload.filters, lanes), q):
                tile = _tile_cost(flat, machine, tile_q, tile_rows, tile_columns)
                total += row_count * column_count * q_count * tile
    weights = blocks(workload.filters, lanes) * lanes * workload.channels * workload.kernel[0] * workload.kernel[1]
    return total * workload.batch + machine.streaming_cost(weights, workload.dtype)


def _tile_cost(flat: ConvWorkload, machine: Machine, q: int, rows: int, columns: int) -> float:
    lanes, pixels = machine.lanes(flat.dtype), rows * columns
    taps = flat.kernel[0] * flat.kernel[1]
    pair = 2 if machine.pairs else 1
    if flat.layout == "planar":
        steps = flat.channels * flat.kernel[0]
        loads = _chunks(flat, lanes, columns) if machine.by_element else pixels * flat.kernel[1]
        inner = flat.kernel[1] * (pixels * q + -(-q // pair)) + loads + LOOP_OVERHEAD
    else:
        steps = blocks(flat.channels, lanes) * taps
        adjacent = pair if flat.layout == "blocked" and flat.strides[1] == 1 else 1
        loads = rows * -(-columns // adjacent) if machine.by_element else pixels * lanes
        inner = lanes * pixels * q + loads + lanes * q // pair + -(-LOOP_OVERHEAD // flat.kernel[1])
    finish_cost = pixels * q * (1 + len(flat.epilogue)) + q
    return steps * inner + finish_cost + TILE_OVERHEAD


def split(size: int, tile: int) -> list[tuple[int, int, int]]:
    """(first, count, tile) of whole tiles and of the rest."""
    whole, rest = divmod(size, tile)
    parts = [(0, whole, tile)] if whole else []
    return [*parts, (whole * tile, 1, rest)] if rest else parts


def _flat(workload: ConvWorkload) -> ConvWorkload:
    """A pointwise convolution over all pixels as over one row of them."""
    plain = workload.kernel == workload.strides == (1, 1) and not any(workload.padding)
    if workload.layout != "blocked" or not plain:
        return workload
    return replace(workload, height=1, width=workload.height * workload.width)


def pack(workload: ConvWorkload, choice: Choice, weights: Array, machine: Machine) -> Array:
    """Weights in the order of the loops: channel blocks Q by Q, input blocks, taps, lanes, Q, output lanes."""
    lanes = machine.lanes(workload.dtype)
    depth = 1 if workload.layout == "planar" else lanes
    out_blocks, in_blocks = blocks(workload.filters, lanes), blocks(workload.channels, depth)
    rows, columns = workload.kernel
    full = np.zeros((out_blocks * lanes, in_blocks * depth, rows, columns), workload.dtype)
    full[: workload.filters, : workload.channels] = weights
    tiled = full.reshape(out_blocks, lanes, in_blocks, depth, rows, columns)
    parts = [
        tiled[first : first + count * q]
        .reshape(count, q, lanes, in_blocks, depth, rows, columns)
        .transpose(0, 3, 5, 6, 4, 1, 2)
        .ravel()
        for first, count, q in split(out_blocks, choice.parameters["blocks"])
    ]
    return np.ascontiguousarray(np.concatenate(parts))


def emit(workload: ConvWorkload, choice: Choice, machine: Machine) -> Any:
    """The kernel."""
    return _Direct(workload, choice, machine).function()


class _Direct:
    """One kernel while it is written."""

    def __init__(self, workload: ConvWorkload, choice: Choice, machine: Machine) -> None:
        self.given, self.work, self.choice, self.machine = workload, _flat(workload), choice, machine
        self.lanes, self.dtype = machine.lanes(workload.dtype), workload.dtype
        self.vector = f"{self.dtype}x{self.lanes}"
        self.out_blocks = blocks(workload.filters, self.lanes)
        self.emitter = Emitter()

    def function(self) -> Any:
        source = self.emitter.parameter(source_shape(self.given, self.lanes), self.dtype, "x")
        reduction = self._depth() * self._in_blocks() * self.work.kernel[0] * self.work.kernel[1]
        size = self.out_blocks * self.lanes * reduction
        self.weights = self.emitter.parameter((size,), self.dtype, "w")
        self.bias = self.emitter.parameter((self.out_blocks * self.lanes,), self.dtype, "bias")
        shape = result_shape(self.given, self.lanes)
        self.residual = self.emitter.parameter(shape, self.dtype, "r") if "add" in self.given.epilogue else None
        self.result = self.emitter.parameter(shape, self.dtype, "y")
        self.reduction = reduction
        if self.work.layout == "planar" or any(self.work.padding):
            pad_top = self._padded(source)
            self.source, self.image = pad_top
        else:
            self.source, self.image = source, self._plain()
        with self.emitter.loop(self.work.batch) as batch:
            self._image(batch)
        return self.emitter.function()

    def _depth(self) -> int:
        return 1 if self.work.layout == "planar" else self.lanes

    def _in_blocks(self) -> int:
        return blocks(self.work.channels, self._depth())

    def _plain(self) -> _Image:
        work, lanes, count = self.work, self.lanes, self._in_blocks()
        if work.layout == "rows":
            return _Image(count, lanes, 0, lanes, 0, work.channels)
        area = work.height * work.width
        return _Image(count, lanes, count * area * lanes, area * lanes, work.width * lanes, lanes)

    def _padded(self, source: Any) -> tuple[Any, _Image]:
        """Copies the source into a workspace with its border of zeros, and room for one vector behind it."""
        work, depth = self.work, self._depth()
        top, left, bottom, right = work.padding
        height, width = work.height + top + bottom, work.width + left + right
        count = self._in_blocks()
        image = _Image(count, depth, count * height * width * depth, height * width * depth, width * depth, depth)
        buffer = self.emitter.allocate(work.batch * image.batch + self.lanes + left * depth, self.dtype, "global")
        planes = work.batch * count
        with self.emitter.loop(planes, parallel=planes * height * width > PARALLEL_WORK) as plane:
            base = plane * image.block
            self._zeros(buffer, base, top * image.row + left * depth)
            with self.emitter.loop(work.height) as row:
                start, size = base + (row + top) * image.row + left * depth, work.width * depth
                self._copy(buffer, start, source, (plane * work.height + row) * size, size)
                if left + right:
                    self._zeros(buffer, start + size, (left + right) * depth)
            tail = (top + work.height) * image.row + left * depth
            if image.block - tail > 0:
                self._zeros(buffer, base + tail, image.block - tail)
        return buffer, image

    def _copy(self, buffer: Any, start: Any, source: Any, origin: Any, size: int) -> None:
        whole, rest = divmod(size, self.lanes)
        if whole:
            with self.emitter.loop(whole) as at:
                value = load(source, origin + at * self.lanes, self.lanes)
                self.emitter.add(store(buffer, start + at * self.lanes, value, self.lanes))
        for element in range(size - rest, size):
            self.emitter.add(store(buffer, start + element, load(source, origin + element, 1), 1))

    def _zeros(self, buffer: Any, start: Any, size: int) -> None:
        whole, rest = divmod(size, self.lanes)
        if whole:
            with self.emitter.loop(whole) as at:
                zero = broadcast(0.0, self.lanes, self.dtype)
                self.emitter.add(store(buffer, start + at * self.lanes, zero, self.lanes))
        for element in range(size - rest, size):
            self.emitter.add(store(buffer, start + element, _zero(self.dtype), 1))

    def _image(self, batch: Any) -> None:
        from tvm import tirx

        height, width = self.work.result
        parameters = self.choice.parameters
        origin = 0
        for first_q, q_count, q in split(self.out_blocks, parameters["blocks"]):
            for first_row, row_count, rows in split(height, parameters["rows"]):
                vectors = q * q_count * rows * row_count * width * self.reduction
                # Channels outermost: the weights of a group stay in the cache while the image passes.
                with self.emitter.loop(q_count * row_count, parallel=vectors > PARALLEL_WORK) as part:
                    group, row = tirx.floordiv(part, int32(row_count)), tirx.floormod(part, int32(row_count))
                    weights = group * (q * self.lanes * self.reduction) + origin
                    top = row * rows + first_row
                    for first, count, columns in split(width, parameters["columns"]):
                        with self.emitter.loop(count) as at:
                            place = (group * q + first_q, top, at * columns + first)
                            self._tile(batch, (q, rows, columns), place, weights)
            origin += q_count * q * self.lanes * self.reduction

    def _tile(self, batch: Any, tile: tuple[int, int, int], place: tuple[Any, Any, Any], weights: Any) -> None:
        q, rows, columns = tile
        block, top, left = place
        image, (down, right) = self.image, self.work.strides
        emitter = self.emitter
        sums = emitter.allocate(q * rows * columns, self.vector)
        for index in range(q):
            bias = emitter.let(load(self.bias, (block + index) * self.lanes, self.lanes))
            for pixel in range(rows * columns):
                emitter.add(store(sums, pixel * q + index, bias, 1))
        origin = batch * image.batch + top * (down * image.row) + left * (right * image.column)
        self._reduce(sums, tile, emitter.let(origin), emitter.let(weights + int32(0)))
        self._store(sums, tile, batch, place)

    def _reduce(self, sums: Any, tile: tuple[int, int, int], origin: Any, weights: Any) -> None:
        q, rows, columns = tile
        height, width = self.work.kernel
        down, right = self.work.dilations
        step = self.image.depth * q * self.lanes
        if not self.machine.by_element:
            self._reduce_looped(sums, tile, origin, weights)
            return
        unrolled = step // self.lanes * width * rows * columns <= UNROLLED or self.work.layout == "planar"
        with self.emitter.loop(self.image.blocks) as block, self.emitter.loop(height) as row:
            base = origin + block * self.image.block + row * (down * self.image.row)
            coefficients = weights + (block * height + row) * (width * step)
            if self.work.layout == "planar":
                self._taps_of_row(sums, tile, base, coefficients)
            elif unrolled:
                for tap in range(width):
                    self._tap(sums, tile, base + tap * right * self.image.column, coefficients + tap * step)
            else:
                with self.emitter.loop(width) as tap:
                    self._tap(sums, tile, base + tap * (right * self.image.column), coefficients + tap * step)

    def _reduce_looped(self, sums: Any, tile: tuple[int, int, int], origin: Any, weights: Any) -> None:
        """One scalar of every pixel at a time: of a longer body LLVM moves the broadcasts up and spills the sums.

        Of a planar source the taps are the outer loop, lest LLVM unroll them.
        """
        q, rows, columns = tile
        image, (height, width), (down, right) = self.image, self.work.kernel, self.work.dilations
        offsets, loop = [self._offset(pixel, columns) for pixel in range(rows * columns)], self.emitter.loop
        outer = width if image.depth == 1 else 1
        with loop(outer) as first, loop(image.blocks) as block, loop(height) as row, loop(width // outer) as second:
            tap = first + second
            base = origin + block * image.block + row * (down * image.row) + tap * (right * image.column)
            step = ((block * height + row) * width + tap) * image.depth
            with loop(image.depth) as index:
                scalars = [load(self.source, base + (offset + index), 1) for offset in offsets]
                self._multiply(sums, q, scalars, weights + (step + index) * (q * self.lanes))

    def _offset(self, pixel: int, columns: int) -> int:
        row, column = divmod(pixel, columns)
        return row * self.work.strides[0] * self.image.row + column * self.work.strides[1] * self.image.column

    def _tap(self, sums: Any, tile: tuple[int, int, int], base: Any, weights: Any) -> None:
        """One tap of the window, one block of channels."""
        q, rows, columns = tile
        offsets = [self._offset(pixel, columns) for pixel in range(rows * columns)]
        vectors = [self.emitter.let(load(self.source, base + offset, self.lanes)) for offset in offsets]
        for index in range(self.lanes):
            scalars = [lane(vector, index) for vector in vectors]
            self._multiply(sums, q, scalars, weights + index * q * self.lanes)

    def _taps_of_row(self, sums: Any, tile: tuple[int, int, int], base: Any, weights: Any) -> None:
        """All taps of one row of the window, for one channel whose neighbouring columns fill the vectors."""
        q, _, columns = tile
        stride, dilation = self.work.strides[1], self.work.dilations[1]
        vectors: dict[int, Any] = {}
        for tap in range(self.work.kernel[1]):
            scalars = []
            for column in range(columns):
                chunk, index = divmod(column * stride + tap * dilation, self.lanes)
                if chunk not in vectors:
                    vectors[chunk] = self.emitter.let(load(self.source, base + chunk * self.lanes, self.lanes))
                scalars.append(lane(vectors[chunk], index))
            self._multiply(sums, q, scalars, weights + tap * q * self.lanes)

    def _multiply(self, sums: Any, q: int, scalars: list[Any], weights: Any) -> None:
        """One product of every sum; where scalars are broadcast from memory, each is used up before the next."""
        factors = [self.emitter.let(load(self.weights, weights + index * self.lanes, self.lanes)) for index in range(q)]
        places = list(product(range(len(scalars)), range(q)))
        for pixel, index in places if not self.machine.by_element else sorted(places, key=lambda place: place[1]):
            at = pixel * q + index
            total = fma(factors[index], broadcast(scalars[pixel], self.lanes), load(sums, at, 1), self.vector)
            self.emitter.add(store(sums, at, total, 1))

    def _store(self, sums: Any, tile: tuple[int, int, int], batch: Any, place: tuple[Any, Any, Any]) -> None:
        q, rows, columns = tile
        block, top, left = place
        height, width = self.work.result
        for pixel in range(rows * columns):
            row, column = divmod(pixel, columns)
            for index in range(q):
                if self.work.layout == "rows":
                    at = (left + column) * self.work.filters + (block + index) * self.lanes
                else:
                    plane = batch * self.out_blocks + block + index
                    at = ((plane * height + top + row) * width + left + column) * self.lanes
                residual = None if self.residual is None else load(self.residual, at, self.lanes)
                total = load(sums, pixel * q + index, 1)
                value = finish(total, self.work.epilogue, residual, lanes=self.lanes, dtype=self.dtype)
                self.emitter.add(store(self.result, at, value, self.lanes))


def source_shape(workload: ConvWorkload, lanes: int) -> tuple[int, ...]:
    """Shape of the tensor that a kernel takes."""
    if workload.layout == "rows":
        return (workload.width, workload.channels)
    if workload.layout == "planar":
        return (workload.batch, workload.channels, workload.height, workload.width)
    return (workload.batch, blocks(workload.channels, lanes), workload.height, workload.width, lanes)


def result_shape(workload: ConvWorkload, lanes: int) -> tuple[int, ...]:
    """Shape of the tensor that a kernel gives."""
    if workload.layout == "rows":
        return (workload.width, workload.filters)
    return (workload.batch, blocks(workload.filters, lanes), *workload.result, lanes)


def _zero(dtype: str) -> Any:
    from tvm import tirx

    return tirx.const(0.0, dtype)
