"""Function bodies: what ONNX says an operator is made of, and whether a body means the same in another opset."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

_REDEFINED = frozenset({"GroupNormalization"})
"""Operators that changed although no attribute did: its scale is per group until opset 20, and per channel since."""


def has_body(op_type: str) -> bool:
    """Whether ONNX gives the operator a function body, in its newest version at least."""
    if not onnx.defs.has(op_type):
        return False
    schema: Any = onnx.defs.get_schema(op_type)
    return bool(schema.has_function or schema.has_context_dependent_function)


def means_the_same(op_type: str, written: int, opset: int) -> bool:
    """Whether an operator written for one opset means the same in another.

    Versions that differ in element types alone are the same. A newer one may also add attributes with a default, or
    optional inputs: a node that has none of them is not concerned.
    """
    try:
        old, new = (onnx.defs.get_schema(op_type, version, "") for version in (written, opset))
    except onnx.defs.SchemaError:
        return False
    if old.since_version == new.since_version:
        return True
    if op_type in _REDEFINED or old.min_input != new.min_input:
        return False
    defaults = [
        {name: attribute.default_value for name, attribute in schema.attributes.items()} for schema in (old, new)
    ]
    added = set(defaults[1]) - set(defaults[0])
    same = all(defaults[1].get(name) == default for name, default in defaults[0].items())
    return same and (not added or new.since_version > old.since_version)


def body_of(node: ir.Node, opset: int) -> onnx.FunctionProto | None:
    """ONNX's body of a node's operator, its defaults spelled out on the node; None where this opset has none."""
    schema: Any = onnx.defs.get_schema(node.op_type, opset, "")
    data = _body_bytes(schema, node, opset)
    if not data:
        return None
    function: onnx.FunctionProto = onnx.FunctionProto.FromString(data)
    written = next((item.version for item in function.opset_import if item.domain == ""), 1)
    if not all(means_the_same(inner.op_type, written, opset) for inner in function.node):
        return None
    _fill_defaults(node, function, schema)
    del function.output[len(node.outputs) :]  # optional outputs that the node does not have, nor the body compute
    for item in function.opset_import:
        item.version = opset
    return function


def _body_bytes(schema: Any, node: ir.Node, opset: int) -> bytes:
    versions = (schema.function_opset_versions, schema.context_dependent_function_opset_versions)
    plain, dependent = ([version for version in listed if version <= opset] for listed in versions)
    if dependent:
        types = [b"" if value is None or value.type is None else _type(value) for value in node.inputs]
        proto = ir.to_proto(node).SerializeToString()
        data: bytes = schema.get_context_dependent_function_with_opset_version(max(dependent), proto, types)
        return data
    data = schema.get_function_with_opset_version(max(plain)) if plain else b""
    return data


def _type(value: ir.Value) -> bytes:
    data: bytes = ir.to_proto(value).type.SerializeToString()
    return data


def _fill_defaults(node: ir.Node, function: onnx.FunctionProto, schema: Any) -> None:
    """Spells out the defaults that the body refers to: a reference to an absent attribute is no attribute."""
    for name in function.attribute:
        default = schema.attributes[name].default_value
        if name not in node.attributes and default.type != onnx.AttributeProto.UNDEFINED:
            node.attributes[name] = ir.serde.deserialize_attribute(default)
