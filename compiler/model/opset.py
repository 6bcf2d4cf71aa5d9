"""A model raised to a newer opset by ONNX's version converter, its weights shared and not copied."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from compiler.errors import UnsupportedModel
from compiler.model.graph import skeleton

RESIZE_OPSET = 11
"""Resize says since then how places are computed; Upsample and the Resize before it had one way."""


def raise_opset(model: ir.Model, opset: int, *, reason: str) -> ir.Model:
    """A copy of the model in at least this version of the default domain; every node has a name.

    Args:
        model: It is left as it is.
        opset: The version that is needed.
        reason: What needs it, for the message: `its quantized form`.

    Raises:
        UnsupportedModel: The converter does not know some operator, or refuses the model.
    """
    current = model.graph.opset_imports.get("", 1)
    if current >= opset:
        return model.clone()
    try:
        raised = onnx.version_converter.convert_version(skeleton(model), opset)
        inferred = onnx.shape_inference.infer_shapes(raised, data_prop=True)
    except (RuntimeError, ValueError, onnx.checker.ValidationError, onnx.version_converter.ConvertError) as error:
        raise UnsupportedModel(
            f"the model's opset {current} cannot be raised to {opset}, which {reason} needs: {str(error)[:300]}",
            remedy=f"Export the model with opset {opset} or newer.",
        ) from error
    copy = ir.from_proto(inferred)
    if current < RESIZE_OPSET <= opset:
        _place_old_samples(copy)
    _put_weights_back(copy, model)
    _keep_metadata(copy, model)
    return copy


def _place_old_samples(model: ir.Model) -> None:
    """What the converter leaves out: it makes Resize with the defaults of opset 11, half pixels and rounding down."""
    for node in model.graph.all_nodes():
        if node.op_type == "Resize" and node.domain == "":
            mode = ir.AttrString("coordinate_transformation_mode", "asymmetric")
            node.attributes.update({mode.name: mode, "nearest_mode": ir.AttrString("nearest_mode", "floor")})


def _put_weights_back(copy: ir.Model, model: ir.Model) -> None:
    """The skeleton has large weights as inputs; they become initializers again."""
    inputs = {value.name for value in model.graph.inputs}
    for value in [value for value in copy.graph.inputs if value.name not in inputs]:
        copy.graph.inputs.remove(value)
        value.const_value = model.graph.initializers[str(value.name)].const_value
        copy.graph.register_initializer(value)


def _keep_metadata(copy: ir.Model, model: ir.Model) -> None:
    """The converter keeps names of nodes and drops metadata; nodes that it inserts have no name."""
    known = {node.name: node for node in model.graph.all_nodes() if node.name}
    taken = set(known)
    for node in copy.graph.all_nodes():
        if node.name in known:
            node.metadata_props.update(known[node.name].metadata_props)
        elif not node.name:
            node.name = _fresh(f"{node.outputs[0].name}.{node.op_type}", taken)
    copy.metadata_props.update(model.metadata_props)


def _fresh(wish: str, taken: set[str]) -> str:
    name, count = wish, 0
    while name in taken:
        count += 1
        name = f"{wish}_{count}"
    taken.add(name)
    return name
