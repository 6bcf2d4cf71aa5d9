"""Checks of one stored tensor: its size, its type, and its file of external data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto
from onnx_ir import DataType

MAX_TENSOR_BYTES = 2**44
"""16 TiB: no machine holds such a tensor, so its dimensions are damage rather than a model."""

_TYPED_FIELDS: Mapping[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
}
"""Element type → the field that holds it when raw_data does not; every other type is in int32_data."""


def tensor_problems(tensor: TensorProto, *, folder: Path, mapped_bytes: int | None = None) -> Iterator[str]:
    """Every problem of one tensor, in words.

    Args:
        tensor: The stored tensor.
        folder: Where external data must lie.
        mapped_bytes: Size of its raw data where that was left in the model file.
    """
    if tensor.data_type not in {member.value for member in DataType} or tensor.data_type == TensorProto.UNDEFINED:
        yield f"its element type {tensor.data_type} is not one ONNX has"
        return
    if any(dim < 0 for dim in tensor.dims):
        yield f"its shape {list(tensor.dims)} has a negative dimension"
        return
    elements = math.prod(tensor.dims)
    if elements > MAX_TENSOR_BYTES:
        yield f"its shape {list(tensor.dims)} would be {elements} elements"
    elif tensor.HasField("segment"):
        yield "it is stored in segments, which ONNX has never defined"
    elif tensor.data_location == TensorProto.EXTERNAL:
        yield from _external_problems(tensor, elements, folder)
    else:
        yield from _stored_problems(tensor, elements, mapped_bytes)


def byte_size(data_type: int, elements: int) -> int:
    """Bytes of that many elements, those under a byte packed."""
    return (elements * DataType(data_type).bitwidth + 7) // 8


def external_place(tensor: TensorProto) -> tuple[str, int, int | None]:
    """Location, offset and length of external data, as written.

    Raises:
        ValueError: Offset or length is no number.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    length = entries.get("length")
    return entries.get("location", ""), int(entries.get("offset", "0")), None if length is None else int(length)


def _stored_problems(tensor: TensorProto, elements: int, mapped_bytes: int | None) -> Iterator[str]:
    if tensor.data_type == TensorProto.STRING:
        if len(tensor.string_data) != elements:
            yield f"it holds {len(tensor.string_data)} strings, its shape {list(tensor.dims)} needs {elements}"
        return
    raw = len(tensor.raw_data) if mapped_bytes is None else mapped_bytes
    needed = byte_size(tensor.data_type, elements)
    if tensor.HasField("raw_data") or mapped_bytes is not None:
        if raw != needed:
            yield f"it holds {raw} bytes, its shape {list(tensor.dims)} needs {needed}"
        return
    yield from _typed_problems(tensor, elements)


def _typed_problems(tensor: TensorProto, elements: int) -> Iterator[str]:
    name = _TYPED_FIELDS.get(tensor.data_type, "int32_data")
    held = len(getattr(tensor, name))
    complex_factor = 2 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1
    packed = DataType(tensor.data_type).bitwidth < 8
    needed = byte_size(tensor.data_type, elements) if packed else elements * complex_factor
    if held != needed:
        yield f"it holds {held} values in {name}, its shape {list(tensor.dims)} needs {needed}"


def _external_problems(tensor: TensorProto, elements: int, folder: Path) -> Iterator[str]:
    if tensor.data_type == TensorProto.STRING:
        yield "strings cannot be external data"
        return
    try:
        location, offset, length = external_place(tensor)
    except ValueError:
        yield "the offset or length of its external data is no number"
        return
    path = folder / location
    complaint = _path_problem(location, folder)
    if complaint:
        yield complaint
        return
    needed = byte_size(tensor.data_type, elements)
    if length is not None and length != needed:
        yield f"its external data is {length} bytes long, its shape {list(tensor.dims)} needs {needed}"
    if offset < 0:
        yield f"the offset of its external data, {offset}, is negative"
    elif offset + needed > path.stat().st_size:
        yield f"its external data ends at byte {offset + needed} of '{location}', which has {path.stat().st_size}"


def _path_problem(location: str, folder: Path) -> str:
    """Why a location is refused, or nothing."""
    if not location or "\0" in location:
        return "its external data names no file"
    if Path(location).is_absolute() or "\\" in location or ":" in location:
        return f"its external data is at '{location}', which is not a relative path inside the model's folder"
    if ".." in Path(location).parts:
        return f"its external data is at '{location}', which climbs out of the model's folder"
    try:
        real = (folder / location).resolve()
        if not real.is_relative_to(folder.resolve()):
            return f"its external data '{location}' is a link to '{real}', outside the model's folder"
        if not real.exists():
            return f"its external data file '{location}' is missing from '{folder}'"
        if not real.is_file():
            return f"its external data '{location}' is no regular file"
        with real.open("rb"):
            return ""
    except (OSError, RuntimeError) as error:
        return f"its external data '{location}' cannot be read: {getattr(error, 'strerror', None) or error}"


def each_tensor(graph: onnx.GraphProto, *, initializers: bool = True) -> Iterator[tuple[str, TensorProto]]:
    """Every tensor of a graph and its subgraphs, with words that say where it is; initializers only if asked for."""
    for tensor in graph.initializer if initializers else ():
        yield f"initializer '{tensor.name}'", tensor
    for sparse in graph.sparse_initializer if initializers else ():
        yield f"sparse initializer '{sparse.values.name}' (values)", sparse.values
        yield f"sparse initializer '{sparse.values.name}' (indices)", sparse.indices
    for node in graph.node:
        yield from node_tensors(node, initializers=initializers)


def node_tensors(node: onnx.NodeProto, *, initializers: bool = True) -> Iterator[tuple[str, TensorProto]]:
    """Every tensor in a node's attributes, subgraphs included."""
    for attribute in node.attribute:
        words = f"{node.op_type} '{node.name}', attribute '{attribute.name}'"
        dense = [attribute.t] if attribute.HasField("t") else []
        for tensor in (*dense, *attribute.tensors):
            yield words, tensor
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for item in (*sparse, *attribute.sparse_tensors):
            yield f"{words} (values)", item.values
            yield f"{words} (indices)", item.indices
        for inner in subgraphs(attribute):
            yield from each_tensor(inner, initializers=initializers)


def subgraphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    """The graphs one attribute holds."""
    if attribute.type == onnx.AttributeProto.GRAPH:
        return [attribute.g]
    return list(attribute.graphs) if attribute.type == onnx.AttributeProto.GRAPHS else []


def each_graph(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph inside it, outermost first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in subgraphs(attribute):
                yield from each_graph(inner)
