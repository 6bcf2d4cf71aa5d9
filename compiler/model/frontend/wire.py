"""Large weights left where they are: an ONNX message taken apart just far enough that its raw data need not be copied.

Protobuf would copy every weight into its own memory. Here the message is walked field by field, raw data above a
size is skipped, and only what remains is parsed. Anything unexpected gives the message back whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import TensorProto

from compiler.model.save import varint

MAPPED_ABOVE_BYTES = 1 << 16
"""Raw data from this size on stays in the file."""

_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}


@dataclass(frozen=True)
class Split:
    """A message, and the raw data left out of it.

    Args:
        message: What is left to parse.
        parts: Index among the graph's initializers → its raw data in the buffer.
    """

    message: bytes | memoryview
    parts: Mapping[int, memoryview] = field(default_factory=dict)


def split(buffer: memoryview) -> Split:
    """Takes large raw data out of a serialized ModelProto."""
    try:
        fields = list(_fields(buffer))
        graphs = [item for item in fields if item.number == onnx.ModelProto.GRAPH_FIELD_NUMBER]
        if len(graphs) != 1 or graphs[0].kind != _DELIMITED:
            return Split(buffer)
        parts: dict[int, memoryview] = {}
        graph = b"".join(_graph_pieces(graphs[0].payload, parts))
        pieces = [_framed(item.number, graph) if item is graphs[0] else item.whole for item in fields]
        return Split(b"".join(pieces), parts)
    except ValueError:
        return Split(buffer)


def _graph_pieces(graph: memoryview, parts: dict[int, memoryview]) -> Iterator[bytes | memoryview]:
    index = 0
    for item in _fields(graph):
        if item.number != onnx.GraphProto.INITIALIZER_FIELD_NUMBER or item.kind != _DELIMITED:
            yield item.whole
            continue
        if len(item.payload) >= MAPPED_ABOVE_BYTES:
            yield _framed(item.number, b"".join(_tensor_pieces(item.payload, index, parts)))
        else:
            yield item.whole
        index += 1


def _tensor_pieces(tensor: memoryview, index: int, parts: dict[int, memoryview]) -> Iterator[bytes | memoryview]:
    for item in _fields(tensor):
        is_raw = item.number == TensorProto.RAW_DATA_FIELD_NUMBER and item.kind == _DELIMITED
        if is_raw and index in parts:
            raise ValueError("raw data is there twice")
        if is_raw:
            parts[index] = item.payload
        else:
            yield item.whole


@dataclass(frozen=True)
class _Field:
    number: int
    kind: int
    whole: memoryview
    payload: memoryview


def _fields(buffer: memoryview) -> Iterator[_Field]:
    """The fields of one message; ValueError where it is none, or uses what ONNX does not."""
    place = 0
    while place < len(buffer):
        tag, start = _varint(buffer, place)
        number, kind = tag >> 3, tag & 7
        if kind == _DELIMITED:
            size, start = _varint(buffer, start)
            end = start + size
        elif kind == 0:
            _, end = _varint(buffer, start)
        elif kind in _FIXED_BYTES:
            end = start + _FIXED_BYTES[kind]
        else:
            raise ValueError(f"wire type {kind}")
        if end > len(buffer) or number == 0:
            raise ValueError("a field goes beyond the end")
        yield _Field(number, kind, buffer[place:end], buffer[start:end])
        place = end


def _varint(buffer: memoryview, place: int) -> tuple[int, int]:
    """A number and where the next byte is."""
    number = 0
    for index, byte in enumerate(buffer[place : place + 10]):
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number, place + index + 1
    raise ValueError("a number does not end")


def _framed(number: int, message: bytes) -> bytes:
    return bytes([number << 3 | _DELIMITED]) + varint(len(message)) + message
