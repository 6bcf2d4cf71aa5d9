"""The loop that depthwise convolution and pooling have in common: images, blocks of channels, rows of the result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from targets.arm_tvm.kernels.emitter import PARALLEL_WORK, Emitter, int32
from targets.arm_tvm.kernels.integer.padding import emit_padded
from targets.arm_tvm.kernels.integer.specs import ConvSpec, Dot, Image, PoolSpec, is_beyond
from targets.arm_tvm.kernels.integer.vectors import vectors_of


@dataclass(frozen=True)
class Row:
    """One row of the result, one block of channels.

    Args:
        source: The buffer its windows lie in.
        image: How the source lies in it.
        block: Number of the block.
        start: Offset of its first window.
        into: Offset of its first pixel in the result.
    """

    source: Any
    image: Image
    block: Any
    start: Any
    into: Any


@contextmanager
def each_row(
    emitter: Emitter,
    spec: ConvSpec | PoolSpec,
    source: Any,
    dot: Dot,
    *,
    work: int,
    reach: tuple[int, int] | None = None,
) -> Iterator[Row]:
    """What is added inside is done for every row of every block; sources with a border are copied first.

    Args:
        emitter: Takes the statements.
        spec: Of windows that see one channel each.
        source: The buffer of the input.
        dot: The machine's kind.
        work: Vector operations of one image; many are spread over the threads.
        reach: Rows and columns of the input that are read, where they are more than the windows touch.
    """
    from tvm import tirx

    result, extent = spec.result, reach or spec.extent
    with emitter.loop(spec.source.batch) as batch:
        image, origin, place = spec.source, source, batch * spec.source.batch_stride
        if any(spec.pads) or is_beyond(extent, spec.source):
            fill = vectors_of(dot).constant(spec.fill)
            origin, image = emit_padded(emitter, (source, place, spec.source), extent, spec.pads, fill)
            place = int32(0)
        with emitter.loop(result.blocks * result.height, parallel=work > PARALLEL_WORK) as part:
            block, row = tirx.floordiv(part, int32(result.height)), tirx.floormod(part, int32(result.height))
            start = place + block * image.block_stride + row * (spec.strides[0] * image.row_stride)
            into = batch * result.batch_stride + block * result.block_stride + row * result.row_stride
            yield Row(origin, image, block, start, into)
