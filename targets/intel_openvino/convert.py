"""The border model as OpenVINO's IR: the same bytes in every folder and process, whatever was converted before."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from compiler.target import TargetPlan, TensorSpec, ToolchainFailed, UnsupportedModel, is_quantized, save_model
from targets.intel_openvino.toolchain import first_lines, input_name, openvino, transform

_EMBED_BYTES = 1 << 20  # above it OpenVINO maps the weights from their file instead of copying them out of protobuf

_HALF = ("fp16-weights", "fp16", "bf16")
"""Precisions whose weights are stored in float16; bfloat16 has fewer bits of each, and parity sees what overflows."""

_REACH = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""Precision → the type that the plugin computes in."""


def write_ir(model: ir.Model, plan: TargetPlan, path: Path) -> None:
    """Writes `path` and the `.bin` beside it. Raises UnsupportedModel if OpenVINO does not convert the model."""
    ov, model = openvino(), _in_reach(model, plan.precision)
    with tempfile.TemporaryDirectory(dir=path.parent.parent) as folder:
        border, *_ = save_model(model, Path(folder) / "border.onnx", external_above_bytes=_EMBED_BYTES)
        try:
            network = ov.Core().read_model(border)
            _name_inputs(network, [str(value.name) for value in model.graph.inputs])
            network.reshape({port: ov.PartialShape(dims) for port, dims in _shapes(network, model, plan)})
            # weights in blocks are what a kernel reads, and tidied up they would be float again
            if is_quantized(model) and plan.precision != "int4-weights":
                _tidy(network)
            _rename(network, {str(model.graph.name), *_names(model)})
            ov.save_model(network, path, compress_to_fp16=plan.precision in _HALF)
        except RuntimeError as error:
            raise UnsupportedModel(f"OpenVINO does not convert the model: {first_lines(error)}") from error


def _in_reach(model: ir.Model, precision: str) -> ir.Model:
    """The model with its finite constants finite in that precision: rounded, the lowest float32 is an infinity.

    A mask of it would then make NaN of a row that is masked as a whole.
    """
    if precision not in _REACH:
        return model
    bound, copy = float(_REACH[precision].max), model.clone()
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    for graph in (copy.graph, *copy.graph.subgraphs()):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype != ir.DataType.FLOAT:
                continue
            array = tensor.numpy()
            is_beyond = (np.abs(array) > bound) & np.isfinite(array)
            if is_beyond.any():
                value.const_value = ir.tensor(
                    np.where(is_beyond, np.sign(array) * bound, array).astype(np.float32), name=value.name
                )
    return copy


def _tidy(network: Any) -> None:
    """What the ONNX frontend writes around Q/DQ and biases, computed once: half the size of the IR, same results."""
    transform(network)


def _name_inputs(network: Any, names: list[str]) -> None:
    """Names every parameter as the model does: one handed straight to an output has only the output's name left."""
    named = {name for port in network.inputs for name in port.get_names()}
    missing = iter([name for name in names if name not in named])
    for port in network.inputs:
        known = sorted(port.get_names() & set(names))
        port.get_node().set_friendly_name(known[0] if known else next(missing))


def _shapes(network: Any, model: ir.Model, plan: TargetPlan) -> Iterator[tuple[Any, list[Any]]]:
    ov = openvino()
    values = {value.name: value for value in model.graph.inputs}
    for port in network.inputs:
        shape = values[input_name(port)].shape
        if shape is not None:
            ranges = [size if isinstance(size, int) else plan.dims.get(str(size)) for size in shape]
            yield port, [_dimension(ov, size) for size in ranges]


def _dimension(ov: Any, size: Any) -> Any:
    if size is None:
        return ov.Dimension()
    return ov.Dimension(size) if isinstance(size, int) else ov.Dimension(size.min, size.max)


def _rename(network: Any, known: set[str]) -> None:
    """Gives every operation that the model has no name for one by its place: OpenVINO's own count up per process."""
    for index, node in enumerate(network.get_ordered_ops()):
        if node.get_friendly_name() not in known:
            node.set_friendly_name(f"{node.get_type_name()}:{index}")
        for body in _bodies(node):
            _rename(body, known)


def _bodies(node: Any) -> list[Any]:
    if node.get_type_name() == "If":
        return [node.get_then_body(), node.get_else_body()]
    return [node.get_function()] if node.get_type_name() in ("Loop", "TensorIterator") else []


def _names(model: ir.Model) -> Iterator[str]:
    for node in model.graph.all_nodes():
        yield str(node.name)
        yield from (str(value.name) for value in node.outputs)
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from (str(value.name) for value in (*graph.inputs, *graph.initializers.values()))


def read_back(path: Path, model: ir.Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as the written IR has them, in the model's order and with its names for ranges."""
    network = openvino().Core().read_model(path)
    ports = {input_name(port): port for port in network.inputs}
    inputs = [(value, ports[value.name]) for value in model.graph.inputs if value.name in ports]
    outputs = list(zip(model.graph.outputs, network.outputs, strict=True))
    for value, port in outputs:
        if value.name not in port.get_names():
            raise ToolchainFailed(f"OpenVINO's IR has no output '{value.name}': it has {sorted(port.get_names())}")
    return tuple(_spec(*pair) for pair in inputs), tuple(_spec(*pair) for pair in outputs)


def _spec(value: ir.Value, port: Any) -> TensorSpec:
    symbols = [str(size) for size in value.shape] if value.shape is not None else []
    if port.get_partial_shape().rank.is_dynamic:
        raise UnsupportedModel(f"OpenVINO cannot tell the rank of '{value.name}', and its CPU plugin needs it")
    sizes = list(port.get_partial_shape())
    wanted = list(value.shape) if value.shape is not None else sizes
    if len(wanted) != len(sizes) or any(
        isinstance(want, int) and size.is_static and size.get_length() != want
        for want, size in zip(wanted, sizes, strict=True)
    ):
        raise UnsupportedModel(
            f"OpenVINO makes '{value.name}' {port.get_partial_shape()}; in the model it is {value.shape}"
        )
    shape = tuple(
        size.get_length() if size.is_static else (symbols[axis] if len(symbols) == len(sizes) else "?")
        for axis, size in enumerate(sizes)
    )
    return TensorSpec(str(value.name), port.get_element_type().to_dtype().name, shape)
