"""Element-wise kernels with integer results, 16 elements at a time.

Of integers: sums of two tensors, activations, changes of scale. Of floats: images whose channels are scaled.
"""

from __future__ import annotations

from typing import Any

from targets.arm_tvm.kernels.emitter import PARALLEL_ELEMENTS, Emitter, broadcast, load
from targets.arm_tvm.kernels.integer.requantize import parts, read_residual, scaled, write
from targets.arm_tvm.kernels.integer.specs import BLOCK, Dot, ElementwiseSpec, GateSpec
from targets.arm_tvm.kernels.integer.vectors import vectors_of


def emit_elementwise(spec: ElementwiseSpec, dot: Dot) -> Any:
    """The kernel: (a[, b], result), all flat; the number of elements is a multiple of 16."""
    emitter = Emitter()
    vectors = vectors_of(dot)
    lanes = vectors.lanes
    a = emitter.parameter((spec.elements,), vectors.stored, "a")
    b = emitter.parameter((spec.elements,), vectors.stored, "b") if spec.epilogue.residual_scale is not None else None
    result = emitter.parameter((spec.elements,), vectors.stored if spec.epilogue.quantized else "float32", "y")
    scale, bias = broadcast(spec.scale, lanes, "float32"), broadcast(spec.bias, lanes, "float32")
    with emitter.loop(spec.elements // BLOCK, parallel=spec.elements > PARALLEL_ELEMENTS) as index:
        offset = index * BLOCK
        values = parts(vectors.signed(load(a, offset, BLOCK)), lanes)
        added = read_residual(b, offset, BLOCK, dot) if b is not None else None
        values = scaled(values, [scale] * len(values), [bias] * len(values), added, spec.epilogue)
        write(emitter, values, (result, offset), spec.epilogue, dot)
    return emitter.function()


def emit_gate(spec: GateSpec, dot: Dot) -> Any:
    """The kernel: (image, factors of its channels, result), all flat."""
    emitter, vectors, image = Emitter(), vectors_of(dot), spec.image
    lanes, area, blocks = vectors.lanes, image.height * image.width, image.batch * image.blocks
    source = emitter.parameter((image.elements,), "float32", "a")
    factors = emitter.parameter((blocks * BLOCK,), "float32", "g")
    result = emitter.parameter((image.elements,), vectors.stored, "y")
    scale, parts = broadcast(spec.scale, lanes, "float32"), range(0, BLOCK, lanes)
    with emitter.loop(blocks, parallel=image.elements > PARALLEL_ELEMENTS) as block:
        held = [emitter.let(load(factors, block * BLOCK + part, lanes) * scale) for part in parts]
        with emitter.loop(area) as pixel:
            offset = (block * area + pixel) * BLOCK
            values = [load(source, offset + part, lanes) * factor for part, factor in zip(parts, held, strict=True)]
            write(emitter, values, (result, offset), spec.epilogue, dot)
    return emitter.function()
