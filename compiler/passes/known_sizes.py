"""Partial evaluation of shape arithmetic: sizes from Shape are known although other dimensions are symbolic.

A vector is followed as two arrays of the same form: its numbers, and which of them are known. Every operator here only
moves elements, so applying it to both keeps them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.passes.values import constant_of

_DEPTH_MAX = 64
"""Longest chain that is followed; exporters write chains of five to ten operators."""
_ELEMENTS_MAX = 1024
"""Longest vector that is followed: far more than a rank, small enough to be copied at each operator."""


@dataclass(frozen=True)
class _Partial:
    numbers: NDArray[np.int64]
    known: NDArray[np.bool_]

    def map(self, move: Callable[[NDArray[np.generic]], NDArray[np.generic]]) -> _Partial:
        return _Partial(np.asarray(move(self.numbers), np.int64), np.asarray(move(self.known), np.bool_))


def known_sizes(value: ir.Value) -> NDArray[np.int64] | None:
    """The integers of the value if all of them are known from static dimensions, or None."""
    node = value.producer()
    if node is None or node.op_type not in _MOVES:
        return None
    partial = _follow(value, 0)
    return None if partial is None or not partial.known.all() else partial.numbers


def _follow(value: ir.Value | None, depth: int) -> _Partial | None:
    if value is None or depth > _DEPTH_MAX:
        return None
    array = constant_of(value)
    if array is not None:
        small = array.dtype == np.int64 and array.size <= _ELEMENTS_MAX and array.ndim <= 1
        return _Partial(array.astype(np.int64), np.ones(array.shape, np.bool_)) if small else None
    node = value.producer()
    move = None if node is None or node.domain != "" else _MOVES.get(node.op_type)
    return None if node is None or move is None else move(node, depth + 1)


def _shape(node: ir.Node, depth: int) -> _Partial | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    sizes = list(source.shape)[node.attributes.get_int("start", 0) or 0 : node.attributes.get_int("end", None)]
    numbers = np.array([size if isinstance(size, int) else -1 for size in sizes], np.int64)
    return _Partial(numbers, np.array([isinstance(size, int) for size in sizes], np.bool_))


def _size(node: ir.Node, depth: int) -> _Partial | None:
    shape = _shape(node, depth)
    if shape is None:
        return None
    return _Partial(np.asarray(shape.numbers.prod(dtype=np.int64)), np.asarray(shape.known.all()))


def _gather(node: ir.Node, depth: int) -> _Partial | None:
    data, indices = _follow(node.inputs[0], depth), constant_of(node.inputs[1])
    if data is None or indices is None or data.numbers.ndim != 1 or node.attributes.get_int("axis", 0) not in (0, -1):
        return None
    length = len(data.numbers)
    if indices.size and (int(indices.max()) >= length or int(indices.min()) < -length):
        return None
    return data.map(lambda array: array[indices])


def _slice(node: ir.Node, depth: int) -> _Partial | None:
    data = _follow(node.inputs[0], depth)
    bounds = [constant_of(value) for value in node.inputs[1:]]
    plain = len(bounds) >= 2 and all(bound is not None and bound.size == 1 for bound in bounds)
    if data is None or data.numbers.ndim != 1 or not plain:
        return None
    start, end, *others = (int(bound.reshape(())) for bound in bounds if bound is not None)
    step = others[1] if len(others) > 1 else 1
    return data.map(lambda array: array[start:end:step]) if step > 0 else None


def _concat(node: ir.Node, depth: int) -> _Partial | None:
    parts = [_follow(value, depth) for value in node.inputs]
    whole = [part for part in parts if part is not None and part.numbers.ndim == 1]  # vectors: axis 0 alone
    if len(whole) != len(parts):
        return None
    return _Partial(np.concatenate([part.numbers for part in whole]), np.concatenate([part.known for part in whole]))


def _squeeze(node: ir.Node, depth: int) -> _Partial | None:
    data, axes = _follow(node.inputs[0], depth), _axes(node)
    if data is None or (axes is None and len(node.inputs) > 1 and node.inputs[1] is not None):
        return None
    shape = data.numbers.shape
    dropped = tuple(axes) if axes is not None else tuple(axis for axis, size in enumerate(shape) if size == 1)
    if any(not -len(shape) <= axis < len(shape) or shape[axis] != 1 for axis in dropped):
        return None
    return data.map(lambda array: np.squeeze(array, dropped))


def _unsqueeze(node: ir.Node, depth: int) -> _Partial | None:
    data, axes = _follow(node.inputs[0], depth), _axes(node)
    if data is None or axes is None:
        return None
    rank = data.numbers.ndim + len(axes)
    if any(not -rank <= axis < rank for axis in axes) or len({axis % rank for axis in axes}) < len(axes):
        return None
    return data.map(lambda array: np.expand_dims(array, tuple(axes)))


def _axes(node: ir.Node) -> list[int] | None:
    """Axes of Squeeze and Unsqueeze: an input since opset 13, an attribute before; None if absent or not constant."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    array = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if array is None else [int(axis) for axis in array.reshape(-1)]


def _cast(node: ir.Node, depth: int) -> _Partial | None:
    return _follow(node.inputs[0], depth) if node.attributes.get_int("to", 0) == ir.DataType.INT64 else None


_MOVES: Mapping[str, Callable[[ir.Node, int], _Partial | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Cast": _cast,
}
