"""Weights as arrays over memory-mapped files: read when they are used, never copied."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto

from compiler.model.frontend.tensors import byte_size, external_place, node_tensors

SCAN_ELEMENTS = 1 << 20
"""Elements that one step of the scan for NaN and infinity reads: 4 MiB of float32."""

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def mapped_tensor(proto: TensorProto, buffer: memoryview) -> ir.TensorProtocol:
    """The tensor whose little-endian bytes are that part of a mapped file; nothing is copied."""
    dtype = ir.DataType(proto.data_type)
    shape = ir.Shape(proto.dims)
    name = proto.name or None
    if dtype.bitwidth < 8:
        packed = np.frombuffer(buffer, dtype=np.uint8)
        return ir.PackedTensor(packed, dtype, shape=shape, name=name)
    array = np.frombuffer(buffer, dtype=dtype.numpy()).reshape(tuple(proto.dims))
    return ir.Tensor(array, dtype=dtype, shape=shape, name=name)


class DataFiles:
    """The external-data files of one model, each mapped once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: dict[str, memoryview] = {}

    def part(self, proto: TensorProto) -> memoryview:
        """The bytes of one external tensor, which has been checked."""
        location, offset, _ = external_place(proto)
        size = byte_size(proto.data_type, int(np.prod(proto.dims, dtype=np.int64)))
        if size == 0:
            return memoryview(b"")
        if location not in self._maps:
            with (self._folder / location).open("rb") as file:
                self._maps[location] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return self._maps[location][offset : offset + size]


def inline_attribute_data(proto: onnx.ModelProto, files: DataFiles) -> None:
    """Loads external data of attribute tensors, which are small and rare, into the message."""
    for node in [*proto.graph.node, *(node for function in proto.functions for node in function.node)]:
        for _, tensor in node_tensors(node, initializers=False):
            if tensor.data_location == TensorProto.EXTERNAL:
                tensor.raw_data = bytes(files.part(tensor))
                tensor.ClearField("data_location")
                del tensor.external_data[:]


def weight_notes(model: ir.Model) -> Iterator[str]:
    """A note for each weight that holds NaN or infinity."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in _FLOATS:
                count = _not_finite(tensor)
                if count:
                    yield f"weight '{name}' holds {count} values that are NaN or infinite"


def _not_finite(tensor: ir.TensorProtocol) -> int:
    flat = tensor.numpy().reshape(-1)
    steps = range(0, flat.size, SCAN_ELEMENTS)
    return sum(int((~np.isfinite(flat[start : start + SCAN_ELEMENTS])).sum()) for start in steps)
