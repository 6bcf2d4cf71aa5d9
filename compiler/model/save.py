"""Writes models to disk: reproducible bytes, atomically, weights streamed one at a time.

An ONNX file is a protobuf message, so everything but the weights is serialized as usual, and each weight follows as one
more `initializer` field of the graph, straight from where it lies.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto

from compiler.model.graph import SMALL_TENSOR_BYTES
from compiler.store.atomic import write_atomic
from compiler.store.disk import output_errors

EXTERNAL_ABOVE_BYTES = 3 << 29
"""1.5 GiB: weights beyond it go to `<stem>.data`, because one protobuf message ends at 2 GiB."""

ALIGNMENT_BYTES = 64
"""Where a weight may start in external data: a cache line, and any vector register."""

_DELIMITED = 2
_GRAPH_TAG = bytes([onnx.ModelProto.GRAPH_FIELD_NUMBER << 3 | _DELIMITED])
_INITIALIZER_TAG = bytes([onnx.GraphProto.INITIALIZER_FIELD_NUMBER << 3 | _DELIMITED])
_RAW_TAG = bytes([TensorProto.RAW_DATA_FIELD_NUMBER << 3 | _DELIMITED])


def save_model(
    model: ir.Model, path: str | Path, *, external_above_bytes: int = EXTERNAL_ABOVE_BYTES
) -> tuple[Path, ...]:
    """Writes the model, replacing what is there only once it is complete: the same bytes in every folder.

    Args:
        model: Its weights are read one at a time.
        path: The .onnx file; its folder must be there.
        external_above_bytes: With weights of more than this in all, the large ones go to `<stem>.data` beside it; what
            shape inference reads stays inside.

    Returns:
        The files written, the model's own first.

    Raises:
        OutputError: The place cannot be written.
        StorageError: The disk is full or failed.
    """
    place, data = Path(path), Path(path).with_suffix(".data")
    weights = _weights(model)
    is_outside = sum(tensor.nbytes for tensor in weights.values()) > external_above_bytes
    outside = {name: tensor for name, tensor in weights.items() if is_outside and tensor.nbytes > SMALL_TENSOR_BYTES}
    proto = _without(model, weights)
    with output_errors(place):
        offsets = _write_data(data, outside) if outside else {}
        fields = [
            _external(name, tensor, offsets[name], place) if name in outside else _inline(name, tensor)
            for name, tensor in weights.items()
        ]
        _write_onnx(place, proto, fields)
    return (place, data) if outside else (place,)


def varint(number: int) -> bytes:
    """Protobuf's spelling of a number: seven bits a byte, lowest first."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


@dataclass(frozen=True)
class _Field:
    """One initializer as it stands in the file: a serialized head, and perhaps raw data to follow it."""

    head: bytes
    raw: ir.TensorProtocol | None = None

    @property
    def size(self) -> int:
        """Bytes of the message."""
        return len(self.head) + (self.raw.nbytes if self.raw is not None else 0)

    @property
    def framed_size(self) -> int:
        """Bytes of the message with its tag and length."""
        return len(_INITIALIZER_TAG) + len(varint(self.size)) + self.size


def _weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The outer graph's numeric initializers; strings, and what is inside subgraphs, are serialized as usual."""
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {
        name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.dtype != ir.DataType.STRING
    }


def _without(model: ir.Model, weights: dict[str, ir.TensorProtocol]) -> onnx.ModelProto:
    bare = model.clone()
    for name in weights:
        del bare.graph.initializers[name]
    return ir.to_proto(bare)


def _header(name: str, tensor: ir.TensorProtocol) -> TensorProto:
    header = TensorProto(name=name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
    if tensor.doc_string:
        header.doc_string = tensor.doc_string
    for key, value in tensor.metadata_props.items():
        header.metadata_props.add(key=key, value=value)
    return header


def _inline(name: str, tensor: ir.TensorProtocol) -> _Field:
    head = _header(name, tensor).SerializeToString(deterministic=True)
    return _Field(head + _RAW_TAG + varint(tensor.nbytes), tensor)


def _external(name: str, tensor: ir.TensorProtocol, offset: int, place: Path) -> _Field:
    header = _header(name, tensor)
    header.data_location = TensorProto.EXTERNAL
    entries = {"location": place.with_suffix(".data").name, "offset": str(offset), "length": str(tensor.nbytes)}
    for key, value in entries.items():
        header.external_data.add(key=key, value=value)
    return _Field(header.SerializeToString(deterministic=True))


def _write_data(place: Path, weights: Mapping[str, ir.TensorProtocol]) -> dict[str, int]:
    """Writes the external data and returns where each weight starts."""
    offsets: dict[str, int] = {}

    def write(file: BinaryIO) -> None:
        for name, tensor in weights.items():
            file.write(b"\0" * (-file.tell() % ALIGNMENT_BYTES))
            offsets[name] = file.tell()
            _write_raw(file, tensor)

    write_atomic(place, write)
    return offsets


def _write_onnx(place: Path, proto: onnx.ModelProto, fields: Sequence[_Field]) -> None:
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")

    def write(file: BinaryIO) -> None:
        file.write(proto.SerializeToString(deterministic=True))
        file.write(_GRAPH_TAG + varint(len(graph) + sum(field.framed_size for field in fields)))
        file.write(graph)
        for field in fields:
            file.write(_INITIALIZER_TAG + varint(field.size) + field.head)
            if field.raw is not None:
                _write_raw(file, field.raw)

    write_atomic(place, write)


def _write_raw(file: BinaryIO, tensor: ir.TensorProtocol) -> None:
    if isinstance(tensor, ir.ExternalTensor):
        tensor.tofile(file)  # asked for bytes, it would stay in memory, and unpacked if it has less than 8 bits
    else:
        file.write(_raw(tensor))


def _raw(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """The tensor's little-endian bytes, not copied where it is a plain array."""
    if tensor.dtype.bitwidth < 8 or sys.byteorder != "little":
        return tensor.tobytes()
    array = np.ascontiguousarray(tensor.numpy())
    return array.reshape(-1).view(np.uint8).data if array.size else b""
