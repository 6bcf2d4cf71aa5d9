"""Copies of an image: with a border around it, or pixel by pixel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from targets.arm_tvm.kernels.emitter import Emitter, broadcast, int32, load, store
from targets.arm_tvm.kernels.integer.specs import BLOCK, Dot, Image, PadSpec
from targets.arm_tvm.kernels.integer.vectors import vectors_of


def emit_padded(
    emitter: Emitter,
    source: tuple[Any, Any, Image],
    extent: tuple[int, int],
    pads: tuple[int, int],
    fill: int,
) -> tuple[Any, Image]:
    """A local copy of one blocked image with a border around it.

    Args:
        emitter: Takes the statements.
        source: Buffer, offset, shape.
        extent: Rows and columns of the copy.
        pads: Rows and columns before the image.
        fill: The value of the border, as it is stored.

    Returns:
        The copy's buffer and shape.
    """
    image = replace(source[2], batch=1, height=extent[0], width=extent[1])
    buffer = emitter.allocate(image.elements, str(source[0].dtype), "global")
    copy_into(emitter, source, (buffer, int32(0), image), (0, *pads), fill)
    return buffer, image


def emit_rows(emitter: Emitter, source: tuple[Any, Any, Image], channels: int) -> tuple[Any, Image]:
    """A local copy of one blocked image in which the channels of a pixel follow each other.

    Args:
        emitter: Takes the statements.
        source: Buffer, offset, shape.
        channels: Of the copy: those that the source lacks are left as they are.

    Returns:
        The copy's buffer and shape.
    """
    buffer, place, blocked = source
    image = replace(blocked, batch=1, layout="rows", channels=channels)
    rows = emitter.allocate(image.elements, str(buffer.dtype), "global")
    with emitter.loop(blocked.height * blocked.width) as pixel:
        for block in range(blocked.blocks):
            value = load(buffer, place + block * blocked.block_stride + pixel * BLOCK, BLOCK)
            emitter.add(store(rows, pixel * image.pixel_stride + block * BLOCK, value, BLOCK))
    return rows, image


def copy_into(
    emitter: Emitter,
    source: tuple[Any, Any, Image],
    target: tuple[Any, Any, Image],
    offset: tuple[int, int, int],
    fill: int,
) -> None:
    """Copies one blocked image into a larger one, or what of it fits, and fills the rest.

    Args:
        emitter: Takes the statements.
        source: Buffer, offset, shape.
        target: Buffer, offset, shape.
        offset: Blocks of channels, rows and columns before it.
        fill: The value of the border.
    """
    _, _, image = target
    blocks, top, left = offset
    rows = max(min(source[2].height, image.height - top), 0)
    columns = max(min(source[2].width, image.width - left), 0)
    _fill(emitter, target, int32(0), blocks * image.height * image.width, fill)
    with emitter.loop(source[2].blocks) as block:
        start = (block + blocks) * (image.height * image.width)
        _fill(emitter, target, start, top * image.width + left, fill)
        origin, into = block * source[2].block_stride, start + (top * image.width + left)
        with emitter.loop(rows - 1) as row:
            first = into + row * image.width
            _copy(emitter, source, target, origin + row * source[2].row_stride, first, columns)
            _fill(emitter, target, first + columns, image.width - columns, fill)
        last = (rows - 1) * image.width
        _copy(emitter, source, target, origin + (rows - 1) * source[2].row_stride, into + last, columns)
        done = top * image.width + left + last + columns
        _fill(emitter, target, start + done, image.height * image.width - done, fill)
    done = (source[2].blocks + blocks) * image.height * image.width
    _fill(emitter, target, int32(done), (image.blocks - source[2].blocks - blocks) * image.height * image.width, fill)


def _copy(
    emitter: Emitter, source: tuple[Any, Any, Image], target: tuple[Any, Any, Image], start: Any, pixel: Any, count: int
) -> None:
    with emitter.loop(count) as index:
        value = load(source[0], source[1] + start + index * BLOCK, BLOCK)
        emitter.add(store(target[0], target[1] + (pixel + index) * BLOCK, value, BLOCK))


def _fill(emitter: Emitter, target: tuple[Any, Any, Image], pixel: Any, count: int, fill: int) -> None:
    with emitter.loop(count) as index:
        offset = target[1] + (pixel + index) * BLOCK
        emitter.add(store(target[0], offset, broadcast(fill, BLOCK, str(target[0].dtype)), BLOCK))


def emit_pad(spec: PadSpec, dot: Dot) -> Any:
    """The kernel: (source, result)."""
    emitter, vectors = Emitter(), vectors_of(dot)
    source = emitter.parameter((spec.source.elements,), vectors.stored, "x")
    result = emitter.parameter((spec.result.elements,), vectors.stored, "y")
    with emitter.loop(spec.source.batch) as batch:
        copy_into(
            emitter,
            (source, batch * spec.source.batch_stride, spec.source),
            (result, batch * spec.result.batch_stride, spec.result),
            (spec.offset[0] // BLOCK, *spec.offset[1:]),
            vectors.constant(spec.fill),
        )
    return emitter.function()
