"""Names, types and shapes of what an engine takes and gives: of the border model, and as TensorRT states them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compiler.target import TensorSpec, ToolchainFailed

if TYPE_CHECKING:
    import onnx_ir as ir

_UNKNOWN = "?"
_NUMPY = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""TensorRT's element types by the numpy names of what they hold."""


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs; a str in a shape is a dimension that the shapes of the inputs decide."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def model_signature(model: ir.Model) -> Signature:
    """What the border model takes and gives."""
    return Signature(tuple(map(_spec, model.graph.inputs)), tuple(map(_spec, model.graph.outputs)))


def network_signature(network: Any) -> Signature:
    """What the network definition given to the builder takes and gives."""
    return Signature(
        tuple(_read(tensor.name, tensor) for tensor in map(network.get_input, range(network.num_inputs))),
        tuple(_read(tensor.name, tensor) for tensor in map(network.get_output, range(network.num_outputs))),
    )


def engine_signature(engine: Any) -> Signature:
    """What a deserialized engine takes and gives."""
    specs: dict[str, list[TensorSpec]] = {"INPUT": [], "OUTPUT": []}
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        shape, dtype = engine.get_tensor_shape(name), engine.get_tensor_dtype(name)
        specs[engine.get_tensor_mode(name).name].append(
            TensorSpec(name, _NUMPY.get(dtype.name, dtype.name), _sizes(shape))
        )
    return Signature(tuple(specs["INPUT"]), tuple(specs["OUTPUT"]))


def agree(wanted: Signature, actual: Signature, *, source: str) -> Signature:
    """The found signature in the wanted one's order, its open dimensions under their names.

    Args:
        wanted: Of the border model.
        actual: As TensorRT states it.
        source: What `actual` was read from, for the message.

    Raises:
        ToolchainFailed: Names, types or shapes differ; all differences are told.
    """
    differences = [
        *_differences(wanted.inputs, actual.inputs, "input"),
        *_differences(wanted.outputs, actual.outputs, "output"),
    ]
    if differences:
        lines = "\n".join(f"  - {difference}" for difference in differences)
        raise ToolchainFailed(
            f"TensorRT's {source} does not take and give what the border model does:\n{lines}",
            remedy="Report this with the border model.",
        )
    return Signature(_named(wanted.inputs, actual.inputs), _named(wanted.outputs, actual.outputs))


def _differences(wanted: Sequence[TensorSpec], actual: Sequence[TensorSpec], role: str) -> list[str]:
    by_name = {spec.name: spec for spec in actual}
    names = {spec.name for spec in wanted}
    return [
        *(f"{role} '{spec.name}' is not in the model" for spec in actual if spec.name not in names),
        *(
            f"{role} '{spec.name}' should be {_shown(spec)}, is {_shown(by_name.get(spec.name))}"
            for spec in wanted
            if not _fits(spec, by_name.get(spec.name))
        ),
    ]


def _fits(wanted: TensorSpec, actual: TensorSpec | None) -> bool:
    """Whether dtype and rank are equal, and so is every size that both know."""
    if actual is None or wanted.dtype != actual.dtype or len(wanted.shape) != len(actual.shape):
        return False
    pairs = zip(wanted.shape, actual.shape, strict=True)
    return all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def _named(wanted: Sequence[TensorSpec], actual: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    by_name = {spec.name: spec for spec in actual}
    return tuple(
        replace(
            spec,
            shape=tuple(
                b if isinstance(b, int) else a for a, b in zip(spec.shape, by_name[spec.name].shape, strict=True)
            ),
        )
        for spec in wanted
    )


def _spec(value: ir.Value) -> TensorSpec:
    dtype = value.dtype.numpy().name if value.dtype is not None else _UNKNOWN
    shape = () if value.shape is None else tuple(value.shape)
    return TensorSpec(
        str(value.name), dtype, tuple(size if isinstance(size, int) else size.value or _UNKNOWN for size in shape)
    )


def _read(name: str, tensor: Any) -> TensorSpec:
    return TensorSpec(name, _NUMPY.get(tensor.dtype.name, tensor.dtype.name), _sizes(tensor.shape))


def _sizes(shape: Sequence[int]) -> tuple[int | str, ...]:
    return tuple(_UNKNOWN if size < 0 else int(size) for size in shape)


def _shown(spec: TensorSpec | None) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]" if spec else "missing"
