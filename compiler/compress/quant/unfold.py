"""im2col: convolutions and products as matrix products, with the shapes of weight and input.

Conv     weight (O, C/g, k…) → (g, O/g, C/g·k);   input (N, C, …) → (g, N·places, C/g·k)
Gemm     weight (K, N), or (N, K) where transposed → (1, N, K);   input (M, K) → (1, M, K)
MatMul   weight (K, N) → (1, N, K);   input (…, K) → (1, …, K)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.model.numerics import Array

Floats = NDArray[np.float32]

ROWS_PER_TERM = 1
"""Positions of one sample that are used, per term of a sum: neighbouring windows of an image are nearly equal."""


@dataclass(frozen=True)
class Layout:
    """A layer as a product of matrices.

    Args:
        terms: Number of terms of each sum.
        matrix: Weight → (groups, outputs, terms).
        weight: The inverse of `matrix`.
        rows: Input of one batch → (groups, rows, terms).
        key: Equal for layouts whose `rows` are equal for equal inputs.
    """

    terms: int
    matrix: Callable[[Floats], Floats]
    weight: Callable[[Floats], Floats]
    rows: Callable[[Array], Floats]
    key: Hashable


_WINDOW = ("strides", "dilations", "pads")
"""Attributes that windows depend on, beside the kernel."""


def find_layout(node: ir.Node, shape: tuple[int, ...]) -> Layout | str:
    """The layout of a Conv, Gemm or MatMul whose second input is a weight of that shape; or why there is none."""
    if node.op_type == "Conv":
        return _conv_layout(node, shape)
    if node.op_type not in ("Gemm", "MatMul") or len(shape) != 2:
        return f"{node.op_type} with a weight of {len(shape)} dimensions is no product of a matrix"
    if node.attributes.get_int("transA", 0):
        return "its input is transposed"
    is_flipped = node.op_type == "MatMul" or not node.attributes.get_int("transB", 0)
    return _product_layout(shape, is_flipped=is_flipped)


def _product_layout(shape: tuple[int, ...], *, is_flipped: bool) -> Layout:
    def turned(array: Floats) -> Floats:
        return array.T if is_flipped else array

    terms = shape[0] if is_flipped else shape[1]
    return Layout(
        terms,
        matrix=lambda weight: turned(weight)[None],
        weight=lambda matrix: np.ascontiguousarray(turned(matrix[0])),
        rows=lambda array: array.astype(np.float32).reshape(1, -1, terms),
        key=terms,
    )


def _conv_layout(node: ir.Node, shape: tuple[int, ...]) -> Layout | str:
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return "its padding follows from the input's size"
    groups, inputs, kernel = node.attributes.get_int("group", 1), shape[1], shape[2:]
    terms = inputs * math.prod(kernel)
    return Layout(
        terms,
        matrix=lambda weight: weight.reshape(groups, -1, terms),
        weight=lambda matrix: matrix.reshape(shape),
        rows=lambda array: _windows(array, node, groups, kernel),
        key=(groups, kernel, *(tuple(node.attributes.get_ints(name, ())) for name in _WINDOW)),
    )


def _windows(array: Array, node: ir.Node, groups: int, kernel: tuple[int, ...]) -> Floats:
    """Evenly chosen windows of a convolution's input (N, C, …) as (groups, N·places, terms)."""
    rank = len(kernel)
    strides, dilations = (_ints(node, name, [1] * rank) for name in ("strides", "dilations"))
    pads = _ints(node, "pads", [0] * 2 * rank)
    cut: tuple[Any, ...] = (slice(None), slice(None))
    wide: Floats = np.pad(array.astype(np.float32), [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    reach = tuple(dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(wide, reach, axis=tuple(range(2, 2 + rank)))
    view = view[(*cut, *_every(strides), *_every(dilations))]
    places = view.shape[2 : 2 + rank]
    most = max(1, ROWS_PER_TERM * (array.shape[1] // groups) * math.prod(kernel))
    chosen = np.unique(np.linspace(0, math.prod(places) - 1, min(most, math.prod(places))).round().astype(int))
    windows = view[(*cut, *np.unravel_index(chosen, places))]  # (N, C, places, kernel…)
    count, channels = windows.shape[:2]
    apart = windows.reshape(count, groups, channels // groups, len(chosen), -1)
    return np.ascontiguousarray(apart.transpose(1, 0, 3, 2, 4)).reshape(groups, count * len(chosen), -1)


def _every(steps: list[int]) -> list[slice]:
    return [slice(None, None, step) for step in steps]


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    return list(node.attributes.get_ints(name, default))
