"""Winograd's minimal filtering F(m×m, 3×3) in integers, exactly.

With n = m + 2 points a_i as in `cook_toom`, G has fractions: row i is (1, a_i, a_i²) / D_i.
Here rows are (1, a_i, a_i²), and what they lack goes to the columns of A^T, as whole numbers L / D_i, where L is the
least common multiple of all D_i. What comes out is L² times the result: 4 at m = 2, 576 at m = 4.

Ranges. Activations of −128 … 127 become at most 128 · 4 (m = 2) or 128 · 100 (m = 4) by B^T d B, weights at most
128 · 9 or 128 · 49 by G g G^T: both are int16. Products, sums over channels and A^T M A are made modulo 2³², where it
does not matter what overflows on the way: the last value, L² y, is right if it is an int32. An odd factor of L² is
taken off by multiplying with its inverse modulo 2³², so that only its power of two takes bits away: |y| < 2²⁵ at m = 4.
Each row of A^T is divided by the power of two that all of it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from math import gcd, lcm, prod
from operator import add, mul, sub
from typing import Any

from targets.arm_tvm.kernels.cook_toom import POINTS, input_matrix, output_matrix
from targets.arm_tvm.kernels.emitter import Emitter, broadcast

Row = tuple[int, ...]
SIZES = (2, 4)
"""Values of m whose transforms of int8 fit int16."""
_WRAPPED = {
    name: f"""
define internal <4 x i32> @fleetc_{name}(<4 x i32> %a, <4 x i32> %b) alwaysinline {{
  %c = {name} <4 x i32> %a, %b
  ret <4 x i32> %c
}}
"""
    for name in ("add", "sub", "mul")
}
"""In LLVM's language: TVM's own operators say that nothing overflows."""
_MULTIPLY_ADD = """
define internal <4 x i32> @fleetc_smlal(<4 x i32> %c, <4 x i16> %a, <4 x i16> %b) alwaysinline {
  %l = sext <4 x i16> %a to <4 x i32>
  %r = sext <4 x i16> %b to <4 x i32>
  %product = mul <4 x i32> %l, %r
  %sum = add <4 x i32> %c, %product
  ret <4 x i32> %sum
}
"""


@dataclass(frozen=True)
class Filters:
    """The matrices of one m.

    Args:
        m: Results of a tile along an axis.
        source: B^T.
        weights: G, without its fractions.
        result: A^T with them, each row divided by its power of two.
        bits: For each row of A^T, the power of two that its results are too large by.
        odd: The odd factor that all results are too large by.
    """

    m: int
    source: tuple[Row, ...]
    weights: tuple[Row, ...]
    result: tuple[Row, ...]
    bits: Row
    odd: int

    @property
    def n(self) -> int:
        """Rows and columns of a tile of the input."""
        return self.m + 2

    @property
    def greatest_sum(self) -> int:
        """Largest magnitude of a result that is computed right."""
        return (1 << 31) - 1 >> 2 * max(self.bits)

    @property
    def inverse(self) -> int:
        """Of the square of `odd`, modulo 2³², as an int32."""
        value = pow(self.odd**2, -1, 1 << 32)
        return value - (1 << 32) if value >> 31 else value


@cache
def filters(m: int) -> Filters:
    """The matrices of F(m×m, 3×3)."""
    points = [int(point) for point in POINTS[m]]
    divisors = [prod(point - other for other in points if other != point) for point in points] + [1]
    whole = lcm(*divisors)
    signs = [1 if divisor > 0 else -1 for divisor in divisors]
    rows = [[int(a) * whole // abs(d) for a, d in zip(row, divisors, strict=True)] for row in output_matrix(m).tolist()]
    powers = [_power_of_two(gcd(*row)) for row in rows]
    bits = tuple((_power_of_two(whole) // power).bit_length() - 1 for power in powers)
    return Filters(
        m,
        # A negative factor costs an instruction at A^T, which has to be done more often, and none here.
        tuple(tuple(sign * int(b) for b in row) for sign, row in zip(signs, input_matrix(m).tolist(), strict=True)),
        (*((1, point, point**2) for point in points), (0, 0, 1)),
        tuple(tuple(value // power for value in row) for row, power in zip(rows, powers, strict=True)),
        bits,
        whole // _power_of_two(whole),
    )


def _power_of_two(number: int) -> int:
    return number & -number


class Arithmetic:
    """Sums of vectors times whole numbers: of int16, which do not overflow, or of int32 modulo 2³².

    Args:
        emitter: Takes the code.
        wrapped: Whether it is int32x4; else int16x8.
    """

    def __init__(self, emitter: Emitter, *, wrapped: bool) -> None:
        self._emitter, self._wrapped = emitter, wrapped

    def source(self, column: Sequence[Any], own: Filters) -> list[Any]:
        """B^T times a column."""
        rows = own.source
        pairs = [self._pair(rows[i], rows[i + 1], column) for i in range(1, own.m + 1, 2)]
        middle = [value for pair in pairs for value in pair]
        return [self._sum(rows[0], column), *middle, self._sum(rows[-1], column)]

    def weights(self, column: Sequence[Any], own: Filters) -> list[Any]:
        """G times a column."""
        rows = own.weights
        pairs = [self._pair(rows[i], rows[i + 1], column) for i in range(1, own.m + 1, 2)]
        middle = [value for pair in pairs for value in pair]
        return [column[0], *middle, column[2]]

    def result(self, column: Sequence[Any], own: Filters) -> list[Any]:
        """A^T times a column."""
        inner = range(1, own.m + 1, 2)
        even, odd = ([self._two(operator, column[i], column[i + 1]) for i in inner] for operator in (add, sub))
        return [
            self._sum(
                [row[0], *(row[i] for i in inner), row[-1]], [column[0], *(odd if power % 2 else even), column[-1]]
            )
            for power, row in enumerate(own.result)
        ]

    def _pair(self, plus: Row, minus: Row, column: Sequence[Any]) -> tuple[Any, Any]:
        """Rows of points ±a, which differ in the signs of every other coefficient."""
        same = self._sum([(p + q) // 2 for p, q in zip(plus, minus, strict=True)], column)
        other = self._sum([(p - q) // 2 for p, q in zip(plus, minus, strict=True)], column)
        return self._two(add, same, other), self._two(sub, same, other)

    def _sum(self, factors: Sequence[int], vectors: Sequence[Any]) -> Any:
        """The sum of vectors, each times its factor; a factor that all have in common comes last."""
        common = gcd(*factors)
        terms = [(factor // common, vector) for factor, vector in zip(factors, vectors, strict=True) if factor]
        terms.sort(key=lambda term: term[0] != 1)  # stable: begin with what needs no factor
        (factor, first), *rest = terms
        total = reduce(self._added, rest, first if factor == 1 else self.scaled(first, factor))
        return total if common == 1 else self.scaled(total, common)

    def _added(self, total: Any, term: tuple[int, Any]) -> Any:
        factor, vector = term
        operator = add if factor > 0 else sub
        return self._two(operator, total, vector if abs(factor) == 1 else self.scaled(vector, abs(factor)))

    def scaled(self, vector: Any, factor: int) -> Any:
        """A vector times a number."""
        lanes, dtype = (4, "int32") if self._wrapped else (8, "int16")
        return self._two(mul, vector, broadcast(factor, lanes, dtype))

    def _two(self, operator: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
        if not self._wrapped:
            return self._emitter.let(operator(left, right))
        name = operator.__name__
        return self._emitter.let(self._emitter.call_defined("int32x4", f"fleetc_{name}", _WRAPPED[name], left, right))


def multiply_add(emitter: Emitter, total: Any, left: Any, right: Any) -> Any:
    """total + left · right modulo 2³², of int32x4 and twice int16x4."""
    return emitter.call_defined("int32x4", "fleetc_smlal", _MULTIPLY_ADD, total, left, right)
