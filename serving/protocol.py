"""The Open Inference Protocol, version 2, over HTTP: requests read, answers written, with Triton's binary tensors.

A body is JSON, or JSON followed by the bytes of tensors; the header `Inference-Header-Content-Length` then says where
the JSON ends. Whatever a client sends gives a `BadRequest` with words for it, and never another exception.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from compiler.target import Array, Arrays, TensorSpec

HEADER_LENGTH = "Inference-Header-Content-Length"

EXTENSIONS = ["binary_tensor_data", "statistics", "model_repository", "model_configuration", "schedule_policy"]
"""Of Triton: what beside the protocol is answered."""

REQUEST_KEY = "x-request-key"
"""A client's name for its request, session or user."""

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
"""NumPy's names → the protocol's."""

MOST_PRIORITY = 1 << 31
LONGEST_TIMEOUT_US = 3_600_000_000
"""An hour: whoever waits longer does not care when."""

MOST_DIMS = 32
"""Of a shape: no model has more, and NumPy has none beyond 64."""

JSON_BYTES_AN_ELEMENT = 32
"""Most that a number takes in JSON, with its comma and brackets."""


class BadRequest(Exception):
    """What a client sent cannot be answered; `status` is the HTTP status, 400 to 499."""

    def __init__(self, what: str, status: int = 400) -> None:
        super().__init__(what)
        self.what, self.status = what, status


@dataclass(frozen=True)
class Wanted:
    """An output that is asked for, and whether as bytes behind the JSON."""

    name: str
    is_binary: bool


@dataclass(frozen=True)
class Inference:
    """A request, checked against what the model takes.

    Args:
        inputs: Name → array.
        size: Items in it: the length of the batch axis; 1 for a model that has none.
        outputs: Which outputs, in which form.
        identity: The client's own name for it; empty where it gave none.
        timeout_s: Time that the client gives it; None where it says nothing.
        priority: The smaller the sooner; 0 where the client says nothing.
    """

    inputs: Arrays
    size: int
    outputs: tuple[Wanted, ...]
    identity: str = ""
    timeout_s: float | None = None
    priority: int = 0


@dataclass(frozen=True)
class Signature:
    """What a served model takes and gives.

    Args:
        inputs: Its inputs.
        outputs: Its outputs.
        sizes: Symbolic dimension → its smallest and its largest size.
        batch: Name of the batch dimension; empty where the items of several requests cannot be run together.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    batch: str = ""

    @property
    def largest(self) -> int:
        """Items of the largest batch."""
        return self.sizes[self.batch][1] if self.batch else 1

    @property
    def smallest(self) -> int:
        """Items of the smallest batch that the build takes."""
        return self.sizes[self.batch][0] if self.batch else 1

    def shapes(self, sizes: Mapping[str, int]) -> list[tuple[str, str, list[int]]]:
        """Name, dtype and shape of every input, with a size for each symbolic dimension."""
        return [
            (spec.name, spec.dtype, [size if isinstance(size, int) else sizes[size] for size in spec.shape])
            for spec in self.inputs
        ]

    def steps(self, place: int) -> dict[str, int]:
        """Symbolic dimension → its smallest size for 0, its largest for 1."""
        return {name: ends[place] for name, ends in self.sizes.items()}

    @cached_property
    def most_bytes(self) -> int:
        """Bytes of the largest body that makes sense, in JSON or in binary."""
        elements = sum(math.prod(shape) for _, _, shape in self.shapes(self.steps(1)))
        return 65536 + JSON_BYTES_AN_ELEMENT * elements


def read_body(body: bytes, *, encoding: str, limit: int) -> bytes:
    """A body as it was before it was compressed.

    Raises:
        BadRequest: Another compression, broken, or more than `limit` bytes.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise BadRequest(f"Content-Encoding '{encoding}' is not known; use gzip or deflate", 415)
    unpacker = zlib.decompressobj(wbits=47)  # 32 + 15: gzip or zlib, whichever its head says
    try:
        whole = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise BadRequest(f"the body is no {encoding}: {error}") from error
    if len(whole) > limit:
        raise BadRequest(f"the body unpacks to more than {limit} bytes", 413)
    if not unpacker.eof:
        raise BadRequest("the compressed body is not complete")
    return whole


def read_inference(body: bytes, header_length: str | None, signature: Signature) -> Inference:
    """A request for one inference.

    Args:
        body: The whole body.
        header_length: The header `Inference-Header-Content-Length`; None where it is not there.
        signature: What the model takes.

    Raises:
        BadRequest: It is no request, or does not fit the model.
    """
    length = _length(header_length, len(body))
    return make_inference(_mapping(_json(body[:length]), "the request"), memoryview(body)[length:], signature)


def make_inference(request: Mapping[str, Any], tail: memoryview, signature: Signature) -> Inference:
    """A request for one inference, checked.

    Args:
        request: Its JSON object.
        tail: Bytes of the inputs that have a `binary_data_size`, one after another.
        signature: What the model takes.

    Raises:
        BadRequest: It does not fit the model.
    """
    parameters = _mapping(request.get("parameters", {}), "parameters")
    _refuse_sequences(parameters)
    inputs = _inputs(request.get("inputs"), tail, signature)
    size = _fit(inputs, signature)
    identity = request.get("id", "")
    if not isinstance(identity, str):
        raise BadRequest("id: expected a text")
    return Inference(
        inputs=inputs,
        size=size,
        outputs=_wanted(request.get("outputs"), parameters, signature),
        identity=identity,
        timeout_s=_timeout(parameters),
        priority=_integer(parameters.get("priority", 0), "parameters.priority", most=MOST_PRIORITY),
    )


def write_answer(
    head: Mapping[str, Any], outputs: Arrays, wanted: Sequence[Wanted]
) -> tuple[list[bytes], dict[str, str]]:
    """An answer's body in parts, and its headers.

    Args:
        head: What stands in the JSON beside the outputs.
        outputs: Name → array.
        wanted: Which of them, in which form.
    """
    tensors, tail = [], list[bytes]()
    for want in wanted:
        array = outputs[want.name]
        tensor: dict[str, Any] = {
            "name": want.name,
            "datatype": DATATYPES[array.dtype.name],
            "shape": list(array.shape),
        }
        if want.is_binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            tail.append(array.tobytes())
        else:
            tensor["data"] = _as_json(array)
        tensors.append(tensor)
    text = json.dumps({**head, "outputs": tensors}).encode()
    if not tail:
        return [text], {"Content-Type": "application/json"}
    return [text, *tail], {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}


def _as_json(array: Array) -> list[Any]:
    """The elements in order; what JSON has no number for is null."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return [value if math.isfinite(value) else None for value in array.ravel().tolist()]
    return array.ravel().tolist()


def _length(text: str | None, total: int) -> int:
    if text is None:
        return total
    if not (text.isascii() and text.isdecimal() and len(text) < 12) or int(text) > total:
        raise BadRequest(f"{HEADER_LENGTH} is {text[:40]!r}, the body has {total} bytes")
    return int(text)


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON: {str(error)[:200]}") from error


def _mapping(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"{what}: expected an object")
    return value


def _integer(value: object, what: str, *, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise BadRequest(f"{what}: expected an integer from 0 to {most}")
    return value


def _refuse_sequences(parameters: Mapping[str, Any]) -> None:
    if parameters.get("sequence_id") or parameters.get("sequence_start") or parameters.get("sequence_end"):
        raise BadRequest("parameters.sequence_id: the model keeps nothing between requests")


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    """Triton's `timeout`, in microseconds; 0 says nothing."""
    value = _integer(parameters.get("timeout", 0), "parameters.timeout", most=LONGEST_TIMEOUT_US)
    return value / 1e6 if value else None


def _inputs(value: object, tail: memoryview, signature: Signature) -> dict[str, Array]:
    if not isinstance(value, list):
        raise BadRequest("inputs: expected a list of tensors")
    specs = {spec.name: spec for spec in signature.inputs}
    found: dict[str, Array] = {}
    offset = 0
    for item in value:
        tensor = _mapping(item, "inputs")
        name = tensor.get("name")
        if not isinstance(name, str) or name not in specs or name in found:
            raise BadRequest(f"inputs: {str(name)[:80]!r} is unknown or given twice; the model takes {_names(specs)}")
        found[name], used = _tensor(tensor, specs[name], tail[offset:])
        offset += used
    if missing := [name for name in specs if name not in found]:
        raise BadRequest(f"inputs: {_names(missing)} missing")
    if offset != len(tail):
        raise BadRequest(f"{len(tail) - offset} bytes behind the JSON belong to no input")
    return found


def _names(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _tensor(tensor: Mapping[str, Any], spec: TensorSpec, tail: memoryview) -> tuple[Array, int]:
    """A tensor, and how many bytes of the tail are its own."""
    name, shape = spec.name, _shape(tensor.get("shape"), spec)
    datatype = tensor.get("datatype")
    if datatype != DATATYPES[spec.dtype]:
        raise BadRequest(f"input '{name}': datatype is {str(datatype)[:20]!r}, the model takes {DATATYPES[spec.dtype]}")
    size = _mapping(tensor.get("parameters", {}), f"input '{name}': parameters").get("binary_data_size")
    expected = math.prod(shape) * np.dtype(spec.dtype).itemsize
    if size is None:
        return _from_json(tensor.get("data"), spec, shape), 0
    if "data" in tensor:
        raise BadRequest(f"input '{name}': has both data and binary_data_size")
    size = _integer(size, f"input '{name}': binary_data_size", most=1 << 40)
    if size != expected:
        raise BadRequest(f"input '{name}': binary_data_size is {size}, shape {shape} takes {expected} bytes")
    if size > len(tail):
        raise BadRequest(f"input '{name}': {size} bytes are announced, {len(tail)} are there")
    array: Array = np.frombuffer(tail[:size], np.dtype(spec.dtype)).reshape(shape)
    return _checked(array, name), size


def _shape(value: object, spec: TensorSpec) -> list[int]:
    is_list = isinstance(value, list) and len(value) <= MOST_DIMS
    if not is_list or not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in value):  # type: ignore[attr-defined]  # a list: see before
        raise BadRequest(f"input '{spec.name}': shape: expected a list of at most {MOST_DIMS} sizes")
    shape: list[int] = value  # type: ignore[assignment]  # checked above
    fits = len(shape) == len(spec.shape) and all(
        isinstance(wanted, str) or wanted == size for wanted, size in zip(spec.shape, shape, strict=False)
    )
    if not fits:
        raise BadRequest(f"input '{spec.name}': shape is {shape}, the model takes {list(spec.shape)}")
    return shape


def _from_json(data: object, spec: TensorSpec, shape: Sequence[int]) -> Array:
    """Numbers in order, nested or not."""
    if not isinstance(data, list):
        raise BadRequest(f"input '{spec.name}': expected data or parameters.binary_data_size")
    try:
        given = np.array(data)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadRequest(f"input '{spec.name}': data: {str(error)[:200]}") from error
    array = _as_dtype(given, np.dtype(spec.dtype), spec.name)
    if array.size != math.prod(shape):
        raise BadRequest(f"input '{spec.name}': {array.size} numbers, shape {list(shape)} takes {math.prod(shape)}")
    return _checked(array.reshape(shape), spec.name)


def _as_dtype(given: Array, dtype: np.dtype[Any], name: str) -> Array:
    """Numbers of JSON in the model's own type; what would become another number is refused."""
    kinds = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}[dtype.kind]
    if given.size and given.dtype.kind not in kinds:
        raise BadRequest(f"input '{name}': data: expected {DATATYPES[dtype.name]}, and nothing else, in one shape")
    with np.errstate(over="ignore"):
        array: Array = given.astype(dtype)
    changed = ~np.isfinite(array) if dtype.kind == "f" else array != given
    if given.size and bool(np.any(changed)):
        raise BadRequest(f"input '{name}': data: holds numbers that {DATATYPES[dtype.name]} has not")
    return array


def _checked(array: Array, name: str) -> Array:
    """Infinities may be meant, as in a mask; NaN never is."""
    # the least of numbers is NaN where one of them is: no array of truth values in between
    if array.dtype.kind == "f" and array.size and bool(np.isnan(array.min())):
        raise BadRequest(f"input '{name}': holds NaN")
    if array.dtype.kind == "b" and array.size and bool((array.view(np.uint8) > 1).any()):
        raise BadRequest(f"input '{name}': holds bytes that are neither 0 nor 1")
    return array


def _fit(inputs: Arrays, signature: Signature) -> int:
    """Items of a request, whose inputs agree on every symbolic dimension, each inside its range."""
    sizes: dict[str, int] = {}
    for spec in signature.inputs:
        for wanted, size in zip(spec.shape, inputs[spec.name].shape, strict=True):
            if isinstance(wanted, str) and sizes.setdefault(wanted, size) != size:
                raise BadRequest(f"dimension '{wanted}' is {sizes[wanted]} in one input and {size} in another")
    for name, size in sizes.items():
        least, most = signature.sizes.get(name, (size, size))
        least = 1 if name == signature.batch else least  # a small batch is filled up
        if not least <= size <= most:
            raise BadRequest(f"dimension '{name}' is {size}; the model takes {least} to {most}")
    return sizes.get(signature.batch, 1)


def _wanted(value: object, parameters: Mapping[str, Any], signature: Signature) -> tuple[Wanted, ...]:
    by_default = _flag(parameters.get("binary_data_output", False), "parameters.binary_data_output")
    known = [spec.name for spec in signature.outputs]
    if value is None or value == []:
        return tuple(Wanted(name, by_default) for name in known)
    if not isinstance(value, list):
        raise BadRequest("outputs: expected a list")
    found: dict[str, Wanted] = {}
    for item in value:
        output = _mapping(item, "outputs")
        name = output.get("name")
        if not isinstance(name, str) or name not in known or name in found:
            raise BadRequest(f"outputs: {str(name)[:80]!r} is unknown or asked for twice; there are {_names(known)}")
        own = _mapping(output.get("parameters", {}), f"output '{name}': parameters")
        if own.get("classification"):
            raise BadRequest(f"output '{name}': classification is not offered")
        found[name] = Wanted(name, _flag(own.get("binary_data", by_default), f"output '{name}': binary_data"))
    return tuple(found.values())


def _flag(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"{what}: expected true or false")
    return value
