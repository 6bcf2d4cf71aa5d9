"""Shapes of a kernel's tensors, and copies of sources that are padded, so that every vector can be loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from targets.arm_tvm.kernels.emitter import PARALLEL_WORK, Emitter, broadcast, load, store
from targets.arm_tvm.kernels.floating_point.workload import ConvWorkload, blocks


@dataclass(frozen=True)
class SourceLayout:
    """How a source lies in memory: strides in elements; `blocks` blocks of `depth` channels."""

    blocks: int
    depth: int
    batch: int
    block: int
    row: int
    column: int


def source_shape(workload: ConvWorkload, lanes: int) -> tuple[int, ...]:
    """Shape of the tensor that a kernel takes."""
    if workload.layout == "rows":
        return (workload.width, workload.channels)
    if workload.layout == "planar":
        return (workload.batch, workload.channels, workload.height, workload.width)
    return (workload.batch, blocks(workload.channels, lanes), workload.height, workload.width, lanes)


def result_shape(workload: ConvWorkload, lanes: int) -> tuple[int, ...]:
    """Shape of the tensor that a kernel gives."""
    if workload.layout == "rows":
        return (workload.width, workload.filters)
    return (workload.batch, blocks(workload.filters, lanes), *workload.result, lanes)


def padded_source(emitter: Emitter, source: Any, work: ConvWorkload, lanes: int) -> tuple[Any, SourceLayout]:
    """The source, or a copy of it with its border of zeros, or with rows that fill whole vectors."""
    if work.layout == "planar" or any(work.padding):
        return _Copy(emitter, work, lanes).padded(source)
    if work.layout == "rows":
        return _Copy(emitter, work, lanes).whole_rows(source) if work.channels % lanes else (source, _rows(work, lanes))
    count, area = blocks(work.channels, lanes), work.height * work.width
    return source, SourceLayout(count, lanes, count * area * lanes, area * lanes, work.width * lanes, lanes)


def _rows(work: ConvWorkload, lanes: int) -> SourceLayout:
    size = blocks(work.channels, lanes)
    return SourceLayout(size, lanes, 0, lanes, 0, size * lanes)


class _Copy:
    """A copy of a source while it is written."""

    def __init__(self, emitter: Emitter, work: ConvWorkload, lanes: int) -> None:
        self.emitter, self.work, self.lanes, self.dtype = emitter, work, lanes, work.dtype

    def whole_rows(self, source: Any) -> tuple[Any, SourceLayout]:
        """Each row fills whole vectors."""
        channels, image = self.work.channels, _rows(self.work, self.lanes)
        buffer = self.emitter.allocate(self.work.width * image.column, self.dtype, "global")
        with self.emitter.loop(self.work.width) as row:
            self._copy(buffer, row * image.column, source, row * channels, channels)
            self._zeros(buffer, row * image.column + channels, image.column - channels)
        return buffer, image

    def padded(self, source: Any) -> tuple[Any, SourceLayout]:
        """A border of zeros around each plane, and room for one vector behind the last."""
        work, depth = self.work, 1 if self.work.layout == "planar" else self.lanes
        top, left, bottom, right = work.padding
        height, width = work.height + top + bottom, work.width + left + right
        count = blocks(work.channels, depth)
        image = SourceLayout(count, depth, count * height * width * depth, height * width * depth, width * depth, depth)
        # The zeros behind a row are its right border and the left border of the next row; behind the last row they
        # need the extra `left * depth` elements.
        buffer = self.emitter.allocate(work.batch * image.batch + self.lanes + left * depth, self.dtype, "global")
        planes = work.batch * count
        with self.emitter.loop(planes, parallel=planes * height * width > PARALLEL_WORK) as plane:
            base = plane * image.block
            self._zeros(buffer, base, top * image.row + left * depth)
            with self.emitter.loop(work.height) as row:
                start, size = base + (row + top) * image.row + left * depth, work.width * depth
                self._copy(buffer, start, source, (plane * work.height + row) * size, size)
                if left + right:
                    self._zeros(buffer, start + size, (left + right) * depth)
            tail = (top + work.height) * image.row + left * depth
            if image.block - tail > 0:
                self._zeros(buffer, base + tail, image.block - tail)
        return buffer, image

    def _copy(self, buffer: Any, start: Any, source: Any, origin: Any, size: int) -> None:
        whole, rest = divmod(size, self.lanes)
        if whole:
            with self.emitter.loop(whole) as at:
                value = load(source, origin + at * self.lanes, self.lanes)
                self.emitter.add(store(buffer, start + at * self.lanes, value, self.lanes))
        for element in range(size - rest, size):
            self.emitter.add(store(buffer, start + element, load(source, origin + element, 1), 1))

    def _zeros(self, buffer: Any, start: Any, size: int) -> None:
        whole, rest = divmod(size, self.lanes)
        if whole:
            with self.emitter.loop(whole) as at:
                zero = broadcast(0.0, self.lanes, self.dtype)
                self.emitter.add(store(buffer, start + at * self.lanes, zero, self.lanes))
        for element in range(size - rest, size):
            self.emitter.add(store(buffer, start + element, broadcast(0.0, 1, self.dtype), 1))
