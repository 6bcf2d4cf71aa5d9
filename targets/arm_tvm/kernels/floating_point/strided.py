"""Convolutions of stride 2 over few channels, as a network begins with, on planes (N, C, H, W): Winograd along rows.

A window's even taps see every second element of a row, its odd taps the others, so one row of it is two filters of
stride 1 of r = K/2 taps, rounded up and down, whose results are added. Each is Cook and Toom's F(m, r) of one
dimension: with n = m + r - 1 points a_i, infinity the last,

    A^T[k, i] = a_i^k     G[i, t] = a_i^t / Π_{j≠i} (a_i - a_j)    B^T[i] = coefficients of Π_{j≠i} (x - a_j)
    A^T[m-1, ∞] = 1       G[∞, r-1] = 1                            B^T[∞] = coefficients of Π_j (x - a_j)

A^T does not depend on r, so both add up in one sum for each point: for K = 7 and m = 3 there are 6 + 5 products in
place of 21.

Tiling. A row of results is cut into tiles of m. For each band of rows of results
    V[row][c][ξ][tile]      = B^T d, both parts, vectors of neighbouring tiles
    M[ξ][tile][oc][L]       = Σ_(c, row of the window, part) U · V, `blocks` blocks of output channels at a time
    y                       = A^T M, bias, epilogue
U is transformed at compile time. Registers of the product: blocks × tiles sums, tiles / L data vectors whose lanes are
multiplied one after the other, and `blocks` + 1 weights on their way.

Roofline: (n of both parts) / (K m) of the direct convolution's multiply-adds, bound by the multipliers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.target import Array
from targets.arm_tvm.kernels.emitter import PARALLEL_WORK, Emitter, broadcast, fma, gather, int32, lane, load, store
from targets.arm_tvm.kernels.floating_point.epilogue import finish
from targets.arm_tvm.kernels.floating_point.sources import SourceLayout, padded_source, result_shape, source_shape
from targets.arm_tvm.kernels.floating_point.winograd import split_evenly
from targets.arm_tvm.kernels.floating_point.winograd_transforms import Arithmetic
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload, blocks
from targets.arm_tvm.kernels.machine import Machine

STRIDE = 2
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5)
"""Finite points, in the order they are taken: as for tiles of two dimensions, all coefficients are exact in binary."""
TILE_SIZES = {"float32": (2, 3, 4), "float16": (2, 3)}
"""Values of m. In float16 as many points as m = 4 takes for large windows lose too many bits."""
LEAST_TAPS = 5
"""Smaller windows have too few products to save any."""
MAX_CHOICES = 12
"""Choices of one workload: each of them is compiled and measured when it is tuned."""
MAX_TILES, MAX_BLOCKS = 16, 4
"""Of one product of matrices, at most: they bound the search."""
BAND_BYTES = 64 * 1024
"""Most that V of one band should take: it stays in the second-level cache, and each thread has one."""
TERM_OVERHEAD, TILE_OVERHEAD = 3, 12
"""Instructions of one iteration over channels, and of one product of matrices, that are no arithmetic."""


@dataclass(frozen=True)
class _Part:
    """The even or the odd taps of a row.

    Args:
        first: The first tap.
        filters: G.
        signal: B^T.
    """

    first: int
    filters: NDArray[np.float64]
    signal: NDArray[np.float64]

    @property
    def points(self) -> int:
        """How many, infinity among them."""
        return len(self.signal)


@cache
def _parts(taps: int, m: int) -> tuple[_Part, ...]:
    return tuple(_Part(first, *_cook_toom(m, -(-(taps - first) // STRIDE))) for first in range(STRIDE))


def _cook_toom(m: int, r: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """G, (n, r), and B^T, (n, n), with infinity as the last point."""
    points = POINTS[: m + r - 2]
    filters, signal = np.zeros((len(points) + 1, r)), np.zeros((len(points) + 1,) * 2)
    for row, point in enumerate(points):
        others = [other for other in points if other != point]
        filters[row] = np.array([point**power for power in range(r)]) / np.prod([point - other for other in others])
        signal[row, :-1] = np.poly(others)[::-1]
    filters[-1, -1] = 1
    signal[-1] = np.poly(points)[::-1]
    return filters, signal


def _output_matrix(m: int, points: int) -> NDArray[np.float64]:
    """A^T, (m, points), infinity the last."""
    matrix = np.zeros((m, points))
    matrix[:, :-1] = np.array([[point**power for point in POINTS[: points - 1]] for power in range(m)])
    matrix[m - 1, -1] = 1
    return matrix


def choices(workload: ConvWorkload, machine: Machine, *, like: Choice | None = None) -> tuple[Choice, ...]:
    """Tile sizes, bands and register tiles that fit, the cheapest first; none where the method does not apply.

    Args:
        workload: What is computed.
        machine: Where.
        like: The choice for the same weights whose packing must do; None: any packing.
    """
    if not _applies(workload) or not machine.by_element:
        return ()
    lanes, (height, width) = machine.lanes(workload.dtype), workload.result
    out_blocks = blocks(workload.filters, lanes)
    fitting = [
        Choice("strided", parameters, _cost(workload, machine, parameters), _weights_size(workload, lanes, m) * size)
        for size in [np.dtype(workload.dtype).itemsize]
        for m in TILE_SIZES[workload.dtype]
        if width % m == 0 and m + -(-workload.kernel[1] // STRIDE) - 2 <= len(POINTS)
        for rows in _bands(workload, lanes, m, height)
        for tiles, q in product(range(lanes // 2, min(MAX_TILES, width // m) + 1), range(1, MAX_BLOCKS + 1))
        if out_blocks % q == 0 and q * tiles + -(-tiles // lanes) + q + 1 <= machine.registers
        for parameters in [{"m": m, "rows": rows, "tiles": tiles, "blocks": q}]
        if like is None or (m, q) == (like.parameters["m"], like.parameters["blocks"])
    ]
    return tuple(sorted(fitting, key=lambda choice: choice.cost)[:MAX_CHOICES])


def _applies(work: ConvWorkload) -> bool:
    plain = work.strides[1] == STRIDE and work.dilations == (1, 1) and work.groups == 1 and not work.weights
    return plain and work.layout == "planar" and work.kernel[1] >= LEAST_TAPS and work.dtype in TILE_SIZES


def _bands(work: ConvWorkload, lanes: int, m: int, height: int) -> list[int]:
    """Numbers of rows of results that cut the image evenly and whose V fits, at least 1."""
    row_bytes = _row_size(work, lanes, m) * np.dtype(work.dtype).itemsize
    whole = [rows for rows in range(1, height + 1) if height % rows == 0]
    return [rows for rows in whole if rows == 1 or _source_rows(work, rows) * row_bytes <= BAND_BYTES][-3:]


def _source_rows(work: ConvWorkload, rows: int) -> int:
    return (rows - 1) * work.strides[0] + work.kernel[0]


def _row_size(work: ConvWorkload, lanes: int, m: int) -> int:
    """Elements of V for one row of the source: whole vectors of tiles, and one behind them that may be read."""
    return work.channels * _products(work, m) * (blocks(work.result[1] // m, lanes) + 1) * lanes


def _products(work: ConvWorkload, m: int) -> int:
    return sum(part.points for part in _parts(work.kernel[1], m))


def _weights_size(work: ConvWorkload, lanes: int, m: int) -> int:
    return blocks(work.filters, lanes) * lanes * work.channels * work.kernel[0] * _products(work, m)


def _cost(work: ConvWorkload, machine: Machine, parameters: dict[str, int]) -> float:
    lanes, m, q, rows = machine.lanes(work.dtype), *(parameters[name] for name in ("m", "blocks", "rows"))
    (height, width), out_blocks, pair = work.result, blocks(work.filters, lanes), 2 if machine.pairs else 1
    products, points = _products(work, m), _parts(work.kernel[1], m)[0].points
    # Scalars of a window are loaded one by one; each product of a transform takes about three instructions.
    window = lanes * products + 3.5 * products + products
    total = height // rows * _source_rows(work, rows) * work.channels * blocks(width // m, lanes) * window
    terms = work.channels * work.kernel[0] * products
    for tiles in split_evenly(width // m, parameters["tiles"]):
        inner = q * tiles + -(-q // pair) + -(-blocks(tiles, lanes) // pair) + TERM_OVERHEAD / work.kernel[0]
        total += height * out_blocks // q * (terms * inner + points * (1.5 * q * tiles + TILE_OVERHEAD))
    finish_cost = 2.5 * points + m * (2 + len(work.epilogue)) + 2
    return work.batch * (total + height * (width // m) * out_blocks * finish_cost)


def pack(workload: ConvWorkload, choice: Choice, weights: Array, machine: Machine) -> Array:
    """U in the order of the loops: [group of output blocks][ξ][c][row of the window][part][output block][L], flat."""
    lanes, q, m = machine.lanes(workload.dtype), choice.parameters["blocks"], choice.parameters["m"]
    full = np.zeros((blocks(workload.filters, lanes) * lanes, *weights.shape[1:]))
    full[: workload.filters] = weights
    parts = _parts(workload.kernel[1], m)
    # In float64, so that U is rounded once: to the type it is stored in.
    transformed = [full[..., part.first :: STRIDE] @ part.filters.T for part in parts]
    groups: list[Array] = []
    for group in np.split(np.arange(len(full)), len(full) // (q * lanes)):
        for xi in range(parts[0].points):
            own = [
                u[group][..., place]
                for u, place in zip(transformed, _places(parts, xi), strict=True)
                if place is not None
            ]
            groups.append(np.stack(own, axis=-1).transpose(1, 2, 3, 0).ravel())
    return np.ascontiguousarray(np.concatenate(groups).astype(workload.dtype))


def _places(parts: Sequence[_Part], xi: int) -> list[int | None]:
    """A point of the first part in each part's own numbers; None where a part has it not."""
    if xi == parts[0].points - 1:  # infinity, which is each part's last
        return [part.points - 1 for part in parts]
    return [xi if xi < part.points - 1 else None for part in parts]


def emit(workload: ConvWorkload, choice: Choice, machine: Machine) -> Any:
    """The kernel."""
    return _Strided(workload, choice, machine).function()


class _Strided:
    """One kernel while it is written."""

    def __init__(self, workload: ConvWorkload, choice: Choice, machine: Machine) -> None:
        self.work, self.lanes, self.dtype = workload, machine.lanes(workload.dtype), workload.dtype
        self.m, self.rows, self.q, self.tiles = (choice.parameters[name] for name in ("m", "rows", "blocks", "tiles"))
        self.vector = f"{self.dtype}x{self.lanes}"
        self.parts = _parts(workload.kernel[1], self.m)
        self.points, self.across = self.parts[0].points, workload.result[1] // self.m
        self.out_blocks = blocks(workload.filters, self.lanes)
        # One vector more than there are tiles: the last load of a product may go past them.
        self.line = (blocks(self.across, self.lanes) + 1) * self.lanes
        self.emitter = Emitter()
        self.arithmetic = Arithmetic(self.emitter, self.dtype, self.lanes)

    def function(self) -> Any:
        """The PrimFunc."""
        emitter, work, shape = self.emitter, self.work, result_shape(self.work, self.lanes)
        source = emitter.parameter(source_shape(work, self.lanes), self.dtype, "x")
        self.weights = emitter.parameter((_weights_size(work, self.lanes, self.m),), self.dtype, "w")
        self.bias = emitter.parameter((self.out_blocks * self.lanes,), self.dtype, "bias")
        self.residual = emitter.parameter(shape, self.dtype, "r") if "add" in work.epilogue else None
        self.result = emitter.parameter(shape, self.dtype, "y")
        self.source, self.image = source, _planes(work)
        if any(work.padding):
            self.source, self.image = padded_source(emitter, source, work, self.lanes)
        bands, self.products = work.result[0] // self.rows, _products(work, self.m)
        terms = work.channels * work.kernel[0] * self.products
        heavy = work.batch * work.result[0] * self.across * terms * self.out_blocks > PARALLEL_WORK
        with emitter.loop(work.batch * bands, parallel=heavy) as step:
            from tvm import tirx

            image, band = tirx.floordiv(step, int32(bands)), tirx.floormod(step, int32(bands))
            self._band(emitter.let(image), emitter.let(band))
        return emitter.function()

    def _band(self, image: Any, band: Any) -> None:
        emitter, work, lanes = self.emitter, self.work, self.lanes
        v = emitter.allocate(
            _source_rows(work, self.rows) * work.channels * self.products * self.line, self.dtype, "global"
        )
        m = emitter.allocate(self.points * self.across * self.q * lanes, self.dtype, "global")
        first = emitter.let(image * self.image.batch + band * (self.rows * work.strides[0] * self.image.row))
        with emitter.loop(_source_rows(work, self.rows)) as row, emitter.loop(work.channels) as channel:
            source = emitter.let(first + row * self.image.row + channel * self.image.block)
            target = emitter.let((row * work.channels + channel) * (self.products * self.line))
            self._transform_row(source, v, target)
        with emitter.loop(self.rows) as row, emitter.loop(self.out_blocks // self.q) as group:
            for xi in range(self.points):
                self._multiply_all(m, v, (row, group), xi)
            self._finish(m, (image, emitter.let(band * self.rows + row), group))

    def _transform_row(self, source: Any, v: Any, target: Any) -> None:
        """V of one row of one channel."""
        whole, rest = divmod(self.across, self.lanes)
        with self.emitter.loop(whole) as group:
            at = self.emitter.let(source + group * (self.lanes * STRIDE * self.m))
            self._transform(at, v, self.emitter.let(target + group * self.lanes), self.lanes)
        if rest:
            at = source + whole * self.lanes * STRIDE * self.m
            self._transform(self.emitter.let(at), v, self.emitter.let(target + whole * self.lanes), rest)

    def _transform(self, source: Any, v: Any, target: Any, tiles: int) -> None:
        """V of a vector of tiles; lanes behind the last tile repeat it, so that nothing behind the row is read."""
        view, place = self.emitter.view(self.source, source) if not any(self.work.padding) else None, 0
        for part in self.parts:
            column = []
            for index in range(part.points):
                offsets = [min(t, tiles - 1) * STRIDE * self.m + STRIDE * index + part.first for t in range(self.lanes)]
                scalars = [load(self.source, source + o, 1) if view is None else load(view, o, 1) for o in offsets]
                column.append(self.emitter.let(gather(scalars)))
            for row in part.signal:
                value = self.arithmetic.combine(row, column)
                self.emitter.add(store(v, target + place * self.line, value, self.lanes))
                place += 1

    def _multiply_all(self, m: Any, v: Any, at: tuple[Any, Any], xi: int) -> None:
        sizes = split_evenly(self.across, self.tiles)
        for tiles in sorted(set(sizes), reverse=True):
            first = sum(size for size in sizes if size > tiles)
            with self.emitter.loop(sizes.count(tiles)) as part:
                self._multiply(m, v, at, xi, (self.emitter.let(part * tiles + first), tiles))

    def _multiply(self, m: Any, v: Any, at: tuple[Any, Any], xi: int, where: tuple[Any, int]) -> None:
        """M[ξ] of some neighbouring tiles."""
        (row, group), (tile, tiles), emitter, work, lanes = at, where, self.emitter, self.work, self.lanes
        sums = emitter.allocate(self.q * tiles, self.vector)
        for place in range(self.q * tiles):
            emitter.add(store(sums, place, broadcast(0.0, lanes, self.dtype), 1))
        bases = np.cumsum([0, *(part.points for part in self.parts)])
        own = [
            int(base) + place for base, place in zip(bases, _places(self.parts, xi), strict=False) if place is not None
        ]
        before = sum(sum(place is not None for place in _places(self.parts, other)) for other in range(xi))
        terms, size = work.channels * work.kernel[0], self.q * lanes
        start = emitter.let(group * (terms * self.products * size) + before * terms * size)
        with emitter.loop(work.channels) as channel:
            weights = emitter.let(start + channel * (work.kernel[0] * len(own) * size))
            plane = row * (work.strides[0] * work.channels) + channel
            data = emitter.let(plane * (self.products * self.line) + tile)
            for index, (line, place) in enumerate(product(range(work.kernel[0]), own)):
                offset = (line * work.channels * self.products + place) * self.line
                self._term(sums, (v, data + offset), weights + index * size, tiles)
        target = emitter.let((tile + xi * self.across) * size)
        for t, g in product(range(tiles), range(self.q)):
            emitter.add(store(m, target + (t * self.q + g) * lanes, load(sums, t * self.q + g, 1), lanes))

    def _term(self, sums: Any, data: tuple[Any, Any], weights: Any, tiles: int) -> None:
        """One product of every sum."""
        (v, at), lanes, emitter = data, self.lanes, self.emitter
        factors = [emitter.let(load(self.weights, weights + g * lanes, lanes)) for g in range(self.q)]
        vectors = [emitter.let(load(v, at + i * lanes, lanes)) for i in range(blocks(tiles, lanes))]
        for t in range(tiles):
            scalar = broadcast(lane(vectors[t // lanes], t % lanes), lanes)
            for g, factor in enumerate(factors):
                place = t * self.q + g
                emitter.add(store(sums, place, fma(factor, scalar, load(sums, place, 1), self.vector), 1))

    def _finish(self, m: Any, at: tuple[Any, Any, Any]) -> None:
        """The results of one row, of one group of output blocks."""
        (image, row, group), emitter, lanes, (height, width) = at, self.emitter, self.lanes, self.work.result
        matrix = _output_matrix(self.m, self.points)
        with emitter.loop(self.q) as part:
            block = emitter.let(group * self.q + part)
            bias = emitter.let(load(self.bias, block * lanes, lanes))
            line = emitter.let(((image * self.out_blocks + block) * height + row) * (width * lanes))
            with emitter.loop(self.across) as tile:
                source = emitter.let((tile * self.q + part) * lanes)
                step = self.across * self.q * lanes
                values = [emitter.let(load(m, source + xi * step, lanes)) for xi in range(self.points)]
                start = emitter.let(line + tile * (self.m * lanes))
                for index, factors in enumerate(matrix):
                    total = emitter.let(self.arithmetic.combine(factors, values) + bias)
                    added = None if self.residual is None else load(self.residual, start + index * lanes, lanes)
                    value = finish(emitter, total, self.work.epilogue, added, lanes=lanes, dtype=self.dtype)
                    emitter.add(store(self.result, start + index * lanes, value, lanes))


def _planes(work: ConvWorkload) -> SourceLayout:
    """A planar source as it is."""
    area = work.height * work.width
    return SourceLayout(work.channels, 1, work.channels * area, area, work.width, 1)
