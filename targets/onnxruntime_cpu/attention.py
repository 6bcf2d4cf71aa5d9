"""Attention with a cache as ONNX Runtime's own operators, in place of those that exporters spell it out in.

    past, k → Concat → [each head repeated] → Transpose ┐
    q ──────────────────────────────────────────────→ MatMul → · scale → + bias → Softmax ┐
    past, v → Concat → [each head repeated] ───────────────────────────────────────────→ MatMul → Transpose → Reshape
                                            →  GroupQueryAttention(q, k, v, past, past, bias)

    x·cos + (−second half, first half)·sin  →  RotaryEmbedding(x, cos, sin), with a row of both for every token

GroupQueryAttention hides later tokens by itself: the bias is worked out for a few tokens to see that it does, too. It
stays an input, so that a mask with gaps means what it did.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.target import Decoder, constant_of, extract_prefix, find_decoder, is_decoder, run_unoptimized, scalar_of
from targets.onnxruntime_cpu.edit import DOMAIN, Editor, add_constant, producer_of, remove_unread, stand_in

_HEADS_LAST, _TURNED = [0, 2, 1, 3], [0, 1, 3, 2]
_HIDDEN = -1e4
"""A bias from which the exponential of float32 is 0."""

_PAST, _NEW = 2, 3
"""Sizes that the bias is worked out for."""


@dataclass(frozen=True)
class _Attention:
    """One attention: its values, and the node whose result it gives."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    past_key: ir.Value
    past_value: ir.Value
    present_key: ir.Value
    present_value: ir.Value
    bias: ir.Value
    scale: float
    heads: int
    kv_heads: int
    size: int
    last: ir.Node


def fuse_attention(model: ir.Model) -> None:
    """Replaces the attentions of a decoder, and rotations before them; changed in place.

    Args:
        model: The border model.
    """
    if not is_decoder(model):
        return
    decoder = find_decoder(model)
    matches = [match for node in model.graph if node.op_type == "Softmax" and (match := _match(node))]
    causal = {bias for bias in {match.bias for match in matches} if _is_causal(model, bias, decoder)}
    shared: dict[object, ir.Value] = {}
    for match in matches:
        if match.bias in causal:
            _replace_attention(model, match, shared)
    remove_unread(model)
    model.graph.sort()  # what is left may read a grown cache before the node that gives it now


def _match(softmax: ir.Node) -> _Attention | None:
    """The attention around a Softmax; None where it is another form."""
    if softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    scores = producer_of(softmax.inputs[0], "Add")
    mixed = _only_reader(softmax.outputs[0], "MatMul")
    if scores is None or mixed is None or mixed.inputs[0] is not softmax.outputs[0]:
        return None
    for value, bias in (scores.inputs, reversed(scores.inputs)):
        product, scale = _unscaled(value)
        if product is not None and bias is not None:
            return _around(product, scale, bias, mixed)
    return None


def _around(product: ir.Node, scale: float, bias: ir.Value, mixed: ir.Node) -> _Attention | None:
    query, turned = product.inputs[0], producer_of(product.inputs[1], "Transpose")
    if turned is None or list(turned.attributes.get_ints("perm", ())) != _TURNED:
        return None
    keys, values = _joined(turned.inputs[0]), _joined(mixed.inputs[1])
    swapped = _only_reader(mixed.outputs[0], "Transpose")
    flat = _only_reader(swapped.outputs[0], "Reshape") if swapped is not None else None
    if query is None or keys is None or values is None or swapped is None or flat is None:
        return None
    sizes, kv_sizes = (_sizes(value) for value in (query, keys[2]))
    width = _width(flat.outputs[0])
    if list(swapped.attributes.get_ints("perm", ())) != _HEADS_LAST or sizes is None or kv_sizes is None:
        return None
    if (
        width != sizes[0] * sizes[1]
        or sizes[1] != kv_sizes[1]
        or sizes[0] % kv_sizes[0]
        or _sizes(values[2]) != kv_sizes
    ):
        return None
    past_key, key, present_key = keys
    past_value, value, present_value = values
    return _Attention(
        query,
        key,
        value,
        past_key,
        past_value,
        present_key,
        present_value,
        bias,
        scale,
        heads=sizes[0],
        kv_heads=kv_sizes[0],
        size=sizes[1],
        last=flat,
    )


def _unscaled(value: ir.Value | None) -> tuple[ir.Node | None, float]:
    """The product behind a constant factor, and the factor."""
    factor = producer_of(value, "Mul")
    for read, other in (factor.inputs, reversed(factor.inputs)) if factor is not None else ():
        number, product = scalar_of(other), producer_of(read, "MatMul")
        if number is not None and number > 0 and product is not None:
            return product, number
    divided = producer_of(value, "Div")
    number = scalar_of(divided.inputs[1]) if divided is not None else None
    if divided is not None and number is not None and number > 0:
        return producer_of(divided.inputs[0], "MatMul"), 1 / number
    return producer_of(value, "MatMul"), 1.0


def _joined(value: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """The old cache, the new rows and both together, behind the repetition of heads."""
    flat = producer_of(value, "Reshape")
    wide = producer_of(flat.inputs[0], "Expand") if flat is not None else None
    single = producer_of(wide.inputs[0], "Unsqueeze") if wide is not None else None
    if flat is not None and wide is not None and single is not None:
        source, sizes, many = single.inputs[0], _sizes(flat.outputs[0]), wide.outputs[0].shape
        own = _sizes(source)
        # (batch, heads, 1, positions, size) → (batch, heads, times, positions, size): a head's copies are neighbours
        if own is None or sizes is None or many is None or list(many)[1] != own[0] or many[4] != own[1]:
            return None
        value = source if many[2] == sizes[0] // own[0] and sizes[1] == own[1] else None
    joined = producer_of(value, "Concat")
    if (
        joined is None
        or value is None
        or len(joined.inputs) != 2
        or joined.attributes.get_int("axis", 0) not in (2, -2)
    ):
        return None
    past, new = joined.inputs
    return (past, new, value) if past is not None and past.is_graph_input() and new is not None else None


def _sizes(value: ir.Value | None) -> tuple[int, int] | None:
    """Heads and size of one of (batch, heads, positions, size); None where they are not known."""
    if value is None or value.shape is None or len(value.shape) != 4:
        return None
    heads, size = value.shape[1], value.shape[3]
    return (heads, size) if isinstance(heads, int) and isinstance(size, int) else None


def _width(value: ir.Value) -> int | None:
    width = value.shape[2] if value.shape is not None and len(value.shape) == 3 else None
    return width if isinstance(width, int) else None


def _only_reader(value: ir.Value, op: str) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0][0] if len(uses) == 1 and uses[0][0].op_type == op and not value.is_graph_output() else None


def _is_causal(model: ir.Model, bias: ir.Value, decoder: Decoder) -> bool:
    """Whether a bias hides exactly the later tokens where the mask is of ones, worked out for a few tokens."""
    part = extract_prefix(model, [str(bias.name)])
    names = {decoder.batch: 1, decoder.sequence: _NEW, decoder.past: _PAST, decoder.total: _PAST + _NEW}
    inputs = {}
    read = [value for value in part.graph.inputs if value.uses()]
    part.graph.inputs.clear()
    part.graph.inputs.extend(read)
    for value in read:
        if value.shape is None or value.dtype is None:
            return False
        shape = [size if isinstance(size, int) else names.get(str(size.value), -1) for size in value.shape]
        if min(shape, default=1) < 0:
            return False
        inputs[str(value.name)] = np.ones(shape, value.dtype.numpy())
        if value.name == decoder.positions:
            inputs[decoder.positions] = np.arange(_PAST, _PAST + _NEW, dtype=np.int64)[None]
    got = np.asarray(run_unoptimized(part, inputs)[str(bias.name)], np.float64)
    if got.ndim != 4 or got.shape[2:] != (_NEW, _PAST + _NEW) or got.shape[1] != 1:
        return False
    later = np.triu(np.ones((_NEW, _PAST + _NEW), bool), _PAST + 1)
    return bool((got[..., ~later] == 0).all() and (got[..., later] <= _HIDDEN).all())


def _replace_attention(model: ir.Model, match: _Attention, shared: dict[object, ir.Value]) -> None:
    edit = Editor(model, match.last)
    query, key = (_rotated(edit, value, shared) for value in (match.query, match.key))
    query, key, value = (_flat(edit, part) for part in (query, key, match.value))
    length, total = _lengths(edit, match.bias, query, shared)
    inputs = [query, key, value, match.past_key, match.past_value, length, total, None, None, None, match.bias]
    attributes = {"num_heads": match.heads, "kv_num_heads": match.kv_heads, "scale": match.scale, "do_rotary": 0}
    outputs = edit.add("GroupQueryAttention", inputs, attributes, domain=DOMAIN, outputs=3)
    olds = (match.last.outputs[0], match.present_key, match.present_value)
    for old, new in zip(olds, outputs, strict=True):
        stand_in(old, new)


def _lengths(
    edit: Editor, bias: ir.Value, query: ir.Value, shared: dict[object, ir.Value]
) -> tuple[ir.Value, ir.Value]:
    """Positions before the last one, of each sequence, and of all positions: once for all layers."""
    if (bias, "total") not in shared:
        ((total,), (batch,)) = (
            edit.add("Shape", [value], {"start": axis, "end": axis + 1}, dtype=ir.DataType.INT64)
            for value, axis in ((bias, 3), (query, 0))
        )
        (narrow,) = edit.add("Cast", [total], {"to": int(ir.DataType.INT32)}, dtype=ir.DataType.INT32)
        one = add_constant(edit.model, f"{bias.name}_one", np.array([1], np.int32))
        (last,) = edit.add("Sub", [narrow, one], dtype=ir.DataType.INT32)
        (shared[bias, "length"],) = edit.add("Expand", [last, batch], dtype=ir.DataType.INT32)
        (shared[bias, "total"],) = edit.add("Squeeze", [narrow], dtype=ir.DataType.INT32)
    return shared[bias, "length"], shared[bias, "total"]


def _flat(edit: Editor, value: ir.Value) -> ir.Value:
    """(batch, heads, positions, size) → (batch, positions, heads · size); what was cut into heads is taken whole."""
    if value.shape is not None and len(value.shape) == 3:
        return value
    whole = _before_heads(value)
    if whole is not None:
        return whole
    sizes = _sizes(value)
    assert sizes is not None  # noqa: S101  a match has them
    (swapped,) = edit.add("Transpose", [value], {"perm": _HEADS_LAST})
    shape = add_constant(edit.model, f"{value.name}_flat", np.array([0, 0, sizes[0] * sizes[1]], np.int64))
    return edit.add("Reshape", [swapped, shape])[0]


def _before_heads(value: ir.Value) -> ir.Value | None:
    """What was cut into heads to give a value: (batch, positions, heads · size)."""
    swapped = producer_of(value, "Transpose")
    cut = producer_of(swapped.inputs[0], "Reshape") if swapped is not None else None
    if swapped is None or cut is None or list(swapped.attributes.get_ints("perm", ())) != _HEADS_LAST:
        return None
    whole, sizes = cut.inputs[0], _sizes(value)
    is_cut = whole is not None and sizes is not None and _width(whole) == sizes[0] * sizes[1]
    return whole if is_cut else None


def _rotated(edit: Editor, value: ir.Value, shared: dict[object, ir.Value]) -> ir.Value:
    """A value that was rotated, by RotaryEmbedding; itself where it was not, or in another form."""
    rotation = next(_rotations(value), None)
    if rotation is None:
        return value
    source, cosines, sines = rotation
    whole = _before_heads(source)
    sizes = _sizes(source)
    if whole is None or sizes is None:
        return value
    rows = [_rows(edit, angle, sizes[1], shared) for angle in (cosines, sines)]
    ids = _row_numbers(edit, whole, rows[0], shared)
    (turned,) = edit.add("RotaryEmbedding", [whole, ids, *rows], {"interleaved": 0}, domain=DOMAIN)
    turned.shape = whole.shape
    return turned


def _rotations(value: ir.Value) -> Iterator[tuple[ir.Value, ir.Value, ir.Value]]:
    """What is rotated, cosines and sines, where a value is x·cos + (−second half, first half)·sin."""
    total = producer_of(value, "Add")
    parts = [producer_of(part, "Mul") for part in total.inputs] if total is not None else []
    if len(parts) != 2:
        return
    for straight, crossed in (parts, parts[::-1]):
        if straight is None or crossed is None:
            continue
        for x, cosine in (straight.inputs, reversed(straight.inputs)):
            for turned, sine in (crossed.inputs, reversed(crossed.inputs)):
                if x is not None and _is_turned(turned, x) and _is_angle(cosine, "Cos") and _is_angle(sine, "Sin"):
                    yield x, cosine, sine  # type: ignore[misc]  # an angle is a value


def _is_angle(value: ir.Value | None, op: str) -> bool:
    """Whether a value is the cosine or sine of an angle that is there twice, for both halves of a head."""
    node = producer_of(value, op)
    single = producer_of(node.inputs[0], "Unsqueeze") if node is not None else None
    twice = producer_of(single.inputs[0], "Concat") if single is not None else None
    return twice is not None and len(twice.inputs) == 2 and twice.inputs[0] is twice.inputs[1]


def _is_turned(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether a value is (−second half, first half) of another's last dimension."""
    joined = producer_of(value, "Concat")
    if joined is None or len(joined.inputs) != 2 or joined.attributes.get_int("axis", 0) not in (-1, 3):
        return False
    negative = producer_of(joined.inputs[0], "Neg")
    sizes = _sizes(x)
    if negative is None or sizes is None:
        return False
    half = sizes[1] // 2
    return _is_part(negative.inputs[0], x, half, 2 * half) and _is_part(joined.inputs[1], x, 0, half)


def _is_part(value: ir.Value | None, x: ir.Value, start: int, end: int) -> bool:
    """Whether a value is a part of another's last dimension, by Slice."""
    cut = producer_of(value, "Slice")
    if cut is None or cut.inputs[0] is not x:
        return False
    bounds = [constant_of(read) for read in cut.inputs[1:]]
    if any(bound is None or bound.size != 1 for bound in bounds):
        return False
    first, last, axis, step = [*(int(bound.item()) for bound in bounds if bound is not None), 0, 1][:4]
    if len(bounds) == 2 or axis not in (-1, 3) or (len(bounds) == 4 and step != 1):
        return False
    return first == start and (last == end or (end == 2 * (end - start) and last >= end))


def _rows(edit: Editor, angle: ir.Value, size: int, shared: dict[object, ir.Value]) -> ir.Value:
    """One row for every token, of the first half of its cosines or sines: the second half is the same."""
    if angle not in shared:
        model, name, half = edit.model, angle.name, size // 2
        bounds = [
            add_constant(model, f"{name}_{what}", np.array([number], np.int64))
            for what, number in (("first", 0), ("half", half), ("axis", 3))
        ]
        (cut,) = edit.add("Slice", [angle, *bounds])
        shape = add_constant(model, f"{name}_rows", np.array([-1, half], np.int64))
        (shared[angle],) = edit.add("Reshape", [cut, shape])
    return shared[angle]


def _row_numbers(edit: Editor, whole: ir.Value, rows: ir.Value, shared: dict[object, ir.Value]) -> ir.Value:
    """The row of each token (batch, positions): they are in order."""
    if "rows" not in shared:
        model = edit.model
        (count,) = edit.add("Shape", [rows], {"start": 0, "end": 1}, dtype=ir.DataType.INT64)
        (number,) = edit.add("Squeeze", [count], dtype=ir.DataType.INT64)
        zero, one = (add_constant(model, f"rows_{n}", np.array(n, np.int64)) for n in (0, 1))
        (numbers,) = edit.add("Range", [zero, number, one], dtype=ir.DataType.INT64)
        (shape,) = edit.add("Shape", [whole], {"start": 0, "end": 2}, dtype=ir.DataType.INT64)
        (shared["rows"],) = edit.add("Reshape", [numbers, shape], dtype=ir.DataType.INT64)
    return shared["rows"]
