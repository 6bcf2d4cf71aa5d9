"""Functions of a vector that no instruction computes, as polynomials in registers: no call, no table, no branch.

exp      2ⁿ · p(r), n = round(x / ln 2), r = x − n ln 2 in two steps (Cody and Waite); p of degree 5 fitted to the least
         relative error on ±ln 2 / 2, 1.0e-7. n is added to the exponent. x is held to −87 … 88: what is below gives
         1.6e-38, not 0, and nothing gives infinity.
erf      Abramowitz and Stegun 7.1.26, absolute error 1.5e-7: 1 − t (a₁ + … + a₅ t⁴) exp(−x²), where
         t = 1 / (1 + 0.3275911 |x|)
sigmoid  1 / (1 + exp(−x))
tanh     |x| < 0.625: x + x³ p(x²), p of degree 4 (Cephes), relative error 1e-7; else ± (1 − 2 / (exp(2 |x|) + 1))
gelu     x Φ(x) = max(x, 0) − |x| / 2 · (1 − erf(|x| / √2)): no difference of two near numbers for negative x

Instructions per vector: exp 14, sigmoid 17, tanh 30, erf 26, gelu 26. A NaN is not kept: it becomes what −87 gives in
exp.
All in float32; a float16 vector is widened and rounded once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from targets.arm_tvm.kernels.emitter import Emitter, broadcast, fma, vector_type

# Near these e^x leaves the normal numbers of float32.
LEAST, GREATEST = -87.0, 88.0
_POLYNOMIAL = (0.00829031690955162, 0.041897933930158615, 0.1666763573884964, 0.4999915063381195, 0.9999997019767761)
"""p without its constant 1, the highest power first."""
# 355/512 has 9 bits, so n times it is exact in float32; the second part brings the rest of ln 2.
_LN2_HIGH = 0.693359375
_LN2_LOW = math.log(2) - _LN2_HIGH
_TO_INTEGER = 1.5 * 2**23
"""Added to a float32, it leaves the nearest integer in the last bits."""
# of float32: where the exponent begins
_MANTISSA_BITS = 23
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_ERF_SCALE = 0.3275911
"""a₅ … a₁ and the factor of |x| in t: Abramowitz and Stegun, 7.1.26."""
_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
_TANH_SMALL = 0.625
"""Cephes, tanhf: the polynomial, and below what size of x it is the better one."""


def in_float32(function: Callable[[Emitter, Any, int], Any], emitter: Emitter, value: Any, lanes: int) -> Any:
    """One of the functions below on a vector of float32 or float16."""
    from tvm import tirx

    dtype = str(value.ty.dtype)
    if not dtype.startswith("float16"):
        return function(emitter, value, lanes)
    wide = emitter.let(tirx.Cast(vector_type("float32", lanes), value))
    return emitter.let(tirx.Cast(dtype, function(emitter, wide, lanes)))


def exp(emitter: Emitter, value: Any, lanes: int) -> Any:
    """e to the power of each element, float32."""
    from tvm import tirx

    floats, integers = vector_type("float32", lanes), vector_type("int32", lanes)
    x = emitter.let(tirx.min(tirx.max(value, broadcast(LEAST, lanes)), broadcast(GREATEST, lanes)))
    shifted = emitter.let(fma(x, broadcast(1 / math.log(2), lanes), broadcast(_TO_INTEGER, lanes), floats))
    n = emitter.let(shifted - broadcast(_TO_INTEGER, lanes))
    rest = emitter.let(fma(n, broadcast(-_LN2_HIGH, lanes), x, floats))
    rest = emitter.let(fma(n, broadcast(-_LN2_LOW, lanes), rest, floats))
    total = _horner(emitter, (*_POLYNOMIAL, 1.0), rest, lanes)
    # n is in the last bits of `shifted`; in the place of the exponent it multiplies by 2ⁿ.
    power = tirx.shift_left(tirx.reinterpret(integers, shifted), broadcast(_MANTISSA_BITS, lanes, "int32"))
    return emitter.let(tirx.reinterpret(floats, tirx.reinterpret(integers, total) + power))


def sigmoid(emitter: Emitter, value: Any, lanes: int) -> Any:
    """1 / (1 + e^−x), float32."""
    one = broadcast(1.0, lanes)
    return emitter.let(one / (exp(emitter, broadcast(0.0, lanes) - value, lanes) + one))


def tanh(emitter: Emitter, value: Any, lanes: int) -> Any:
    """The hyperbolic tangent, float32."""
    from tvm import tirx

    floats, one, two = vector_type("float32", lanes), broadcast(1.0, lanes), broadcast(2.0, lanes)
    size, square = emitter.let(_abs(value, lanes)), emitter.let(value * value)
    cubic = emitter.let(_horner(emitter, _TANH, square, lanes) * square)
    small = emitter.let(fma(cubic, value, value, floats))
    large = emitter.let(one - two / (exp(emitter, size * two, lanes) + one))
    signed = tirx.Select(value < broadcast(0.0, lanes), broadcast(0.0, lanes) - large, large)
    return emitter.let(tirx.Select(size < broadcast(_TANH_SMALL, lanes), small, signed))


def erf(emitter: Emitter, value: Any, lanes: int) -> Any:
    """The error function, float32."""
    from tvm import tirx

    positive = emitter.let(broadcast(1.0, lanes) - _complement(emitter, emitter.let(_abs(value, lanes)), lanes))
    negative = broadcast(0.0, lanes) - positive
    return emitter.let(tirx.Select(value < broadcast(0.0, lanes), negative, positive))


def gelu(emitter: Emitter, value: Any, lanes: int) -> Any:
    """x Φ(x) with the normal distribution's Φ, float32."""
    from tvm import tirx

    size = emitter.let(_abs(value, lanes))
    tail = _complement(emitter, emitter.let(size * broadcast(math.sqrt(0.5), lanes)), lanes)
    positive = tirx.max(value, broadcast(0.0, lanes))
    return emitter.let(fma(size * broadcast(-0.5, lanes), tail, positive, vector_type("float32", lanes)))


def _complement(emitter: Emitter, value: Any, lanes: int) -> Any:
    """1 − erf(x) of x ≥ 0."""
    floats, one = vector_type("float32", lanes), broadcast(1.0, lanes)
    t = emitter.let(one / fma(value, broadcast(_ERF_SCALE, lanes), one, floats))
    polynomial = emitter.let(_horner(emitter, _ERF, t, lanes) * t)
    decay = exp(emitter, (broadcast(0.0, lanes) - value) * value, lanes)
    return emitter.let(polynomial * decay)


def _horner(emitter: Emitter, coefficients: Sequence[float], x: Any, lanes: int) -> Any:
    total = broadcast(coefficients[0], lanes)
    for coefficient in coefficients[1:]:
        total = emitter.let(fma(total, x, broadcast(coefficient, lanes), vector_type("float32", lanes)))
    return total


def _abs(value: Any, lanes: int) -> Any:
    from tvm import tirx

    return tirx.max(value, broadcast(0.0, lanes) - value)
