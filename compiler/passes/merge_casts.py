"""merge-casts: consecutive Casts become one, or none, where no value changes.

1. Cast(x: T, T) = x
2. Cast(Cast(x: T, A), B) = Cast(x, B) if every value of T is a value of A: the first Cast then changes nothing, and
   the second rounds the same number
Casts into float8, int4 and the like saturate or not by attribute; they are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from compiler.model.graph import FunctionPass, PassResult
from compiler.passes.remove_identities import become_identity, bypass
from compiler.passes.values import display_name, graphs_of, record_origin, replace_input


@dataclass(frozen=True)
class _Kind:
    """What numbers a type holds: integers of so many bits, signed or not, or floats of mantissa and exponent bits."""

    bits: int
    signed: bool = True
    exponent: int = 0


_T = ir.DataType
_KINDS: Mapping[ir.DataType, _Kind] = {
    _T.BOOL: _Kind(1, signed=False),
    _T.UINT8: _Kind(8, signed=False),
    _T.UINT16: _Kind(16, signed=False),
    _T.UINT32: _Kind(32, signed=False),
    _T.UINT64: _Kind(64, signed=False),
    _T.INT8: _Kind(7),
    _T.INT16: _Kind(15),
    _T.INT32: _Kind(31),
    _T.INT64: _Kind(63),
    _T.FLOAT16: _Kind(11, exponent=5),
    _T.BFLOAT16: _Kind(8, exponent=8),
    _T.FLOAT: _Kind(24, exponent=8),
    _T.DOUBLE: _Kind(53, exponent=11),
}


def holds(wide: ir.DataType, narrow: ir.DataType) -> bool:
    """Whether every value of `narrow` is a value of `wide`; False for types not known here."""
    outer, inner = _KINDS.get(wide), _KINDS.get(narrow)
    if outer is None or inner is None:
        return wide == narrow
    if wide == _T.BOOL or (inner.exponent and not outer.exponent):
        return wide == narrow
    return outer.bits >= inner.bits and outer.exponent >= inner.exponent and (outer.signed or not inner.signed)


def merge_casts(model: ir.Model) -> PassResult:
    """Merges in the main graph and in subgraphs; notes name the chains that round and so stay."""
    notes: list[str] = []
    modified = any([_merge(graph, node, notes) for graph in graphs_of(model) for node in graph])
    return PassResult(modified, tuple(notes))


def _merge(graph: ir.Graph, node: ir.Node, notes: list[str]) -> bool:
    if not _is_plain_cast(node):
        return False
    merged = _skip_inner(node, notes)
    source, target = node.inputs[0], _target(node)
    if source is None or source.dtype != target:
        return merged
    if not bypass(graph, node, source):
        become_identity(graph, node, source)
    return True


def _skip_inner(node: ir.Node, notes: list[str]) -> bool:
    middle = node.inputs[0]
    inner = None if middle is None else middle.producer()
    if inner is None or inner.graph is not node.graph or not _is_plain_cast(inner):
        return False
    source = inner.inputs[0]
    if source is None or source.dtype is None:
        return False
    if not holds(_target(inner), source.dtype):
        notes.append(f"{display_name(node)}: the Cast in front of it rounds {source.dtype} to {_target(inner)}")
        return False
    record_origin(node, [node, inner])
    replace_input(node, 0, source)
    return True


def _is_plain_cast(node: ir.Node) -> bool:
    if node.op_type != "Cast" or node.domain != "" or node.attributes["to"].is_ref():
        return False
    return _target(node) in _KINDS


def _target(node: ir.Node) -> ir.DataType:
    return ir.DataType(node.attributes["to"].as_int())


MERGE_CASTS = FunctionPass("merge-casts", merge_casts)
