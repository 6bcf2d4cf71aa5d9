"""What the numbers of each input can be, as far as the graph and the names tell: ids of a table, masks, bytes, lengths.

Random inputs are drawn by it where a fleet file names no data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx_ir as ir

_FOLLOWED = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose"}
) | {"Unsqueeze"}
"""Operators behind which an integer is still the same integer; of all but Concat, their first input."""

_INTEGER_HIGH = 100
"""Integers of no known meaning go up to here: beyond a flag, and small enough to be a size."""
# short: a random length above the random data that it is of would be refused
_LENGTH_HIGH = 4
_SAMPLE_RATE = 16000
"""Hz: what speech models take that take a rate at all."""

_MASK = re.compile(r"mask", re.IGNORECASE)
_LENGTH = re.compile(r"(^|[^a-z])(len|lens|length|lengths)([^a-z]|$)", re.IGNORECASE)
_RATE = re.compile(r"^(sr|rate|sample_?rate|sampling_?rate)$", re.IGNORECASE)


class Kind(StrEnum):
    """How the numbers of an input are drawn."""

    NORMAL = "normal"
    INTEGERS = "integers"
    MASK = "mask"
    BOOLEANS = "booleans"


@dataclass(frozen=True)
class InputKind:
    """What an input's numbers are.

    Args:
        kind: How they are drawn.
        low: Smallest integer.
        high: Largest integer.
        why: What tells so, in words.
    """

    kind: Kind
    low: int = 0
    high: int = 1
    why: str = ""

    def __str__(self) -> str:
        match self.kind:
            case Kind.NORMAL:
                return "normal, with zeros and large values"
            case Kind.MASK:
                return "masks of 0 and 1, whole and partial"
            case Kind.BOOLEANS:
                return "booleans"
        reason = f" ({self.why})" if self.why else ""
        return f"{self.low}{reason}" if self.low == self.high else f"integers {self.low} to {self.high}{reason}"


def input_kinds(model: ir.Model) -> dict[str, InputKind]:
    """The kind of every input that is a tensor of numbers.

    Args:
        model: Dimensions bound, shapes inferred.
    """
    return {
        str(value.name): _kind(value)
        for value in model.graph.inputs
        if isinstance(value.type, ir.TensorType) and value.dtype is not None and value.dtype != ir.DataType.STRING
    }


def _kind(value: ir.Value) -> InputKind:
    name, dtype = str(value.name), value.dtype or ir.DataType.FLOAT
    if _RATE.search(name) and _is_single(value):
        return InputKind(Kind.INTEGERS, _SAMPLE_RATE, _SAMPLE_RATE, "a sample rate, by its name")
    if _MASK.search(name):
        return InputKind(Kind.MASK)
    if dtype == ir.DataType.BOOL:
        return InputKind(Kind.BOOLEANS)
    if dtype.is_floating_point():
        return InputKind(Kind.NORMAL)
    return _integer_kind(value, name, dtype)


def _is_single(value: ir.Value) -> bool:
    return value.shape is None or all(size == 1 for size in value.shape)


def _integer_kind(value: ir.Value, name: str, dtype: ir.DataType) -> InputKind:
    reads = list(_reads(value))
    bounds = [bound for node, index in reads if (bound := _index_bound(node, index)) is not None]
    if bounds:
        return InputKind(Kind.INTEGERS, 0, max(0, min(bounds) - 1), "rows of a table")
    lengths = [bound for node, index in reads if (bound := _length_bound(node, index)) is not None]
    if lengths:
        return InputKind(Kind.INTEGERS, 1, max(1, min(lengths)), "lengths of sequences")
    if any(_is_mask_read(node, index) for node, index in reads):
        return InputKind(Kind.MASK)
    if _LENGTH.search(name):
        return InputKind(Kind.INTEGERS, 1, _LENGTH_HIGH, "lengths, by its name")
    if any(node.op_type == "TopK" and index == 1 for node, index in reads):
        return InputKind(Kind.INTEGERS, 1, 1, "how many of TopK")
    if dtype in (ir.DataType.UINT8, ir.DataType.INT8):
        info = np.iinfo(dtype.numpy())
        return InputKind(Kind.INTEGERS, int(info.min), int(info.max), "every byte")
    return InputKind(Kind.INTEGERS, 0, _INTEGER_HIGH)


def _reads(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Who reads the value and at which input, also behind operators that only move or convert it."""
    waiting, seen = [value], {value}
    while waiting:
        for node, index in waiting.pop().uses():
            yield node, index
            if node.op_type in _FOLLOWED and node.domain == "" and (index == 0 or node.op_type == "Concat"):
                new = [output for output in node.outputs if output not in seen]
                waiting += new
                seen.update(new)


_INDEXED: Mapping[str, tuple[int, int]] = {
    "Gather": (1, 0),
    "GatherElements": (1, 0),
    "ScatterElements": (1, 0),
    "GatherND": (1, 0),
    "ScatterND": (1, 0),
}
"""Operator → where its indices are, and default of its axis."""


def _index_bound(node: ir.Node, index: int) -> int | None:
    """How many rows an index may choose from; None where the integer is no index."""
    if node.op_type == "OneHot" and index == 0:
        return _constant_int(node.inputs[1])
    if node.op_type not in _INDEXED or node.domain != "" or index != _INDEXED[node.op_type][0]:
        return None
    table = node.inputs[0]
    if table is None or table.shape is None:
        return None
    sizes = list(table.shape)
    if node.op_type.endswith("ND"):
        known = [size for size in sizes if isinstance(size, int)]
        return min(known) if len(known) == len(sizes) and known else None
    size = sizes[node.attributes.get_int("axis", 0)] if sizes else None
    return size if isinstance(size, int) else None


def _length_bound(node: ir.Node, index: int) -> int | None:
    axis = {("LSTM", 4): 0, ("GRU", 4): 0, ("RNN", 4): 0, ("ReverseSequence", 1): 0}.get((node.op_type, index))
    source = node.inputs[0]
    if axis is None or source is None or source.shape is None:
        return None
    place = node.attributes.get_int("time_axis", 0) if node.op_type == "ReverseSequence" else axis
    size = source.shape[place]
    return size if isinstance(size, int) else 1


def _is_mask_read(node: ir.Node, index: int) -> bool:
    """Whether the integer is a truth: cast to a boolean, or subtracted from 1."""
    if node.op_type == "Cast":
        return node.attributes.get_int("to", 0) == ir.DataType.BOOL
    return node.op_type == "Sub" and index == 1 and _constant_int(node.inputs[0]) == 1


def _constant_int(value: ir.Value | None) -> int | None:
    tensor = None if value is None else value.const_value or ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.size != 1 else int(tensor.numpy().reshape(()))
