"""Code that applies the matrices of Winograd's minimal filtering (`cook_toom`) with few instructions.

Points come in pairs ±a, so two rows of B^T differ in the signs of odd coefficients, and two columns of A^T likewise:
the even and the odd part are computed once.

A factor of a row of G may go to the same row of B^T. Where the kernel transforms the weights, which are many on a small
map, rows of G are divided so that only the even part of a pair ±a is multiplied: 7 instructions per column at m = 4,
none of which has to copy a register before it adds to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from compiler.target import Array
from targets.arm_tvm.kernels.cook_toom import input_matrix, output_matrix, weight_matrix
from targets.arm_tvm.kernels.emitter import Emitter, broadcast, fma


@cache
def row_factors(m: int) -> npt.NDArray[np.float64]:
    """What each row of G is divided by, (m + 2): then its middle coefficient is ±1, or its only one is 1."""
    matrix = weight_matrix(m)
    sizes = np.array([row[1] or row[0] or row[2] for row in np.abs(matrix)])
    factors: npt.NDArray[np.float64] = sizes * np.sign([row[0] or row[2] for row in matrix])
    return factors


def transform_input(
    emitter: Emitter, values: Sequence[Any | None], *, m: int, dtype: str, lanes: int, scaled: bool = False
) -> list[Any | None]:
    """B^T times a column of m + 2 vectors; None stands for zero.

    Args:
        emitter: Takes the code.
        values: The column.
        m: Size of a tile of results.
        dtype: Element type.
        lanes: Elements of a vector.
        scaled: Whether its rows have the factors of G.
    """
    arithmetic = Arithmetic(emitter, dtype, lanes)
    factors = row_factors(m) if scaled else np.ones(m + 2)
    matrix, result = input_matrix(m) * factors[:, None], []
    result.append(arithmetic.combine(matrix[0], values))
    for row in range(1, m + 1, 2):
        even, odd = (matrix[row] + matrix[row + 1]) / 2, (matrix[row] - matrix[row + 1]) / 2
        # Divided by its last coefficient, the odd part has one factor 1, which needs no multiplication.
        scale = float(odd[np.nonzero(odd)[0][-1]])
        parts = arithmetic.combine(even, values), arithmetic.combine(odd / scale, values)
        result += [arithmetic.add(parts[0], parts[1], scale), arithmetic.add(parts[0], parts[1], -scale)]
    result.append(arithmetic.combine(matrix[-1], values))
    return result


def transform_weights(
    emitter: Emitter, values: Sequence[Any], *, m: int, dtype: str, lanes: int
) -> Iterator[tuple[int, Any]]:
    """Rows of G, divided by `row_factors`, times a column of 3 vectors: number of the row and product.

    Rows that are one of the vectors come first, so that its register is free early; code is written when it is asked
    for.
    """
    arithmetic = Arithmetic(emitter, dtype, lanes)
    matrix = weight_matrix(m) / row_factors(m)[:, None]
    yield 0, values[0]
    yield m + 1, values[2]
    for row in range(1, m + 1, 2):  # of points ±a: only the sign of the middle coefficient differs
        even, odd = arithmetic.combine(matrix[row] * (1, 0, 1), values), float(matrix[row][1])
        yield row, arithmetic.add(even, values[1], odd)
        yield row + 1, arithmetic.add(even, values[1], -odd)


def transform_output(emitter: Emitter, values: Sequence[Any], *, m: int, dtype: str, lanes: int) -> list[Any]:
    """A^T times a column of m + 2 vectors."""
    arithmetic = Arithmetic(emitter, dtype, lanes)
    matrix = output_matrix(m)
    sums = [arithmetic.add(values[i], values[i + 1], 1.0) for i in range(1, m + 1, 2)]
    differences = [arithmetic.add(values[i], values[i + 1], -1.0) for i in range(1, m + 1, 2)]
    result = []
    for power in range(m):
        pairs = differences if power % 2 else sums
        terms = [values[0], *pairs, values[-1]]
        factors = np.array([matrix[power, 0], *matrix[power, 1 : m + 1 : 2], matrix[power, -1]])
        result.append(arithmetic.combine(factors, terms))
    return result


class Arithmetic:
    """Sums of scaled vectors where zero is known, one instruction per term but the first."""

    def __init__(self, emitter: Emitter, dtype: str, lanes: int) -> None:
        self._emitter, self._dtype, self._lanes = emitter, dtype, lanes

    def combine(self, factors: Array, values: Sequence[Any | None]) -> Any | None:
        """The sum of vectors, each times its factor; None for zero."""
        terms = [(float(f), v) for f, v in zip(factors, values, strict=True) if f != 0 and v is not None]
        if not terms:
            return None
        terms.sort(key=lambda term: term[0] != 1)  # stable: begin with what needs no factor
        factor, total = terms[0]
        if factor != 1:
            total = self._emitter.let(total * broadcast(factor, self._lanes, self._dtype))
        for factor, value in terms[1:]:
            total = self.add(total, value, factor)
        return total

    def add(self, left: Any | None, right: Any | None, factor: float) -> Any | None:
        """left + factor × right."""
        if right is None:
            return left
        constant = broadcast(factor, self._lanes, self._dtype)
        if left is None:
            return right if factor == 1 else self._emitter.let(right * constant)
        if abs(factor) == 1:
            return self._emitter.let(left + right if factor == 1 else left - right)
        return self._emitter.let(fma(right, constant, left, f"{self._dtype}x{self._lanes}"))
