"""Integer element-wise kernels: sums of two tensors, activations, changes of scale; 16 elements at a time."""

from __future__ import annotations

from typing import Any

from targets.arm_tvm.kernels.emitter import PARALLEL_WORK, Emitter, broadcast, load
from targets.arm_tvm.kernels.integer.requantize import quarters, scaled, write
from targets.arm_tvm.kernels.integer.specs import BLOCK, Dot, ElementwiseSpec


def emit_elementwise(spec: ElementwiseSpec, dot: Dot) -> Any:
    """The kernel: (a[, b], result), all flat; the number of elements is a multiple of 16."""
    emitter = Emitter()
    a = emitter.parameter((spec.elements,), "int8", "a")
    b = emitter.parameter((spec.elements,), "int8", "b") if spec.epilogue.residual_scale is not None else None
    result = emitter.parameter((spec.elements,), "int8" if spec.epilogue.quantized else "float32", "y")
    scale, bias = broadcast(spec.scale, 4, "float32"), broadcast(spec.bias, 4, "float32")
    with emitter.loop(spec.elements // BLOCK, parallel=spec.elements > PARALLEL_WORK) as index:
        offset = index * BLOCK
        parts = quarters(load(a, offset, BLOCK))
        added = load(b, offset, BLOCK) if b is not None else None
        values = scaled(parts, [scale] * 4, [bias] * 4, added, spec.epilogue)
        write(emitter, values, (result, offset), spec.epilogue, dot)
    return emitter.function()
