"""The packed layout (N, C/L, H, W, L): conversions into it and back, and which values a function holds in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compiler.target import Array
from targets.arm_tvm.graph.reading import shape_of
from targets.arm_tvm.kernels.floating_point.workload import blocks
from targets.arm_tvm.kernels.machine import Machine


@dataclass(frozen=True)
class PackedValues:
    """The values that a function holds in the packed layout.

    Args:
        machine: Its vector of a value's type is one block of channels.
        packed: Variable of the imported function → the value of the new one; grows while that is written.
    """

    machine: Machine
    packed: dict[Any, Any] = field(default_factory=dict)

    def lanes(self, var: Any) -> int:
        """Channels of a block of the variable's type."""
        return self.machine.lanes(str(var.ty.dtype))


def pack_value(builder: Any, value: Any, shape: Sequence[int], lanes: int) -> Any:
    """Emits the conversion into blocks; missing channels of the last block are zeros."""
    from tvm import te, tirx

    batch, channels, height, width = shape

    def packed(source: Any) -> Any:
        def element(n: Any, block: Any, row: Any, column: Any, lane: Any) -> Any:
            channel = block * lanes + lane
            taken = source[n, channel, row, column]
            zero = tirx.const(0, source.dtype)
            # Where no channel is missing the loop has no condition, and becomes plain copies.
            return taken if channels % lanes == 0 else tirx.if_then_else(channel < channels, taken, zero)

        return te.compute((batch, blocks(channels, lanes), height, width, lanes), element, "pack")

    return builder.emit_te(packed, value, primfunc_name_hint="pack")


def unpack_value(builder: Any, value: Any, shape: Sequence[int]) -> Any:
    """Emits the conversion back."""
    from tvm import te

    lanes = shape_of(value)[-1]

    def plain(source: Any) -> Any:
        def element(n: Any, channel: Any, row: Any, column: Any) -> Any:
            return source[n, channel // lanes, row, column, channel % lanes]

        return te.compute(tuple(shape), element, "unpack")

    return builder.emit_te(plain, value, primfunc_name_hint="unpack")


def pack_constant(array: Array, channels: int, lanes: int, dtype: str) -> Array:
    """One value for each channel, filled up with zeros to whole blocks."""
    full = np.zeros(blocks(channels, lanes) * lanes, dtype)
    full[:channels] = array
    return full
