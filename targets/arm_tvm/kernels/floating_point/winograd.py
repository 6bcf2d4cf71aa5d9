"""3×3 convolutions of stride 1 as Winograd F(m×m, 3×3), on blocked activations (N, C/L, H, W, L).

Tiling. The result is cut into tiles of m × m; a band is `rows` rows of tiles. For each band
    V[ξ][ic/L][tile][L]    = B^T d B       (ξ = 0 … n² - 1, n = m + 2), vectors of L channels
    M[ξ][oc][tile][L]      = Σ_ic U · V    n² products of matrices, for `blocks` blocks of output channels at a time
    y                      = A^T M A       followed by the epilogue, before the next blocks overwrite M
The matrices of V and M are one vector more apart than they are long: no powers of two, which would share cache sets.
V and M of a band stay in the caches; U (n²/9 of the weights) is read once per band. It is transformed at compile time,
or by the kernel, one group of output blocks at a time: then the file has the weights as they are. Tiles over the
border are code of their own, in which what lies outside is known to be zero: nothing is padded.

Registers of the product: blocks × tiles sums, `tiles` data vectors whose lanes are multiplied one after the other, and
`blocks` + 1 for weights on their way: 18 + 9 + 3 of 32 where there are 9 tiles. Per block of input channels: tiles/2
and L · blocks/2 paired loads for L · blocks · tiles multiply-adds.

Roofline: n² / (9 m²) of the direct convolution's multiply-adds (1/4 at m = 4, 16/81 at m = 6), bound by the multipliers
as long as 4 tiles share each weight, and by the loads of U below that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby, product
from math import ceil
from typing import Any

import numpy as np

from compiler.target import Array
from targets.arm_tvm.kernels.cook_toom import weight_matrix
from targets.arm_tvm.kernels.emitter import PARALLEL_WORK, Emitter, broadcast, fma, int32, lane, load, store
from targets.arm_tvm.kernels.floating_point.epilogue import finish
from targets.arm_tvm.kernels.floating_point.int8_weights import WIDENING, widened
from targets.arm_tvm.kernels.floating_point.sources import result_shape, source_shape
from targets.arm_tvm.kernels.floating_point.spans import Span, find_spans
from targets.arm_tvm.kernels.floating_point.winograd_transforms import (
    transform_input,
    transform_output,
    transform_weights,
)
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload, blocks, packed_bytes
from targets.arm_tvm.kernels.machine import Machine

TILE_SIZES = {"float32": (2, 4, 6), "float16": (2, 4)}
"""Values of m. In float16 the transforms of m = 6 lose too many bits."""
MAX_CHOICES = 24
"""Choices of one workload: each of them is compiled and measured when it is tuned."""
MAX_TILES, MAX_BLOCKS = 12, 8
"""Tiles and blocks of output channels of one product of matrices, at most: they bound the search."""
BAND_BYTES = 256 * 1024
"""Most that V of one band should take: it is read once per `blocks` output blocks, from the second-level cache."""
UNROLLED = 4
"""Largest m whose transforms are written out; beyond, registers do not hold a tile and rows are looped over."""
INPUT_COST, OUTPUT_COST = {2: 70.0, 4: 200.0, 6: 660.0}, {2: 50.0, 4: 180.0, 6: 560.0}
"""Instructions to transform one tile of one vector."""
WEIGHT_COST = {2: 46.0, 4: 112.0, 6: 200.0}
"""Instructions to transform one vector of weights."""
GROUP_BYTES = 160 * 1024
"""Most that U of one group of output blocks should take where the kernel makes it: each thread has one, and reads it
from the second-level cache, beside V."""
LATE = "late"
"""Parameter: 1 where U is made when the kernel runs, of weights that take no more bytes than in the model."""
TAPS = 9
"""Weights of a filter for one channel."""

_PACKED_BY = ("m", "blocks", LATE)
"""Parameters that decide how weights are packed."""


def choices(workload: ConvWorkload, machine: Machine, *, like: Choice | None = None) -> tuple[Choice, ...]:
    """Tile sizes, bands and register tiles that fit, the cheapest first; none where the method does not apply.

    Args:
        workload: What is computed.
        machine: Where.
        like: The choice for the same weights whose packing must do; None: any packing.
    """
    if not _applies(workload):
        return ()
    lanes = machine.lanes(workload.dtype)
    groups = [q for q in range(1, MAX_BLOCKS + 1) if blocks(workload.filters, lanes) % q == 0]
    # Weights of bytes are small in the file for being no transforms.
    ways: tuple[dict[str, int], ...] = ({},) if workload.weights else ({}, {LATE: 1})
    fitting = [
        Choice("winograd", parameters, _cost(workload, machine, parameters), _bytes(workload, lanes, parameters))
        for m in TILE_SIZES[workload.dtype]
        for rows in _bands(workload, lanes, m)
        for tiles, q in product(range(1, MAX_TILES + 1), groups)
        if _registers(machine, tiles, q) <= machine.registers
        for way in ways
        for parameters in [{"m": m, "rows": rows, "tiles": tiles, "blocks": q, **way}]
        if q == 1 or not _is_late(workload, parameters) or _group_bytes(workload, lanes, m, q) <= GROUP_BYTES
        if like is None or all(parameters.get(name) == like.parameters.get(name) for name in _PACKED_BY)
    ]
    ranked = sorted(fitting, key=_by_cost)
    # Under a limit of bytes a smaller tile, whose transform enlarges weights less, may be the fastest that is left.
    best = {(choice.parameters["m"], choice.weight_bytes): choice for choice in reversed(ranked)}
    first = ranked[: MAX_CHOICES - len(best)]
    return tuple(sorted([*first, *(choice for choice in best.values() if choice not in first)], key=_by_cost))


def _group_bytes(workload: ConvWorkload, lanes: int, m: int, q: int) -> int:
    """Of U for `q` blocks of output channels."""
    sources = blocks(workload.channels, lanes) * lanes
    return (m + 2) ** 2 * sources * q * lanes * np.dtype(workload.dtype).itemsize


def _is_late(workload: ConvWorkload, parameters: Mapping[str, int]) -> bool:
    """Whether weights are transformed when the kernel runs."""
    return bool(workload.weights or parameters.get(LATE))


def _bytes(workload: ConvWorkload, lanes: int, parameters: Mapping[str, int]) -> int:
    positions = TAPS if _is_late(workload, parameters) else (parameters["m"] + 2) ** 2
    return packed_bytes(workload, lanes, positions, sources=blocks(workload.channels, lanes) * lanes)


def _by_cost(choice: Choice) -> float:
    return choice.cost


def _applies(work: ConvWorkload) -> bool:
    plain = work.kernel == (3, 3) and work.strides == work.dilations == (1, 1) and work.groups == 1
    return plain and work.layout == "blocked" and max(work.padding) <= 2 and work.dtype in TILE_SIZES


def _bands(workload: ConvWorkload, lanes: int, m: int) -> list[int]:
    """Numbers of rows of tiles whose V fits, at least 1."""
    down, across = (ceil(size / m) for size in workload.result)
    row_bytes = (m + 2) ** 2 * blocks(workload.channels, lanes) * lanes * across * np.dtype(workload.dtype).itemsize
    return [rows for rows in range(1, down + 1) if rows == 1 or rows * row_bytes <= BAND_BYTES]


def _registers(machine: Machine, tiles: int, q: int) -> int:
    return tiles * q + q + 1 + (tiles if machine.by_element else 0)


def _cost(workload: ConvWorkload, machine: Machine, parameters: Mapping[str, int]) -> float:
    lanes, m, q = machine.lanes(workload.dtype), parameters["m"], parameters["blocks"]
    down, across = (ceil(size / m) for size in workload.result)
    sources, results = blocks(workload.channels, lanes), blocks(workload.filters, lanes)
    bands, pair = ceil(down / parameters["rows"]), 2 if machine.pairs else 1
    total = down * across * (sources * INPUT_COST[m] + results * (OUTPUT_COST[m] + m * m * len(workload.epilogue)))
    for tiles in split_evenly(parameters["rows"] * across, parameters["tiles"]):
        loads = ceil(tiles / pair) + lanes * ceil(q / pair) if machine.by_element else lanes * (tiles + q)
        # 2 · tiles · q: the sums are zeroed and stored. 4 and 12: the loops and their offsets.
        part = sources * (lanes * tiles * q + loads + 4) + 2 * tiles * q + 12
        total += bands * results // q * (m + 2) ** 2 * part
    if _is_late(workload, parameters):
        widening = TAPS * lanes * WIDENING[workload.dtype] if workload.weights else 0.0
        total += bands * sources * results * lanes * (WEIGHT_COST[m] + widening)
    # U is read from memory once per band.
    weights = bands * (m + 2) ** 2 * sources * results * lanes**2
    return workload.batch * (total + machine.streaming_cost(weights, workload.dtype))


def pack(workload: ConvWorkload, choice: Choice, weights: Array, machine: Machine) -> Array:
    """U as the kernel reads it: [group of output blocks][ξ][ic][output block][L], flat."""
    lanes, q, m = machine.lanes(workload.dtype), choice.parameters["blocks"], choice.parameters["m"]
    if _is_late(workload, choice.parameters):
        return _pack_taps(workload, weights, lanes, q)
    matrix = weight_matrix(m)
    # In float64, so that U is rounded once: to the type it is stored in.
    transformed = (matrix @ weights.astype(np.float64) @ matrix.T).transpose(2, 3, 0, 1)
    size, sources = (m + 2) ** 2, blocks(workload.channels, lanes) * lanes
    padded = np.zeros((size, blocks(workload.filters, lanes) * lanes, sources))
    padded[:, : workload.filters, : workload.channels] = transformed.reshape(size, *weights.shape[:2])
    groups = padded.reshape(size, -1, q, lanes, sources)
    return np.ascontiguousarray(groups.transpose(1, 0, 4, 2, 3).ravel().astype(workload.dtype))


def _pack_taps(workload: ConvWorkload, weights: Array, lanes: int, q: int) -> Array:
    """The weights as they are: [group of output blocks][ic][output block][tap][L], flat."""
    results, sources = blocks(workload.filters, lanes) * lanes, blocks(workload.channels, lanes) * lanes
    full = np.zeros((results, sources, TAPS), workload.weights or workload.dtype)
    full[: workload.filters, : workload.channels] = weights.reshape(*weights.shape[:2], TAPS)
    groups = full.reshape(-1, q, lanes, sources, TAPS)
    return np.ascontiguousarray(groups.transpose(0, 3, 1, 4, 2).ravel())


def emit(workload: ConvWorkload, choice: Choice, machine: Machine) -> Any:
    """The kernel."""
    return _Winograd(workload, choice, machine).function()


class _Winograd:
    """One kernel while it is written."""

    def __init__(self, workload: ConvWorkload, choice: Choice, machine: Machine) -> None:
        self.work, self.machine = workload, machine
        self.m, self.q, self.tiles = (choice.parameters[name] for name in ("m", "blocks", "tiles"))
        self.is_late = _is_late(workload, choice.parameters)
        self.n, self.lanes, self.dtype = self.m + 2, machine.lanes(workload.dtype), workload.dtype
        self.looped = self.m > UNROLLED
        (height, width), (top, left, _, _) = workload.result, workload.padding
        self.tile_rows = _spans(height, workload.height, top, self.m)
        self.tile_columns = _spans(width, workload.width, left, self.m)
        self.down, self.across = _count(self.tile_rows), _count(self.tile_columns)
        self.rows = min(choice.parameters["rows"], self.down)
        self.band = self.rows * self.across
        self.sources, self.results = blocks(workload.channels, self.lanes), blocks(workload.filters, self.lanes)
        self.v_step, self.m_step = ((self.band * count + 1) * self.lanes for count in (self.sources, self.q))
        self.emitter = Emitter()

    def function(self) -> Any:
        emitter, lanes, shape = self.emitter, self.lanes, result_shape(self.work, self.lanes)
        self.source = emitter.parameter(source_shape(self.work, lanes), self.dtype, "x")
        size = (TAPS if self.is_late else self.n**2) * self.sources * self.results * lanes**2
        self.weights = emitter.parameter((size,), self.work.weights or self.dtype, "w")
        self.factors = None
        if self.work.weights:
            self.factors = emitter.parameter((self.results * lanes,), self.dtype, "factors")
        self.bias = emitter.parameter((self.results * lanes,), self.dtype, "bias")
        self.residual = emitter.parameter(shape, self.dtype, "r") if "add" in self.work.epilogue else None
        self.result = emitter.parameter(shape, self.dtype, "y")
        bands = ceil(self.down / self.rows)
        heavy = self.n**2 * self.sources * self.results * lanes * self.down * self.across > PARALLEL_WORK
        groups = self.results // self.q
        # One band has nothing to spread over the threads but its groups of output blocks, and one group its products.
        is_one_band = heavy and bands == 1
        in_products = is_one_band and groups == 1
        with emitter.loop(self.work.batch) as image, emitter.loop(bands, parallel=heavy) as band:
            v = self._workspace(self.n**2 * self.v_step // lanes)
            self._transform_sources(v, image, band)
            with emitter.loop(groups, parallel=is_one_band) as group:
                self.u = self._transform_weights(group) if self.is_late else None
                m = self._workspace(self.n**2 * self.m_step // lanes)
                with emitter.loop(self.n**2, parallel=in_products) as xi:
                    self._multiply_all(m, v, group, xi)
                self._transform_results(m, (image, group), band, parallel=in_products)
        return emitter.function()

    def _transform_weights(self, group: Any) -> Any:
        """U of one group of output blocks, as `pack` has it where U is in the file."""
        emitter, lanes, channels = self.emitter, self.lanes, self.sources * self.lanes
        u = self._workspace(self.n**2 * channels * self.q)
        with emitter.loop(channels) as channel, emitter.loop(self.q) as vector:
            place = emitter.let(channel * self.q + vector)
            first = emitter.let((group * (channels * self.q) + place) * (TAPS * lanes))
            taps = self._taps(first)
            target = emitter.let(place * lanes)
            for cells in zip(*(self._transformed_weights(taps[column::3]) for column in range(3)), strict=True):
                i = cells[0][0]
                for j, value in self._transformed_weights([value for _, value in cells]):
                    self._store(u, target + (i * self.n + j) * (channels * self.q * lanes), value)
        return u

    def _taps(self, first: Any) -> list[Any]:
        """The weights of a vector of filters for one channel."""
        if self.work.weights:
            taps = widened(self.emitter, self.weights, first, vectors=TAPS, lanes=self.lanes, dtype=self.dtype)
            return [*taps]
        return [self._vector(self.weights, first + tap * self.lanes) for tap in range(TAPS)]

    def _transformed_weights(self, values: list[Any]) -> Iterator[tuple[int, Any]]:
        return transform_weights(self.emitter, values, m=self.m, dtype=self.dtype, lanes=self.lanes)

    def _workspace(self, vectors: int) -> Any:
        return self.emitter.allocate(vectors * self.lanes, self.dtype, "global")

    def _vector(self, buffer: Any, offset: Any) -> Any:
        return self.emitter.let(load(buffer, offset, self.lanes))

    def _store(self, buffer: Any, offset: Any, value: Any) -> None:
        zero = broadcast(0.0, self.lanes, self.dtype)
        self.emitter.add(store(buffer, offset, zero if value is None else value, self.lanes))

    def _transform_sources(self, v: Any, image: Any, band: Any) -> None:
        half = self._workspace(self.n**2) if self.looped else None
        with self.emitter.loop(self.sources) as block, self.emitter.loop(self.rows) as row:
            plane = (image * self.sources + block) * self.work.height
            for rows, columns, ty, tx in self._kinds(band, row):
                line, column = ty * self.m - self.work.padding[0], tx * self.m - self.work.padding[1]
                source = self.emitter.view(self.source, ((plane + line) * self.work.width + column) * self.lanes)
                target = self.emitter.let((block * self.band + row * self.across + tx) * self.lanes)
                if half is None:
                    self._transform_source((v, target), source, rows.inside, columns.inside)
                else:
                    self._transform_looped((v, target), half, source, (rows.inside, column))

    def _transform_source(
        self, v: tuple[Any, Any], source: Any, rows: tuple[int, int], columns: tuple[int, int]
    ) -> None:
        """V of one tile, written out: B^T applied to its columns, then to the rows of what that gives."""
        half = [
            self._transformed(self._column(source, j * self.lanes, rows) if columns[0] <= j < columns[1] else None)
            for j in range(self.n)
        ]
        buffer, place = v
        for i in range(self.n):
            for j, value in enumerate(self._transformed([column[i] for column in half])):
                self._store(buffer, place + (i * self.n + j) * self.v_step, value)

    def _transform_looped(
        self, v: tuple[Any, Any], half: Any, source: Any, inside: tuple[tuple[int, int], Any]
    ) -> None:
        """The same with loops over columns and rows; what is between them is in memory."""
        from tvm import tirx

        emitter, n, lanes, (rows, column) = self.emitter, self.n, self.lanes, inside
        # Columns left and right of the image are zeros; how many there are depends on the tile, at run time.
        low = emitter.let(tirx.max(0, 0 - column))
        high = emitter.let(tirx.min(n, self.work.width - column))
        for first, past in ((0, low), (high, n)):
            with emitter.loop(past - first) as j:
                for i in range(n):
                    self._store(half, (first + j + i * n) * lanes, None)
        with emitter.loop(high - low) as step:
            j = emitter.let((low + step) * lanes)
            for i, value in enumerate(self._transformed(self._column(emitter.view(source, j), 0, rows))):
                self._store(half, j + i * n * lanes, value)
        buffer, place = v
        with emitter.loop(n) as i:
            line, target = emitter.let(i * (n * lanes)), emitter.let(place + i * (n * self.v_step))
            for j, value in enumerate(self._transformed([self._vector(half, line + j * lanes) for j in range(n)])):
                self._store(buffer, target + j * self.v_step, value)

    def _column(self, source: Any, first: Any, rows: tuple[int, int]) -> list[Any]:
        step = self.work.width * self.lanes
        return [self._vector(source, first + i * step) if rows[0] <= i < rows[1] else None for i in range(self.n)]

    def _transformed(self, values: list[Any] | None) -> list[Any]:
        absent = [None] * self.n
        column = values or absent
        return transform_input(self.emitter, column, m=self.m, dtype=self.dtype, lanes=self.lanes, scaled=self.is_late)

    def _transform_results(self, m: Any, to: tuple[Any, Any], band: Any, *, parallel: bool) -> None:
        (image, group), (height, width) = to, self.work.result
        with self.emitter.loop(self.q, parallel=parallel) as vector:
            half = self._workspace(self.m * self.n) if self.looped else None
            out = self.emitter.let(group * self.q + vector)
            bias = self._vector(self.bias, out * self.lanes)
            self.factor = None if self.factors is None else self._vector(self.factors, out * self.lanes)
            with self.emitter.loop(self.rows) as row:
                for rows, columns, ty, tx in self._kinds(band, row):
                    line = (image * self.results + out) * height + ty * self.m
                    self.at = self.emitter.let((line * width + tx * self.m) * self.lanes)
                    source = m, self.emitter.let((vector * self.band + row * self.across + tx) * self.lanes)
                    if half is None:
                        self._transform_result(source, (rows.lines, columns.lines), bias)
                    else:
                        self._result_looped(source, half, (ty, columns.lines), bias)

    def _transform_result(self, m: tuple[Any, Any], lines: tuple[int, int], bias: Any) -> None:
        """The results of one tile, written out: A^T applied to M's columns, then to the rows of what that gives."""
        half = [self._collected(self._products(m, j)) for j in range(self.n)]
        for k in range(lines[0]):
            self._finish_line(
                [column[k] for column in half], lines[1], bias, self.at + k * self.work.result[1] * self.lanes
            )

    def _result_looped(self, m: tuple[Any, Any], half: Any, place: tuple[Any, int], bias: Any) -> None:
        """The same with loops over columns and rows; what is between them is in memory."""
        from tvm import tirx

        emitter, n, lanes, (ty, lines) = self.emitter, self.n, self.lanes, place
        with emitter.loop(n) as j:
            source, target = (m[0], emitter.let(m[1] + j * self.m_step)), emitter.let(j * lanes)
            for k, value in enumerate(self._collected(self._products(source, 0))):
                self._store(half, target + k * n * lanes, value)
        with emitter.loop(emitter.let(tirx.min(self.m, self.work.result[0] - ty * self.m))) as k:
            line = emitter.let(k * (n * lanes))
            values = [self._vector(half, line + j * lanes) for j in range(n)]
            self._finish_line(values, lines, bias, self.at + k * (self.work.result[1] * lanes))

    def _products(self, m: tuple[Any, Any], j: int) -> list[Any]:
        buffer, place = m
        return [self._vector(buffer, place + (i * self.n + j) * self.m_step) for i in range(self.n)]

    def _collected(self, values: list[Any]) -> list[Any]:
        return transform_output(self.emitter, values, m=self.m, dtype=self.dtype, lanes=self.lanes)

    def _finish_line(self, values: list[Any], lines: int, bias: Any, at: Any) -> None:
        """Stores one row of results of a tile. The point 1, whose column of A^T is all ones, takes the bias."""
        # Where weights have a factor, it comes before the bias.
        biased = [values[0], self.emitter.let(values[1] + bias), *values[2:]] if self.factor is None else values
        result = self.emitter.view(self.result, at)
        residual = None if self.residual is None else self.emitter.view(self.residual, at)
        for j, value in enumerate(self._collected(biased)[:lines]):
            added = None if residual is None else load(residual, j * self.lanes, self.lanes)
            if self.factor is not None:
                value = fma(value, self.factor, bias, f"{self.dtype}x{self.lanes}")
            final = finish(self.emitter, value, self.work.epilogue, added, lanes=self.lanes, dtype=self.dtype)
            self._store(result, j * self.lanes, final)

    def _kinds(self, band: Any, row: Any) -> Iterator[tuple[Span, Span, Any, Any]]:
        """Opens, one after the other, the code of each kind of tile in a row; then yields the tile's row and column."""
        from tvm import tirx

        emitter = self.emitter
        ty = emitter.let(band * self.rows + row)
        for rows in self.tile_rows:
            # The condition also excludes rows that the last band has and the image has not.
            alone = rows.count == self.down and self.down % self.rows == 0
            with emitter.when(None if alone else tirx.all(ty >= rows.first, ty < rows.first + rows.count)):
                for columns in self.tile_columns:
                    with emitter.loop(columns.count) as tx:
                        yield rows, columns, ty, tx + columns.first

    def _multiply_all(self, m: Any, v: Any, group: Any, xi: Any) -> None:
        first = 0
        for tiles, same in groupby(split_evenly(self.band, self.tiles)):
            count = len(list(same))
            with self.emitter.loop(count) as part:
                self._multiply(m, v, (group, xi), self.emitter.let(part * tiles + first), tiles)
            first += count * tiles

    def _multiply(self, m: Any, v: Any, at: tuple[Any, Any], tile: Any, tiles: int) -> None:
        """M[ξ] of `tiles` tiles from `tile`."""
        (group, xi), lanes, q, emitter = at, self.lanes, self.q, self.emitter
        sums = emitter.allocate(q * tiles, f"{self.dtype}x{lanes}")
        for place in range(q * tiles):
            emitter.add(store(sums, place, broadcast(0.0, lanes, self.dtype), 1))
        with emitter.loop(self.sources) as block:
            data = emitter.let(xi * self.v_step + (block * self.band + tile) * lanes)
            weights = self._matrix(group, xi, block)
            if self.machine.by_element:
                columns = [self._vector(v, data + t * lanes) for t in range(tiles)]
                for step in range(lanes):
                    self._step(sums, weights, [lane(column, step) for column in columns], step)
            else:  # of a longer body LLVM moves the broadcasts up and spills the sums
                with emitter.loop(lanes) as step:
                    self._step(sums, weights, [load(v, data + (t * lanes + step), 1) for t in range(tiles)], step)
        results = emitter.let(xi * self.m_step + tile * lanes)
        for t, g in product(range(tiles), range(q)):
            self._store(m, results + (g * self.band + t) * lanes, load(sums, t * q + g, 1))

    def _matrix(self, group: Any, xi: Any, block: Any) -> tuple[Any, Any]:
        """The buffer of U, and the offset of one block of input channels in it."""
        size = self.lanes * self.q * self.lanes
        if self.u is not None:
            return self.u, self.emitter.let((xi * self.sources + block) * size)
        start = ((group * self.n**2 + xi) * self.sources + block) * size
        return self.emitter.view(self.weights, start), int32(0)

    def _step(self, sums: Any, weights: tuple[Any, Any], scalars: list[Any], step: Any) -> None:
        """One input channel: its weights times the scalar of every tile."""
        buffer, start = weights
        factors = [self._vector(buffer, start + (step * self.q + g) * self.lanes) for g in range(self.q)]
        for tile, scalar in enumerate(scalars):
            operand = self.emitter.let(broadcast(scalar, self.lanes))
            for place, factor in enumerate(factors, tile * self.q):
                total = fma(factor, operand, load(sums, place, 1), f"{self.dtype}x{self.lanes}")
                self.emitter.add(store(sums, place, total, 1))


def _spans(result: int, size: int, padding: int, m: int) -> tuple[Span, ...]:
    return find_spans(result, m, source=size, padding=padding, stride=1, reach=m + 2)


def _count(spans: tuple[Span, ...]) -> int:
    return sum(span.count for span in spans)


def split_evenly(total: int, most: int) -> list[int]:
    """`total` as few parts of at most `most`, equal to within one, the larger first."""
    parts = ceil(total / most)
    return [total // parts + (part < total % parts) for part in range(parts)]
