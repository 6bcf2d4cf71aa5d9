"""Packed direct convolution, pointwise convolution and matrix product.

Tiling: Q blocks of output channels × P pixels (rows × columns) of sums stay in registers over the whole reduction. A
pixel's vector holds L input channels (blocked, rows) or L neighbouring columns of one channel (planar); each of its
lanes multiplies Q weight vectors, which are packed in the order they are read.

Registers: Q·P sums, the P pixels, Q + 1 for weights on their way: with fewer left over LLVM keeps sums in memory.
Instructions per L products of one tap: L·P·Q multiply-adds, P loads of pixels (half as many where pairs of neighbours
are loaded) and L·Q/2 of weights.
Roofline: the multiply-adds over the core's FMA rate; the weights of one tile are streamed from the second-level cache.
A padded source is copied into a workspace with its border of zeros first, and so are rows that end within a vector.
Rows of results that do are stored without what is past their end: their last block is a tile of its own.
Groups of channels are convolved one after the other; neighbours that do not fill blocks are taken together, with zeros
for the weights between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, product
from math import prod
from typing import Any

import numpy as np

from compiler.target import Array
from targets.arm_tvm.kernels.emitter import PARALLEL_WORK, Emitter, broadcast, fma, gather, int32, lane, load, store
from targets.arm_tvm.kernels.floating_point import depthwise
from targets.arm_tvm.kernels.floating_point.epilogue import finish
from targets.arm_tvm.kernels.floating_point.int8_weights import LOADED, PANEL_COST, WIDENING, widened, widened_panel
from targets.arm_tvm.kernels.floating_point.sources import padded_source, result_shape, source_shape
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload, blocks, packed_bytes
from targets.arm_tvm.kernels.machine import Machine

MAX_CHOICES = 24
"""Choices of one workload: each of them is compiled and measured when it is tuned."""
TILE_OVERHEAD = 14
"""Instructions of a tile besides loads, multiply-adds and stores: its offsets and the loop around it."""
LOOP_OVERHEAD = 4
"""Instructions of one iteration that are no arithmetic: counter, offsets, branch."""
LEAST_PARALLEL = 8
"""Parts that a large kernel should have at least: two for each core of a small board."""
UNROLLED = 600
"""Multiply-adds written out in one loop's body, at most."""


def choices(workload: ConvWorkload, machine: Machine, *, like: Choice | None = None) -> tuple[Choice, ...]:
    """Register tiles that fit, the cheapest first; none for depthwise convolutions, which have a family.

    Args:
        workload: What is computed.
        machine: Where.
        like: The choice for the same weights whose packing must do; None: any packing.
    """
    lanes = machine.lanes(workload.dtype)
    if workload.groups > 1 and depthwise.applies(workload):
        return ()
    height, width = _flat(workload).result
    sources = blocks(_part(workload, lanes).channels, _depth(workload, lanes)) * _depth(workload, lanes)
    size = packed_bytes(workload, lanes, workload.kernel[0] * workload.kernel[1], sources=sources)
    fitting = [
        Choice(
            "direct", {"blocks": q, "rows": rows, "columns": columns}, _cost(workload, machine, q, rows, columns), size
        )
        for q in range(1, min(8, blocks(_part(workload, lanes).filters, lanes)) + 1)
        if like is None or q == like.parameters["blocks"]
        # A planar vector holds neighbouring columns of one row, so a planar tile is one row.
        for rows in range(1, min(4 if workload.layout != "planar" else 1, height) + 1)
        for columns in range(1, min(machine.registers, width) + 1)
        if registers(workload, machine, q, rows * columns) <= machine.registers
    ]
    return tuple(sorted(fitting, key=lambda choice: choice.cost)[:MAX_CHOICES])


def registers(workload: ConvWorkload, machine: Machine, q: int, pixels: int) -> int:
    """Vector registers that a tile of `q` blocks of output channels and so many pixels takes."""
    lanes = machine.lanes(workload.dtype)
    if not machine.by_element:
        # Scalars come from memory: only the one in use takes a register.
        return q * pixels + q + 1
    if workload.weights and not has_panel(workload, pixels):
        # All weights of one load are widened together.
        return (q + 1) * pixels + max(q, LOADED // lanes) + 2
    if workload.layout == "planar":
        # 3: with 2 LLVM keeps sums of the longest tiles in memory.
        return q * pixels + _chunks(workload, lanes, pixels) + 3
    return (q + 1) * pixels + q + 1


def has_panel(workload: ConvWorkload, pixels: int) -> bool:
    """Whether int8 weights are read by several tiles of so many pixels: then they are widened once, into memory."""
    height, width = workload.result
    return bool(workload.weights) and height * width > pixels


def _chunks(workload: ConvWorkload, lanes: int, columns: int) -> int:
    reach = (columns - 1) * workload.strides[1] + (workload.kernel[1] - 1) * workload.dilations[1] + 1
    return blocks(reach, lanes)


def _cost(workload: ConvWorkload, machine: Machine, q: int, rows: int, columns: int) -> float:
    lanes = machine.lanes(workload.dtype)
    flat = _part(_flat(workload), lanes)
    height, width = flat.result
    total = 0.0
    for _, row_count, tile_rows in split(height, rows):
        for _, column_count, tile_columns in split(width, columns):
            for _, q_count, tile_q in _block_groups(flat, lanes, q):
                tile = _tile_cost(flat, machine, tile_q, tile_rows, tile_columns)
                total += row_count * column_count * q_count * tile
    if has_panel(flat, rows * columns):
        total += (
            blocks(flat.channels, lanes)
            * prod(flat.kernel)
            * lanes
            * blocks(flat.filters, lanes)
            * (lanes * PANEL_COST)
        )
    terms = workload.channels // workload.groups * workload.kernel[0] * workload.kernel[1]
    weights = blocks(workload.filters, lanes) * lanes * terms
    return total * workload.batch * (workload.channels // flat.channels) + machine.streaming_cost(
        weights, workload.dtype
    )


def _tile_cost(flat: ConvWorkload, machine: Machine, q: int, rows: int, columns: int) -> float:
    lanes, pixels = machine.lanes(flat.dtype), rows * columns
    taps = flat.kernel[0] * flat.kernel[1]
    pair = 2 if machine.pairs else 1
    if flat.layout == "planar":
        steps = flat.channels * flat.kernel[0]
        loads = _chunks(flat, lanes, columns) if machine.by_element else pixels * flat.kernel[1]
        inner: float = flat.kernel[1] * (pixels * q + -(-q // pair)) + loads + LOOP_OVERHEAD
    else:
        steps = blocks(flat.channels, lanes) * taps
        adjacent = pair if flat.layout == "blocked" and flat.strides[1] == 1 else 1
        loads = rows * -(-columns // adjacent) if machine.by_element else pixels * lanes
        weights: float = lanes * q // pair
        if flat.weights and not has_panel(flat, pixels):
            weights = lanes**2 * q * WIDENING[flat.dtype]
        inner = lanes * pixels * q + loads + weights + -(-LOOP_OVERHEAD // flat.kernel[1])
    finish_cost = pixels * q * (1 + len(flat.epilogue)) + q
    return steps * inner + finish_cost + TILE_OVERHEAD


def split(size: int, tile: int) -> list[tuple[int, int, int]]:
    """(first, count, tile) of whole tiles and of the rest."""
    whole, rest = divmod(size, tile)
    parts = [(0, whole, tile)] if whole else []
    return [*parts, (whole * tile, 1, rest)] if rest else parts


def _block_groups(workload: ConvWorkload, lanes: int, q: int) -> list[tuple[int, int, int]]:
    """The blocks of output channels, `q` at a time; one that is not full ends a row of results, and is alone."""
    total = blocks(workload.filters, lanes)
    if workload.layout != "rows" or workload.filters % lanes == 0:
        return split(total, q)
    return [*split(total - 1, q), (total - 1, 1, 1)]


def _flat(workload: ConvWorkload) -> ConvWorkload:
    """A pointwise convolution over all pixels as over one row of them."""
    plain = workload.kernel == workload.strides == (1, 1) and not any(workload.padding)
    if workload.layout != "blocked" or not plain:
        return workload
    # Rows of the image follow each other in memory, so a tile need not end where a row does.
    return replace(workload, height=1, width=workload.height * workload.width)


def _depth(workload: ConvWorkload, lanes: int) -> int:
    return 1 if workload.layout == "planar" else lanes


def _part(workload: ConvWorkload, lanes: int) -> ConvWorkload:
    """The convolution of one part of the channels: of as many neighbouring groups as fill whole blocks."""
    groups, sizes = workload.groups, (workload.channels // workload.groups, workload.filters // workload.groups)
    # The fewest groups that fill blocks: each further one adds products with zeros.
    for merged in range(1, groups):
        if groups % merged == 0 and all(merged * size % lanes == 0 for size in sizes) and workload.layout == "blocked":
            return replace(workload, channels=merged * sizes[0], filters=merged * sizes[1], groups=merged)
    return workload


def pack(workload: ConvWorkload, choice: Choice, weights: Array, machine: Machine) -> Array:
    """The weights of one part after the other; those between different groups are zeros."""
    part = _part(workload, machine.lanes(workload.dtype))
    parts = np.split(weights, workload.filters // part.filters)
    return np.concatenate([_pack_part(part, choice, _dense(weight, part.groups), machine) for weight in parts])


def _dense(weights: Array, groups: int) -> Array:
    """Grouped weights as those of one group."""
    if groups == 1:
        return weights
    filters, channels, *window = weights.shape
    full = np.zeros((groups, filters // groups, groups, channels, *window), weights.dtype)
    for group, own in enumerate(np.split(weights, groups)):
        full[group, :, group] = own
    return full.reshape(filters, groups * channels, *window)


def _pack_part(workload: ConvWorkload, choice: Choice, weights: Array, machine: Machine) -> Array:
    """Weights in the order of the loops: channel blocks Q by Q, input blocks, taps, lanes, Q, output lanes."""
    lanes = machine.lanes(workload.dtype)
    depth = _depth(workload, lanes)
    out_blocks, in_blocks = blocks(workload.filters, lanes), blocks(workload.channels, depth)
    rows, columns = workload.kernel
    full = np.zeros((out_blocks * lanes, in_blocks * depth, rows, columns), workload.weights or workload.dtype)
    full[: workload.filters, : workload.channels] = weights
    tiled = full.reshape(out_blocks, lanes, in_blocks, depth, rows, columns)
    parts = [
        tiled[first : first + count * q]
        .reshape(count, q, lanes, in_blocks, depth, rows, columns)
        .transpose(0, 3, 5, 6, 4, 1, 2)
        .ravel()
        for first, count, q in _block_groups(workload, lanes, choice.parameters["blocks"])
    ]
    return np.ascontiguousarray(np.concatenate(parts))


def emit(workload: ConvWorkload, choice: Choice, machine: Machine) -> Any:
    """The kernel."""
    return Direct(workload, choice, machine).function()


class Direct:
    """One kernel while it is written."""

    def __init__(self, workload: ConvWorkload, choice: Choice, machine: Machine) -> None:
        self.workload, self.work, self.choice, self.machine = workload, _flat(workload), choice, machine
        self.lanes, self.dtype = machine.lanes(workload.dtype), workload.dtype
        self.vector = f"{self.dtype}x{self.lanes}"
        self.part = _part(self.work, self.lanes)
        self.parts = workload.filters // self.part.filters
        self.out_blocks = blocks(self.part.filters, self.lanes)
        self.panel: Any = None
        self.emitter = Emitter()

    def function(self) -> Any:
        """The PrimFunc."""
        source = self.emitter.parameter(source_shape(self.workload, self.lanes), self.dtype, "x")
        depth = _depth(self.work, self.lanes)
        self.in_blocks = blocks(self.part.channels, depth)
        self.reduction = depth * self.in_blocks * self.work.kernel[0] * self.work.kernel[1]
        results = self.parts * self.out_blocks * self.lanes
        self.weights = self.emitter.parameter((results * self.reduction,), self.work.weights or self.dtype, "w")
        self.factors = self.emitter.parameter((results,), self.dtype, "factors") if self.work.weights else None
        self.bias = self.emitter.parameter((results,), self.dtype, "bias")
        shape = result_shape(self.workload, self.lanes)
        self.residual = self.emitter.parameter(shape, self.dtype, "r") if "add" in self.workload.epilogue else None
        self.result = self.emitter.parameter(shape, self.dtype, "y")
        self._read(source)
        with self.emitter.loop(self.work.batch) as batch, self.emitter.loop(self.parts) as part:
            self._image(batch, part)
        return self.emitter.function()

    def _read(self, source: Any) -> None:
        """Settles what the tiles read."""
        self.source, self.image = padded_source(self.emitter, source, self.work, self.lanes)

    def _image(self, batch: Any, part: Any) -> None:
        width, (rows_of_tile, columns_of_tile) = self.work.result[1], self._tile_size()
        origin, own = 0, part * (self.out_blocks * self.lanes * self.reduction)
        for first_q, q_count, q in _block_groups(self.part, self.lanes, self.choice.parameters["blocks"]):
            for first_row, row_count, rows in split(self.work.result[0], rows_of_tile):
                for group, row, of_columns, weights in self._groups((q_count, q, row_count, rows), origin + own):
                    top = row * rows + first_row
                    for first, count, columns in split(width, columns_of_tile):
                        with self._tiles_of_row(first, count, of_columns) as at:
                            place = (group * q + first_q, top, at * columns + first)
                            self.valid_lanes = min(self.lanes, self._results_from(first_q))
                            self._tile((batch, part), (q, rows, columns), place, weights)
            origin += q_count * q * self.lanes * self.reduction

    def _tile_size(self) -> tuple[int, int]:
        return self.choice.parameters["rows"], self.choice.parameters["columns"]

    def _groups(
        self, counts: tuple[int, int, int, int], origin: Any
    ) -> Iterator[tuple[Any, Any, tuple[Any, int], Any]]:
        """Opens the loops over groups of output blocks, rows of tiles and parts of a row.

        Channels outermost: the weights of a group stay in the cache while the image passes. Few groups of few rows
        would leave cores idle, as of a pointwise convolution, whose pixels are one row: then a row is cut into parts.

        Yields:
            The group, the row, the part with how many of them a row has, and the offset of the weights.
        """
        from tvm import tirx

        q_count, q, row_count, rows = counts
        size = q * self.lanes * self.reduction
        heavy = q * q_count * rows * row_count * self.work.result[1] * self.reduction > PARALLEL_WORK
        if has_panel(self.work, prod(self._tile_size())):
            # Few groups would leave cores idle: each is cut into parts of the rows, which widen its weights again.
            parts = min(row_count, -(-LEAST_PARALLEL // q_count)) if heavy else 1
            each = -(-row_count // parts)
            with self.emitter.loop(q_count * parts, parallel=heavy) as step:
                group, part = tirx.floordiv(step, int32(parts)), tirx.floormod(step, int32(parts))
                self._widen(group * size + origin, q)
                with self.emitter.loop(each) as index:
                    row = part * each + index
                    with self.emitter.when(None if parts * each == row_count else row < row_count):
                        yield group, row, (int32(0), 1), int32(0)
            return
        parts = min(self._tiles_across(), -(-LEAST_PARALLEL // (q_count * row_count))) if heavy else 1
        with self.emitter.loop(q_count * row_count * parts, parallel=heavy) as step:
            line, part = tirx.floordiv(step, int32(parts)), tirx.floormod(step, int32(parts))
            group, row = tirx.floordiv(line, int32(row_count)), tirx.floormod(line, int32(row_count))
            yield group, row, (part, parts), group * size + origin

    def _tiles_across(self) -> int:
        return blocks(self.work.result[1], self._tile_size()[1])

    @contextmanager
    def _tiles_of_row(self, first: int, count: int, of_columns: tuple[Any, int]) -> Iterator[Any]:
        """The loop over those of `count` tiles, from a column on, that are in one of the equal parts of a row."""
        from tvm import tirx

        part, parts = of_columns
        if parts == 1:
            with self.emitter.loop(count) as at:
                yield at
        elif first > 0:  # what whole tiles leave of the row
            with self.emitter.when(part == parts - 1):
                yield int32(0)
        else:
            begin, end = (tirx.floordiv(index * self._tiles_across(), int32(parts)) for index in (part, part + 1))
            begin = self.emitter.let(begin)
            with self.emitter.loop(tirx.min(end, int32(count)) - begin) as index:
                yield begin + index

    def _widen(self, at: Any, q: int) -> None:
        """Makes floats of the weights of a group of `q` blocks."""
        vectors, start = q * self.reduction, self.emitter.let(at + int32(0))
        self.panel = widened_panel(
            self.emitter, self.weights, start, vectors=vectors, lanes=self.lanes, dtype=self.dtype
        )

    def _results_from(self, block: int) -> int:
        """Elements of a row of results from a block on."""
        return self.work.filters - block * self.lanes if self.work.layout == "rows" else self.lanes

    def _tile(self, of: tuple[Any, Any], tile: tuple[int, int, int], place: tuple[Any, Any, Any], weights: Any) -> None:
        """One tile of an image of the batch, of a part of its channels."""
        (batch, part), (q, rows, columns) = of, tile
        top, left = place[1:]
        block = part * self.out_blocks + place[0]
        image, (down, right) = self.image, self.work.strides
        emitter = self.emitter
        sums = emitter.allocate(q * rows * columns, self.vector)
        for index in range(q):
            bias = self._first_sum(block + index)
            for pixel in range(rows * columns):
                emitter.add(store(sums, pixel * q + index, bias, 1))
        origin = (
            batch * image.batch
            + part * (self.in_blocks * image.block)
            + top * (down * image.row)
            + left * (right * image.column)
        )
        self._reduce(sums, tile, emitter.let(origin), emitter.let(weights + int32(0)))
        self._store(sums, tile, batch, (block, top, left))

    def _first_sum(self, block: Any) -> Any:
        """What the sums of a vector of filters begin with: the bias, which saves its addition, or zero."""
        # Sums of integers are scaled before the bias is added.
        zero = broadcast(0.0, self.lanes, self.dtype)
        return self.emitter.let(load(self.bias, block * self.lanes, self.lanes) if self.factors is None else zero)

    def _reduce(self, sums: Any, tile: tuple[int, int, int], origin: Any, weights: Any) -> None:
        q, rows, columns = tile
        height, width = self.work.kernel
        down, right = self.work.dilations
        step = self.image.depth * q * self.lanes
        if not self.machine.by_element:
            self._reduce_looped(sums, tile, origin, weights)
            return
        unrolled = step // self.lanes * width * rows * columns <= UNROLLED or self.work.layout == "planar"
        with self.emitter.loop(self.in_blocks) as block, self.emitter.loop(height) as row:
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
        with loop(outer) as first, loop(self.in_blocks) as block, loop(height) as row, loop(width // outer) as second:
            tap = first + second
            base = origin + block * image.block + row * (down * image.row) + tap * (right * image.column)
            step = ((block * height + row) * width + tap) * image.depth
            with loop(image.depth) as index:
                scalars = [load(self.source, base + (offset + index), 1) for offset in offsets]
                factors = list(self._factors(weights + (step + index) * (q * self.lanes), q))
                self._multiply(sums, q, scalars, factors)

    def _offset(self, pixel: int, columns: int) -> int:
        row, column = divmod(pixel, columns)
        down, right = self.work.strides
        return row * down * self.image.row + column * right * self.image.column

    def _tap(self, sums: Any, tile: tuple[int, int, int], base: Any, weights: Any) -> None:
        """One tap of the window, one block of channels."""
        q, rows, columns = tile
        offsets = [self._offset(pixel, columns) for pixel in range(rows * columns)]
        vectors = [self.emitter.let(load(self.source, base + offset, self.lanes)) for offset in offsets]
        factors = self._factors(weights, self.lanes * q)
        for index in range(self.lanes):
            self._multiply(sums, q, [lane(vector, index) for vector in vectors], list(islice(factors, q)))

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
            self._multiply(sums, q, scalars, list(self._factors(weights + tap * q * self.lanes, q)))

    def _factors(self, at: Any, vectors: int) -> Iterator[Any]:
        """Neighbouring vectors of weights, loaded when they are asked for."""
        if self.work.weights and self.panel is None:
            return widened(self.emitter, self.weights, at, vectors=vectors, lanes=self.lanes, dtype=self.dtype)
        buffer = self.weights if self.panel is None else self.panel
        places = (at + index * self.lanes for index in range(vectors))
        return (self.emitter.let(load(buffer, place, self.lanes)) for place in places)

    def _multiply(self, sums: Any, q: int, scalars: list[Any], factors: list[Any]) -> None:
        """One product of every sum; where scalars are broadcast from memory, each is used up before the next."""
        places = list(product(range(len(scalars)), range(q)))
        # By element: one vector of weights after the other, so that its register is free early. Else: one scalar after
        # the other, for the same reason.
        for pixel, index in places if not self.machine.by_element else sorted(places, key=lambda place: place[1]):
            self._accumulate(sums, pixel * q + index, factors[index], broadcast(scalars[pixel], self.lanes))

    def _accumulate(self, sums: Any, at: int, left: Any, right: Any) -> None:
        """One sum plus one product."""
        self.emitter.add(store(sums, at, fma(left, right, load(sums, at, 1), self.vector), 1))

    def _store(self, sums: Any, tile: tuple[int, int, int], batch: Any, place: tuple[Any, Any, Any]) -> None:
        q, rows, columns = tile
        block, top, left = place
        height, width = self.work.result
        scales = [self._scale((block + index) * self.lanes) for index in range(q)]
        for pixel in range(rows * columns):
            row, column = divmod(pixel, columns)
            for index in range(q):
                if self.work.layout == "rows":
                    at = (left + column) * self.work.filters + (block + index) * self.lanes
                else:
                    plane = batch * (self.parts * self.out_blocks) + block + index
                    at = ((plane * height + top + row) * width + left + column) * self.lanes
                residual = None if self.residual is None else self._part(self.residual, at)
                total = load(sums, pixel * q + index, 1)
                if (scale := scales[index]) is not None:
                    total = fma(total, *scale, self.vector)
                value = finish(self.emitter, total, self.work.epilogue, residual, lanes=self.lanes, dtype=self.dtype)
                self._store_part(at, value)

    def _scale(self, at: Any) -> tuple[Any, Any] | None:
        """Factor and bias of a vector of filters; None where sums begin with their bias and have no factor."""
        if self.factors is None:
            return None
        factor, bias = (self.emitter.let(load(buffer, at, self.lanes)) for buffer in (self.factors, self.bias))
        return factor, bias

    def _part(self, buffer: Any, at: Any) -> Any:
        """A vector of which only the elements that exist are read."""
        if self.valid_lanes == self.lanes:
            return load(buffer, at, self.lanes)
        # Lanes past the end repeat the last element: nothing behind the tensor is read.
        scalars = [load(buffer, at + min(index, self.valid_lanes - 1), 1) for index in range(self.lanes)]
        return self.emitter.let(gather(scalars))

    def _store_part(self, at: Any, value: Any) -> None:
        if self.valid_lanes == self.lanes:
            self.emitter.add(store(self.result, at, value, self.lanes))
            return
        vector = self.emitter.let(value)
        for index in range(self.valid_lanes):
            self.emitter.add(store(self.result, at + index, lane(vector, index), 1))
