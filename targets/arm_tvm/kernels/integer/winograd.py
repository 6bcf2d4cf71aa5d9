"""3×3 convolutions of stride 1 by Winograd's F(m×m, 3×3) in int16, for cores without an integer dot product.

Results are bit for bit those of the direct convolution (`minimal_filters` says why). The result is cut into tiles of
m × m; a band is `rows` rows of tiles. The input is copied with its border, so that all tiles are whole. For each band
    V[ξ][ic/8][tile][8]    = B^T d B       int16 (ξ = 0 … n² − 1, n = m + 2)
and for each block of 16 output channels
    U[ξ][ic][16]           = G g G^T       int16, of the weights as they are in the file: 9 bytes a filter and channel
    M[ξ][tile][16]         = Σ_ic U · V    int32, smlal and smlal2 by element
    y                      = A^T M A       then requantized as in `conv`
The matrices of V and M are one vector more apart than they are long: no powers of two, which would share cache sets.

Registers of the product: 4 · tiles sums, `tiles` vectors of data whose lanes are multiplied one after the other, and
weights on their way. Lanes of 16 bits are taken from the first 16 registers only.

Roofline: n²/(9 m²) of the multiply-adds, 4 an instruction: 1/16 of an instruction per product of the convolution at
m = 4 and 1/9 at m = 2, where smull, smlal2 and sadalp take 3/16.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from targets.arm_tvm.kernels.emitter import (
    PARALLEL_WORK,
    Emitter,
    broadcast,
    cast,
    int32,
    intrinsic,
    load,
    shuffle,
    store,
)
from targets.arm_tvm.kernels.integer.minimal_filters import Arithmetic, filters, multiply_add
from targets.arm_tvm.kernels.integer.padding import emit_padded
from targets.arm_tvm.kernels.integer.requantize import read_residual, scaled, write
from targets.arm_tvm.kernels.integer.specs import BLOCK, ConvSpec, Dot, is_beyond
from targets.arm_tvm.kernels.integer.tiles import split
from targets.arm_tvm.kernels.integer.ways import WinogradTile

TAPS = 9
"""Weights of a filter for one channel."""
HALF = 8
"""Lanes of int16."""
FOURS = 4
"""Vectors of sums of a block of channels."""


def emit_winograd(spec: ConvSpec, tile: WinogradTile, dot: Dot) -> Any:
    """The kernel: (source, weights, scale, bias[, residual], result), all flat."""
    return _Winograd(spec, tile, dot).function()


class _Winograd:
    """One kernel while it is written."""

    def __init__(self, spec: ConvSpec, tile: WinogradTile, dot: Dot) -> None:
        self.spec, self.dot, self.own = spec, dot, filters(tile.m)
        self.m, self.n, self.tiles = tile.m, tile.m + 2, tile.tiles
        self.down, self.across = (-(-size // tile.m) for size in (spec.result.height, spec.result.width))
        self.rows = min(tile.rows, self.down)
        self.bands, self.band = -(-self.down // self.rows), self.rows * self.across
        self.sources, self.channels = spec.source.blocks, spec.source.blocks * BLOCK
        self.v_step, self.m_step = ((self.band * count + 1) * BLOCK for count in (self.sources, 1))
        self.emitter = Emitter()
        self.narrow, self.wrapped = (Arithmetic(self.emitter, wrapped=wrapped) for wrapped in (False, True))

    def function(self) -> Any:
        emitter, spec, blocks = self.emitter, self.spec, self.spec.result.blocks
        self.source = emitter.parameter((spec.source.elements,), "int8", "x")
        self.weights = emitter.parameter((blocks * self.channels * TAPS * BLOCK,), "int8", "w")
        self.scale, self.bias = (emitter.parameter((blocks * BLOCK,), "float32", name) for name in ("scale", "bias"))
        adds, size = spec.epilogue.residual_scale is not None, spec.result.elements
        self.residual = emitter.parameter((size,), "int8", "residual") if adds else None
        self.result = emitter.parameter((size,), "int8" if spec.epilogue.quantized else "float32", "y")
        heavy = self.n**2 * self.channels * blocks * 4 * self.down * self.across > PARALLEL_WORK
        with emitter.loop(spec.source.batch) as batch:
            self._take_image(batch)
            with emitter.loop(self.bands, parallel=heavy) as band:
                v = emitter.allocate(self.n**2 * self.v_step, "int16", "global")
                self._transform_sources(v, band)
                # With one band there is nothing to spread over the threads but the blocks of output channels.
                with emitter.loop(blocks, parallel=heavy and self.bands == 1) as group:
                    u = emitter.allocate(self.n**2 * self.channels * BLOCK, "int16", "global")
                    self._transform_weights(u, group)
                    sums = emitter.allocate(self.n**2 * self.m_step, "int32", "global")
                    with emitter.loop(self.n**2) as xi:
                        self._multiply_all(sums, (v, u), xi)
                    self._transform_results(sums, batch * spec.result.batch_stride, (band, group))
        return emitter.function()

    def _take_image(self, batch: Any) -> None:
        """The image as whole tiles: a copy with a border, unless it has all that they read."""
        spec, extent = self.spec, (self.bands * self.rows * self.m + 2, self.across * self.m + 2)
        self.image, self.pixels, self.place = spec.source, self.source, batch * spec.source.batch_stride
        if any(spec.pads) or is_beyond(extent, spec.source):
            source = self.source, self.place, spec.source
            self.pixels, self.image = emit_padded(self.emitter, source, extent, spec.pads, spec.fill)
            self.place = int32(0)

    def _transform_sources(self, v: Any, band: Any) -> None:
        emitter, n, row_stride = self.emitter, self.n, self.image.row_stride
        with emitter.loop(self.sources) as block, emitter.loop(self.rows) as row, emitter.loop(self.across) as column:
            line = (band * self.rows + row) * (self.m * row_stride)
            first = emitter.let(self.place + block * self.image.block_stride + line + column * (self.m * BLOCK))
            target = emitter.let((block * (2 * self.band) + row * self.across + column) * HALF)
            for half in (0, HALF):
                pixels = [
                    [self._widened(self.pixels, first + (i * row_stride + j * BLOCK + half)) for i in range(n)]
                    for j in range(n)
                ]
                columns = [self.narrow.source(pixel, self.own) for pixel in pixels]
                for i in range(n):
                    for j, value in enumerate(self.narrow.source([column[i] for column in columns], self.own)):
                        emitter.add(store(v, target + ((i * n + j) * self.v_step + half * self.band), value, HALF))

    def _widened(self, buffer: Any, offset: Any) -> Any:
        return self.emitter.let(cast("int16x8", load(buffer, offset, HALF)))

    def _transform_weights(self, u: Any, group: Any) -> None:
        emitter, n = self.emitter, self.n
        with emitter.loop(self.channels) as channel:
            first = emitter.let((group * self.channels + channel) * (TAPS * BLOCK))
            target = emitter.let(channel * BLOCK)
            for half in (0, HALF):
                taps = [self._widened(self.weights, first + (tap * BLOCK + half)) for tap in range(TAPS)]
                columns = [self.narrow.weights(taps[column::3], self.own) for column in range(3)]
                for i in range(n):
                    for j, value in enumerate(self.narrow.weights([column[i] for column in columns], self.own)):
                        emitter.add(store(u, target + ((i * n + j) * self.channels * BLOCK + half), value, HALF))

    def _multiply_all(self, sums: Any, factors: tuple[Any, Any], xi: Any) -> None:
        for first, count, tiles in split(self.band, self.tiles):
            with self.emitter.loop(count) as part:
                self._multiply(sums, factors, xi, (self.emitter.let(part * tiles + first), tiles))

    def _multiply(self, to: Any, factors: tuple[Any, Any], xi: Any, part: tuple[Any, int]) -> None:
        """M[ξ] of some tiles."""
        emitter, (v, u), (tile, tiles) = self.emitter, factors, part
        sums = emitter.allocate(FOURS * tiles, "int32x4")
        for place in range(FOURS * tiles):
            emitter.add(store(sums, place, broadcast(0, 4, "int32"), 1))
        with emitter.loop(2 * self.sources) as eight:
            data = emitter.let(xi * self.v_step + (eight * self.band + tile) * HALF)
            weights = emitter.let((xi * (2 * self.sources) + eight) * (HALF * BLOCK))
            columns = [emitter.let(load(v, data + t * HALF, HALF)) for t in range(tiles)]
            for step in range(HALF):
                self._step(sums, (u, weights + step * BLOCK), columns, step)
        results = emitter.let(xi * self.m_step + tile * BLOCK)
        for place in range(FOURS * tiles):
            emitter.add(store(to, results + place * 4, load(sums, place, 1), 4))

    def _step(self, sums: Any, weights: tuple[Any, Any], columns: list[Any], step: int) -> None:
        """One input channel: its weights times the lane of every tile."""
        u, first = weights
        vectors = [self.emitter.let(load(u, first + half, HALF)) for half in (0, HALF)]
        fours = [shuffle([vector], range(at, at + 4)) for vector in vectors for at in (0, 4)]
        for tile, column in enumerate(columns):
            operand = shuffle([column], [step] * 4)
            for place, four in enumerate(fours, FOURS * tile):
                self.emitter.add(store(sums, place, multiply_add(self.emitter, load(sums, place, 1), four, operand), 1))

    def _transform_results(self, sums: Any, place: Any, at: tuple[Any, Any]) -> None:
        (band, group), emitter, image = at, self.emitter, self.spec.result
        first = group * BLOCK
        factors = tuple(
            [emitter.let(load(buffer, first + 4 * four, 4)) for four in range(FOURS)]
            for buffer in (self.scale, self.bias)
        )
        half = emitter.allocate(self.m * self.n * BLOCK, "int32", "global")
        with emitter.loop(self.rows) as row:
            ty = emitter.let(band * self.rows + row)
            for (lines, columns), tx in self._kinds(ty):
                source = emitter.let((row * self.across + tx) * BLOCK)
                corner = ty * (self.m * image.row_stride) + tx * (self.m * BLOCK)
                target = emitter.let(place + group * image.block_stride + corner)
                self._transform_columns(sums, source, half)
                self._transform_rows(half, (target, lines, columns), factors)

    def _transform_columns(self, sums: Any, source: Any, half: Any) -> None:
        """A^T applied to the columns of M of one tile; a loop, since LLVM spills what is written out."""
        n, emitter = self.n, self.emitter
        with emitter.loop(n) as j:
            first = emitter.let(source + j * self.m_step)
            for four in range(FOURS):
                column = [emitter.let(load(sums, first + (i * n * self.m_step + 4 * four), 4)) for i in range(n)]
                for y, value in enumerate(self.wrapped.result(column, self.own)):
                    emitter.add(store(half, j * BLOCK + (y * n * BLOCK + 4 * four), value, 4))

    def _kinds(self, ty: Any) -> Iterator[tuple[tuple[int, int], Any]]:
        """Opens the code of whole tiles, then of cut ones; yields their rows and columns, and the tile's column."""
        from tvm import tirx

        result = self.spec.result
        for top, down, lines in _cut(result.height, self.m):
            # The condition also excludes rows that the last band has and the image has not.
            alone = down == self.bands * self.rows
            with self.emitter.when(None if alone else tirx.all(ty >= top, ty < top + down)):
                for left, across, columns in _cut(result.width, self.m):
                    with self.emitter.loop(across) as tx:
                        yield (lines, columns), tx + left

    def _transform_rows(self, half: Any, to: tuple[Any, int, int], factors: tuple[list[Any], ...]) -> None:
        """A^T applied to the rows of that: the results of one tile, requantized."""
        (target, lines, width), n, image = to, self.n, self.spec.result
        for y in range(lines):
            fours = [
                self.wrapped.result(
                    [self.emitter.let(load(half, (y * n + j) * BLOCK + 4 * four, 4)) for j in range(n)], self.own
                )
                for four in range(FOURS)
            ]
            for x in range(width):
                values = [self._exact(four[x], self.own.bits[y] + self.own.bits[x]) for four in fours]
                self._finish(values, target + (y * image.row_stride + x * BLOCK), factors)

    def _exact(self, value: Any, bits: int) -> Any:
        """L² y → y as a float."""
        if self.own.odd > 1:
            value = self.wrapped.scaled(value, self.own.inverse)
        if self.dot == "generic":
            return self.emitter.let(cast("float32x4", value >> broadcast(bits, 4, "int32")))
        # scvtf with a shift: a power of two changes nothing of how it is rounded.
        return self.emitter.let(intrinsic("float32x4", "llvm.aarch64.neon.vcvtfxs2fp.v4f32.v4i32", value, int32(bits)))

    def _finish(self, values: list[Any], offset: Any, factors: tuple[list[Any], ...]) -> None:
        residual = None
        if self.residual is not None:
            residual = read_residual(self.residual, offset, BLOCK, self.dot)
        scales, biases = factors
        final = scaled(values, scales, biases, residual, self.spec.epilogue)
        write(self.emitter, final, (self.result, offset), self.spec.epilogue, self.dot)


def _cut(size: int, m: int) -> list[tuple[int, int, int]]:
    """A size in whole tiles and a rest: (first tile, tiles, size of one)."""
    whole, rest = divmod(size, m)
    return [part for part in ((0, whole, m), (whole, 1, rest)) if part[1] and part[2]]
