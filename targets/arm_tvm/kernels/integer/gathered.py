"""Windows of short pixels, gathered into runs of bytes without gaps: for machines that multiply whole vectors.

A row of a window of 7 × 7 with 3 channels has 21 bytes, which fill two vectors of 16 badly; all its 147 bytes fill ten
instead of fourteen. They are copied for one row of results at a time, which stays in the first-level cache.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from targets.arm_tvm.kernels.emitter import Emitter, load, store
from targets.arm_tvm.kernels.integer.specs import BLOCK, ConvSpec, Dot, Image

COPY = 4
"""Instructions that copy a vector: load, store, and their addresses."""
PRODUCTS = 3
"""Instructions that multiply a vector and add up the products."""


def gathered(spec: ConvSpec, dot: Dot) -> ConvSpec:
    """The convolution as its kernel computes it from gathered windows; the same one where gathering does not pay.

    Its source is one row of windows, as pixels of so many channels; all rows of the result are computed from it, each
    when it is filled.
    """
    if dot not in ("widen", "generic") or spec.source.layout != "pixels":
        return spec
    size = spec.kernel[0] * spec.kernel[1] * spec.source.channels
    vectors, copied = -(-size // BLOCK), spec.kernel[0] * _row_vectors(spec)
    if (copied - vectors) * PRODUCTS * spec.result.blocks * BLOCK <= copied * COPY:
        return spec
    source = Image(1, vectors * BLOCK, 1, spec.result.width, "pixels")
    return replace(spec, source=source, kernel=(1, 1), strides=(0, 1), dilations=(1, 1), pads=(0, 0))


def gather_row(emitter: Emitter, spec: ConvSpec, source: tuple[Any, Any], target: tuple[Any, Image]) -> None:
    """Copies the windows of one row of results.

    Args:
        emitter: Takes the statements.
        spec: The convolution as it is in the model.
        source: Buffer, and offset of the first window.
        target: Buffer, with one vector more than the image; how windows lie in it.
    """
    (buffer, first), (copy, image), row_bytes = source, target, spec.kernel[1] * spec.source.channels
    with emitter.loop(image.width) as column:
        begin = emitter.let(first + column * (spec.strides[1] * spec.source.pixel_stride))
        into = emitter.let(column * image.pixel_stride)
        # In order: what a vector has too much is written over by the next row, or the next window.
        for row in range(spec.kernel[0]):
            line = row * spec.dilations[0] * spec.source.row_stride
            for part in range(0, row_bytes, BLOCK):
                value = load(buffer, begin + (line + part), BLOCK)
                emitter.add(store(copy, into + (row * row_bytes + part), value, BLOCK))


def _row_vectors(spec: ConvSpec) -> int:
    return -(-spec.kernel[1] * spec.source.channels // BLOCK)
