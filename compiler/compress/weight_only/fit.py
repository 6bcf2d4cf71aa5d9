"""Scales and zero points of blocks, and the integers: w ≈ (integer − zero) × scale.

A block's range is that of the least Σ_j H_jj·(w_j − ŵ_j)², H_jj the mean square of what input j reads: an input that
is large decides, one that is always zero does not. Ranges shrunk from both ends are tried; then the scale is solved for
by least squares with the integers held, and kept where that is better.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.target.scheme import BlockFormat

Floats = NDArray[np.float32]

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Factors for the range that are tried; a range of 8 bits is never shrunk: rounding it costs next to nothing."""

_CHUNK = 1 << 16
"""Weights that are looked at together: what is tried again and again stays in a core's cache."""

_SPREAD = 1 << 20
"""Weights whose scales and zero points are spread out together."""

_SHRUNK_BITS = 6
_LEAST = 2.0**-14
"""The least scale: the smallest normal number of float16."""


def some_rows(shape: tuple[int, ...], most: int) -> Iterator[slice]:
    """All rows of a matrix, so many at a time that they have no more weights than that: one row at least."""
    rows, columns = shape
    step = max(1, most // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


@dataclass(frozen=True)
class BlockScales:
    """The lattice of a matrix.

    Args:
        format: Bits and blocks.
        scale: (outputs, blocks), numbers that float16 holds.
        zero: (outputs, blocks), integers from 0.
        inputs: Columns of the matrix.
    """

    format: BlockFormat
    scale: Floats
    zero: Floats
    inputs: int

    @property
    def top(self) -> int:
        """Largest integer."""
        return int(2**self.format.bits - 1)

    def spread(self, array: Floats) -> Floats:
        """A number for each block as a number for each weight (outputs, inputs)."""
        wide = np.repeat(array, self.format.block or self.inputs, axis=1)
        return np.ascontiguousarray(wide[:, : self.inputs])

    def integers(self, weight: Floats) -> NDArray[np.uint8]:
        """The nearest integers (outputs, inputs)."""
        integers = np.empty(weight.shape, np.uint8)
        for rows in some_rows(weight.shape, _SPREAD):
            scaled = np.rint(weight[rows] / self.spread(self.scale[rows])) + self.spread(self.zero[rows])
            integers[rows] = np.clip(scaled, 0, self.top)
        return integers

    def values(self, integers: NDArray[np.uint8]) -> Floats:
        """The weights that integers stand for."""
        values = np.empty(integers.shape, np.float32)
        for rows in some_rows(integers.shape, _SPREAD):
            moved = integers[rows].astype(np.float32) - self.spread(self.zero[rows])
            np.multiply(moved, self.spread(self.scale[rows]), out=values[rows])
        return values

    def of_rows(self, rows: slice) -> BlockScales:
        """The lattice of some outputs."""
        return BlockScales(self.format, self.scale[rows], self.zero[rows], self.inputs)

    def rounded(self, weight: Floats) -> Floats:
        """The nearest weights on the lattice."""
        return self.values(self.integers(weight))


def fit_blocks(
    weight: Floats, squares: Floats, format_: BlockFormat, *, shrinks: tuple[float, ...] = SHRINKS
) -> BlockScales:
    """The scales of a matrix of the least weighted error.

    Args:
        weight: (outputs, inputs).
        squares: Mean square of what each input reads (inputs,); ones where nothing is known.
        format_: Bits and blocks.
        shrinks: Factors for the range that are tried.
    """
    tried = shrinks if format_.bits <= _SHRUNK_BITS else (1.0,)
    chunks = [weight[rows] for rows in some_rows(weight.shape, _CHUNK)]
    fitted = [_fitted(_cut(chunk, format_), _cut(squares[None], format_), format_, tried) for chunk in chunks]
    scale, zero = (np.concatenate(arrays) for arrays in zip(*fitted, strict=True))
    return BlockScales(format_, scale, zero, weight.shape[1])


def _fitted(blocks: Floats, heavy: Floats, format_: BlockFormat, tried: tuple[float, ...]) -> tuple[Floats, Floats]:
    """Scales and zero points of some rows (rows, blocks)."""
    low, high = np.minimum(blocks.min(axis=2), 0.0), np.maximum(blocks.max(axis=2), 0.0)
    best_scale, best_zero, least = None, None, None
    for shrink in tried:
        scale, zero = _lattice(low * np.float32(shrink), high * np.float32(shrink), format_)
        integers = _integers(blocks, scale, zero, format_)
        solved = _solved(blocks, heavy, scale, integers)
        for candidate, own in ((scale, integers), (solved, _integers(blocks, solved, zero, format_))):
            cost = _cost(blocks, heavy, candidate, own)
            if best_scale is None or best_zero is None or least is None:
                best_scale, best_zero, least = candidate.copy(), zero.copy(), cost
                continue
            better = cost < least
            best_scale[better], best_zero[better], least[better] = candidate[better], zero[better], cost[better]
    assert best_scale is not None and best_zero is not None  # noqa: S101  one shrink is always tried
    return best_scale, best_zero


def rounding_loss(weight: Floats, squares: Floats, scales: BlockScales) -> float:
    """Σ_j H_jj·(w_j − ŵ_j)² of rounding to nearest, over all outputs."""
    return float((np.square(weight - scales.rounded(weight)) @ squares).sum())


def _cut(array: Floats, format_: BlockFormat) -> Floats:
    """(rows, blocks, block), the last block filled up with zeros."""
    rows, inputs = array.shape
    block = format_.block or inputs
    missing = -inputs % block
    padded = np.pad(array, ((0, 0), (0, missing))) if missing else array
    return padded.reshape(rows, -1, block)


def _lattice(low: Floats, high: Floats, format_: BlockFormat) -> tuple[Floats, Floats]:
    top = np.float32(2**format_.bits - 1)
    if format_.symmetric:
        middle = np.float32(2 ** (format_.bits - 1))
        # the range reaches further below zero than above by one step; what is largest decides
        scale = np.maximum(-low / middle, high / (middle - 1))
        return _stored(scale), np.full(scale.shape, middle, np.float32)
    scale = _stored((high - low) / top)
    return scale, np.clip(np.rint(-low / scale), 0, top)


def _stored(scale: Floats) -> Floats:
    return np.maximum(scale, _LEAST).astype(np.float16).astype(np.float32)


def _integers(blocks: Floats, scale: Floats, zero: Floats, format_: BlockFormat) -> Floats:
    """Integers less their zero point."""
    zero = zero[:, :, None]
    moved: Floats = blocks / scale[:, :, None]
    np.rint(moved, out=moved)
    # np.clip takes twice as long as both of these
    np.maximum(moved, -zero, out=moved)
    np.minimum(moved, np.float32(2**format_.bits - 1) - zero, out=moved)
    return moved


def _cost(blocks: Floats, heavy: Floats, scale: Floats, integers: Floats) -> Floats:
    error = blocks - integers * scale[:, :, None]
    np.square(error, out=error)
    cost: Floats = np.einsum("rbi,bi->rb", error, heavy[0])
    return cost


def _solved(blocks: Floats, heavy: Floats, scale: Floats, integers: Floats) -> Floats:
    """The scale of the least weighted error with the integers held."""
    weighted = integers * heavy
    above = np.einsum("rbi,rbi->rb", weighted, blocks)
    below = np.einsum("rbi,rbi->rb", weighted, integers)
    solved = np.divide(above, below, out=scale.copy(), where=below > 0)
    return _stored(np.where(solved > 0, solved, scale))
