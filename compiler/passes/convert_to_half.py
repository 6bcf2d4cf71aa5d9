"""convert-to-fp16, convert-to-bf16: computes in half precision what can be, and says what stays float32.

1. A node computes in half if its schema allows that type, `STAYS_FLOAT32` has no reason against it, its types are known
   its constants survive: finite ones stay finite, a single nonzero number stays nonzero; and what it reads is not known
   to go beyond the type's range (`half_range.py`), as the mask of attention does; and it works out no angle of
   positions (`half_angles.py`).
2. A Cast stands on each edge between float32 and half, one per value and direction; constants are converted themselves,
   into copies of their own, so that a float32 reader keeps its constant.
3. Graph inputs and outputs keep names and types; subgraphs and functions stay float32.
Attention computes its softmax in float32 inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from compiler.errors import InternalError, UnsupportedModel
from compiler.model.graph import PassResult, add_constant
from compiler.passes.half_angles import find_angles
from compiler.passes.half_range import beyond_range
from compiler.passes.half_table import STAYS_FLOAT32
from compiler.passes.values import Names, constant_tensor, display_name, nodes_at, record_origin

_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_EITHER = frozenset({"Shape", "Size"})
"""They read no element, only the shape, so they take either type."""
_ANGLE = "it works out an angle of positions, and half precision holds few integers"
_TYPE_NAMES = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}


@dataclass(frozen=True)
class ConvertPrecision:
    """The pass.

    Args:
        precision: `fp16` or `bf16`.
        lossy: Results are rounded, so gates judge them and not the probe.
    """

    precision: str
    lossy: bool = True

    @property
    def name(self) -> str:
        """`convert-to-fp16` or `convert-to-bf16`."""
        return f"convert-to-{self.precision}"

    def __call__(self, model: ir.Model) -> PassResult:
        """Converts the main graph."""
        notes: list[str] = []
        chosen = _choose(model, self.precision, notes)
        if chosen:
            _Conversion(model, _TYPES[self.precision]).apply(chosen)
        return PassResult(bool(chosen), tuple(notes))


def convert_precision(precision: str) -> ConvertPrecision:
    """The pass for `fp16` or `bf16`.

    Raises:
        InternalError: Another precision; the plan offers only these.
    """
    if precision not in _TYPES:
        raise InternalError(f"there is no pass for the precision '{precision}'")
    return ConvertPrecision(precision)


def refuse_undefined(model: ir.Model, precision: str) -> None:
    """Refuses a model whose products would all stay float32 because its opset does not define them in that type.

    Raises:
        UnsupportedModel: Naming the operators; converting what is between them would only add Casts.
    """
    opset = model.graph.opset_imports.get("", 1)
    kinds = {
        node.op_type
        for node in model.graph
        if node.op_type in _PRODUCTS and _is_float(node.outputs[0]) and _ports(node, opset, precision) is None
    }
    if kinds:
        raise UnsupportedModel(
            f"opset {opset}, which the model is written in, does not define {', '.join(sorted(kinds))} for {precision}",
            remedy=f"Export the model with opset 22 or newer, or choose another precision than {precision}.",
        )


@dataclass(frozen=True)
class _Ports:
    """Indices of a node's float32 inputs and outputs that become half."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def _choose(model: ir.Model, precision: str, notes: list[str]) -> dict[ir.Node, _Ports]:
    chosen: dict[ir.Node, _Ports] = {}
    opset = model.graph.opset_imports.get("", 1)
    large = beyond_range(model.graph, float(_TYPES[precision].max))
    angles = find_angles(model.graph)
    for node in model.graph:
        if node in angles:
            notes.append(f"{display_name(node)}: {node.op_type} stays float32: {_ANGLE}")
            continue
        if node.op_type in _EITHER or not any(_is_float(value) for value in (*node.inputs, *node.outputs)):
            continue
        ports, reason = _decide(node, opset, precision, large)
        if ports is not None:
            chosen[node] = ports
        elif reason:
            notes.append(f"{display_name(node)}: {node.op_type} stays float32: {reason}")
    return chosen


def _decide(node: ir.Node, opset: int, precision: str, large: frozenset[ir.Value]) -> tuple[_Ports | None, str]:
    """The ports to convert, or None and the reason; an empty reason writes no note."""
    if node.op_type in STAYS_FLOAT32 and node.domain == "":
        return None, "" if node.op_type in ("Cast", "Constant") else STAYS_FLOAT32[node.op_type]
    if node.domain != "":
        return None, f"its domain '{node.domain}' is not known here"
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        return None, "it holds a subgraph"
    if any(value is not None and value.name and value.type is None for value in (*node.inputs, *node.outputs)):
        return None, "the type of an input or output is not known"
    ports = _ports(node, opset, precision)
    if ports is None:
        return None, f"opset {opset} does not define it for {precision}"
    if not ports.inputs:
        return None, ""
    lost = next((reason for index in ports.inputs for reason in [_lost(node.inputs[index], precision)] if reason), "")
    if lost:
        return None, lost
    beyond = next((value for value in node.inputs if value in large), None)
    if beyond is not None:
        # the first node that reads such a value has a note, and those behind it stay float32 for the same reason
        limit = float(_TYPES[precision].max)
        noted = f"'{beyond.name}' may go beyond {limit:.5g}, as the lowest number of a mask does"
        return None, "" if beyond.producer() is not None else noted
    return ports, ""


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT and isinstance(value.type, ir.TensorType)


def _ports(node: ir.Node, opset: int, precision: str) -> _Ports | None:
    """Inputs and outputs of the type variables that can be half; None if a float32 input is of one that cannot."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None
    allowed = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if _TYPE_NAMES[precision] in constraint.allowed_type_strs
    }
    inputs = [
        (index, kind)
        for index, (value, kind) in enumerate(zip(node.inputs, _kinds(schema.inputs), strict=False))
        if _is_float(value) and kind in allowed
    ]
    bound = {kind for _, kind in inputs}
    outputs = [
        (index, kind)
        for index, (value, kind) in enumerate(zip(node.outputs, _kinds(schema.outputs), strict=False))
        if _is_float(value) and kind in bound
    ]
    variables = {constraint.type_param_str for constraint in schema.type_constraints}
    kinds = zip(node.inputs, _kinds(schema.inputs), strict=False)
    if any(_is_float(value) and kind in variables - allowed for value, kind in kinds):
        return None
    return _Ports(tuple(index for index, _ in inputs), tuple(index for index, _ in outputs))


def _kinds(formals: Sequence[onnx.defs.OpSchema.FormalParameter]) -> Iterator[str]:
    """Type variable of each input or output; the last one repeats if it is variadic."""
    for formal in formals:
        yield formal.type_str
    while formals and formals[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic:
        yield formals[-1].type_str


def _lost(value: ir.Value | None, precision: str) -> str:
    """What half precision would do to a constant, empty if nothing bad."""
    tensor = constant_tensor(value)
    if value is None or tensor is None or tensor.size == 0:
        return ""
    array = tensor.numpy()
    largest = float(np.max(np.abs(array), where=np.isfinite(array), initial=0.0))
    limit = float(ir.DataType(_TYPES[precision]).max)
    if largest > limit:
        return f"its constant '{value.name}' reaches {largest:.3g}, beyond {limit:.5g}"
    if largest > 0.0 and not np.any(array.astype(_TYPES[precision].numpy())):
        return f"its constant '{value.name}' of {largest:.3g} would become 0"
    return ""


@dataclass
class _Conversion:
    """One conversion under way: the values that are half now, and the Casts and constants made so far."""

    model: ir.Model
    dtype: ir.DataType
    halves: set[ir.Value] = field(default_factory=set)
    narrowed: dict[ir.Value, ir.Value] = field(default_factory=dict)
    widened: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = Names(self.model)

    def apply(self, chosen: dict[ir.Node, _Ports]) -> None:
        """Converts outputs first, so that every reader sees which of its inputs are half."""
        for node, ports in chosen.items():
            self._narrow_outputs(node, ports)
        for node, ports in chosen.items():
            for index in ports.inputs:
                value = node.inputs[index]
                if value is not None and value not in self.halves:
                    node.replace_input_with(index, self._narrow(value))
            if node.op_type == "Attention" and "softmax_precision" not in node.attributes:
                node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", int(ir.DataType.FLOAT))
        for value in list(self.halves):
            for reader, index in list(value.uses()):
                takes_half = index in chosen.get(reader, _NONE).inputs or reader.op_type in _EITHER
                if not takes_half and reader is not self._widening(value):
                    reader.replace_input_with(index, self._widen(value))
        self._drop_unread()

    def _narrow_outputs(self, node: ir.Node, ports: _Ports) -> None:
        for index in ports.outputs:
            value = node.outputs[index]
            value.type = ir.TensorType(self.dtype)
            self.halves.add(value)
            if value.is_graph_output():
                self._keep_output(value)

    def _keep_output(self, value: ir.Value) -> None:
        """Puts a Cast behind the value that takes over its name and its place among the graph outputs."""
        name = str(value.name)
        value.name = self.names.fresh(f"{name}_half")
        wide = self._cast(value, ir.DataType.FLOAT, name)
        outputs = self.model.graph.outputs
        for position, output in enumerate(outputs):
            if output is value:
                outputs[position] = wide
        self.widened[value] = wide

    def _narrow(self, value: ir.Value) -> ir.Value:
        if value not in self.narrowed:
            name = self.names.fresh(f"{value.name}_half")
            tensor = constant_tensor(value)
            self.narrowed[value] = (
                self._cast(value, self.dtype, name) if tensor is None else self._convert(tensor, name)
            )
        return self.narrowed[value]

    def _convert(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        return add_constant(self.model.graph, name, tensor.numpy().astype(self.dtype.numpy()))

    def _widen(self, value: ir.Value) -> ir.Value:
        if value not in self.widened:
            self.widened[value] = self._cast(value, ir.DataType.FLOAT, self.names.fresh(f"{value.name}_float"))
        return self.widened[value]

    def _widening(self, value: ir.Value) -> ir.Node | None:
        return self.widened[value].producer() if value in self.widened else None

    def _cast(self, value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
        producer, stands_for = value.producer(), nodes_at(value)
        node = ir.node("Cast", [value], {"to": int(to)}, name=self.names.fresh(f"{name}_cast"))
        result = node.outputs[0]
        result.name, result.type, result.shape = name, ir.TensorType(to), value.shape
        record_origin(node, stands_for)
        if producer is not None:
            self.model.graph.insert_after(producer, [node])
        else:
            self.model.graph.insert_before(self.model.graph[0], [node])
        return result

    def _drop_unread(self) -> None:
        """Float32 constants whose every reader has the half one now."""
        for value in self.narrowed:
            if value.uses() or value.is_graph_output() or value.is_graph_input():
                continue
            if value.is_initializer():
                del self.model.graph.initializers[str(value.name)]


_NONE = _Ports((), ())
