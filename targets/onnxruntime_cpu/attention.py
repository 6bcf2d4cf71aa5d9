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

import numpy as np
import onnx_ir as ir

from compiler.target import (
    HEADS_LAST,
    CachedAttention,
    Editor,
    add_constant,
    constant_of,
    find_attentions,
    find_decoder,
    is_causal,
    is_decoder,
    producer_of,
    remove_unread,
    sizes_of,
    stand_in,
    width_of,
)
from targets.onnxruntime_cpu.rules import DOMAIN


def fuse_attention(model: ir.Model) -> None:
    """Replaces the attentions of a decoder, and rotations before them; changed in place.

    Args:
        model: The border model.
    """
    if not is_decoder(model):
        return
    decoder = find_decoder(model)
    matches = find_attentions(model)
    causal = {bias for bias in {match.bias for match in matches} if is_causal(model, bias, decoder)}
    shared: dict[object, ir.Value] = {}
    for match in matches:
        if match.bias in causal and not match.is_rounded:
            _replace_attention(model, match, shared)
    remove_unread(model)
    model.graph.sort()  # what is left may read a grown cache before the node that gives it now


def _replace_attention(model: ir.Model, match: CachedAttention, shared: dict[object, ir.Value]) -> None:
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
        one = add_constant(edit.model.graph, f"{bias.name}_one", np.array([1], np.int32))
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
    sizes = sizes_of(value)
    assert sizes is not None  # noqa: S101  a match has them
    (swapped,) = edit.add("Transpose", [value], {"perm": HEADS_LAST})
    shape = add_constant(edit.model.graph, f"{value.name}_flat", np.array([0, 0, sizes[0] * sizes[1]], np.int64))
    return edit.add("Reshape", [swapped, shape])[0]


def _before_heads(value: ir.Value) -> ir.Value | None:
    """What was cut into heads to give a value: (batch, positions, heads · size)."""
    swapped = producer_of(value, "Transpose")
    cut = producer_of(swapped.inputs[0], "Reshape") if swapped is not None else None
    if swapped is None or cut is None or list(swapped.attributes.get_ints("perm", ())) != HEADS_LAST:
        return None
    whole, sizes = cut.inputs[0], sizes_of(value)
    is_cut = whole is not None and sizes is not None and width_of(whole) == sizes[0] * sizes[1]
    return whole if is_cut else None


def _rotated(edit: Editor, value: ir.Value, shared: dict[object, ir.Value]) -> ir.Value:
    """A value that was rotated, by RotaryEmbedding; itself where it was not, or in another form."""
    rotation = next(_rotations(value), None)
    if rotation is None:
        return value
    source, cosines, sines = rotation
    whole = _before_heads(source)
    sizes = sizes_of(source)
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
    sizes = sizes_of(x)
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
            add_constant(model.graph, f"{name}_{what}", np.array([number], np.int64))
            for what, number in (("first", 0), ("half", half), ("axis", 3))
        ]
        (cut,) = edit.add("Slice", [angle, *bounds])
        shape = add_constant(model.graph, f"{name}_rows", np.array([-1, half], np.int64))
        (shared[angle],) = edit.add("Reshape", [cut, shape])
    return shared[angle]


def _row_numbers(edit: Editor, whole: ir.Value, rows: ir.Value, shared: dict[object, ir.Value]) -> ir.Value:
    """The row of each token (batch, positions): they are in order."""
    if "rows" not in shared:
        model = edit.model
        (count,) = edit.add("Shape", [rows], {"start": 0, "end": 1}, dtype=ir.DataType.INT64)
        (number,) = edit.add("Squeeze", [count], dtype=ir.DataType.INT64)
        zero, one = (add_constant(model.graph, f"rows_{n}", np.array(n, np.int64)) for n in (0, 1))
        (numbers,) = edit.add("Range", [zero, number, one], dtype=ir.DataType.INT64)
        (shape,) = edit.add("Shape", [whole], {"start": 0, "end": 2}, dtype=ir.DataType.INT64)
        (shared["rows"],) = edit.add("Reshape", [numbers, shape], dtype=ir.DataType.INT64)
    return shared["rows"]
