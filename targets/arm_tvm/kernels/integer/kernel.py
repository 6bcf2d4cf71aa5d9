"""From the specification of an integer kernel to its TIR function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from targets.arm_tvm.kernels.integer.border import emit_pack, emit_unpack
from targets.arm_tvm.kernels.integer.conv import emit_conv
from targets.arm_tvm.kernels.integer.elementwise import emit_elementwise, emit_gate
from targets.arm_tvm.kernels.integer.int8_depthwise import emit_depthwise
from targets.arm_tvm.kernels.integer.padding import emit_pad
from targets.arm_tvm.kernels.integer.pool import emit_pool
from targets.arm_tvm.kernels.integer.specs import (
    ConvSpec,
    Dot,
    ElementwiseSpec,
    GateSpec,
    JoinSpec,
    PackSpec,
    PadSpec,
    PoolSpec,
    Spec,
    UnpackSpec,
)
from targets.arm_tvm.kernels.integer.ways import Way, WinogradTile
from targets.arm_tvm.kernels.integer.winograd import emit_winograd


@dataclass(frozen=True)
class Kernel:
    """A specification and how it is computed.

    Args:
        spec: What it computes.
        dot: Which instructions multiply int8.
        way: How a convolution is computed; None for other kernels.
    """

    spec: Spec
    dot: Dot
    way: Way | None = None

    @property
    def name(self) -> str:
        """Its name in the module."""
        family = type(self.spec).__name__.removesuffix("Spec").lower()
        if isinstance(self.way, WinogradTile):
            return "int8_winograd"
        depthwise = isinstance(self.spec, ConvSpec) and self.spec.depthwise
        return f"int8_{'depthwise' if depthwise else family}"


def emit(kernel: Kernel) -> Any:
    """The TIR function."""
    spec, dot = kernel.spec, kernel.dot
    if isinstance(spec, ConvSpec):
        return _emit_conv(spec, kernel.way, dot)
    if isinstance(spec, PoolSpec):
        return emit_pool(spec, dot)
    if isinstance(spec, ElementwiseSpec):
        return emit_elementwise(spec, dot)
    if isinstance(spec, GateSpec):
        return emit_gate(spec, dot)
    if isinstance(spec, PadSpec):
        return emit_pad(spec, dot)
    if isinstance(spec, PackSpec):
        return emit_pack(spec, dot)
    if isinstance(spec, UnpackSpec):
        return emit_unpack(spec, dot)
    raise TypeError(f"{type(spec).__name__} is no kernel")


def _emit_conv(spec: ConvSpec, way: Way | None, dot: Dot) -> Any:
    if way is None:
        return emit_depthwise(spec, dot)
    return emit_winograd(spec, way, dot) if isinstance(way, WinogradTile) else emit_conv(spec, way, dot)


def call(builder: Any, kernel: Kernel, arguments: list[Any]) -> Any:
    """The Relax expression that calls the kernel; arguments and result become flat where the kernel wants it."""
    from tvm import relax

    spec = kernel.spec
    if isinstance(spec, JoinSpec):
        return builder.emit(relax.op.concat(arguments, axis=0))
    if isinstance(spec, UnpackSpec) and spec.is_same:
        return builder.emit(relax.op.reshape(arguments[0], spec.shape))
    function = emit(kernel)
    if isinstance(spec, PackSpec):
        batch, channels, height, width = spec.source
        arguments = [builder.emit(relax.op.reshape(arguments[0], (batch * channels * height * width,)))]
    result = function.params[-1].ty
    type_ = relax.TensorType([int(size) for size in result.shape], result.dtype.dtype)
    called = relax.call_tir(builder.add_func(function, kernel.name), arguments, type_)
    if isinstance(spec, UnpackSpec):
        return builder.emit(relax.op.reshape(builder.emit(called), spec.shape))
    return builder.emit(called)
