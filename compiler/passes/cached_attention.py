"""Attention with a cache of keys and values, as exporters spell it out: which values it reads and gives.

    past, k → Concat → [each head repeated] → Transpose ┐
    q ──────────────────────────────────────────────→ MatMul → · scale → + bias → Softmax ┐
    past, v → Concat → [each head repeated] ───────────────────────────────────────────→ MatMul → Transpose → Reshape

What is joined may be rounded to 8 bits, each head of each token by itself. Targets have operators of their own for
attention, which hide later tokens by themselves: the bias is worked out for a few tokens to see that it does, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.model.decoder import Decoder
from compiler.model.frontend.extract import extract_prefix
from compiler.passes.editor import producer_of
from compiler.passes.probe import run_unoptimized
from compiler.passes.quantized import rounded_value
from compiler.passes.values import scalar_of

HEADS_LAST = [0, 2, 1, 3]
"""Permutation from (batch, heads, positions, size) to (batch, positions, heads, size)."""
_TURNED = [0, 1, 3, 2]
_HIDDEN = -1e4
"""A bias from which the exponential of float32 is 0."""

_PAST, _NEW = 2, 3
"""Sizes that the bias is worked out for."""


@dataclass(frozen=True)
class CachedAttention:
    """One attention: its values, and the node whose result it gives; whether it reads keys and values rounded."""

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
    is_rounded: bool


def find_attentions(model: ir.Model) -> list[CachedAttention]:
    """The attentions of a decoder, in order, whatever their bias hides.

    Args:
        model: The border model.
    """
    return [match for node in model.graph if node.op_type == "Softmax" and (match := _match(node))]


def _match(softmax: ir.Node) -> CachedAttention | None:
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


def _around(product: ir.Node, scale: float, bias: ir.Value, mixed: ir.Node) -> CachedAttention | None:
    query, turned = product.inputs[0], producer_of(product.inputs[1], "Transpose")
    if turned is None or list(turned.attributes.get_ints("perm", ())) != _TURNED:
        return None
    keys, values = _joined(turned.inputs[0]), _joined(mixed.inputs[1])
    swapped = _only_reader(mixed.outputs[0], "Transpose")
    flat = _only_reader(swapped.outputs[0], "Reshape") if swapped is not None else None
    if query is None or keys is None or values is None or swapped is None or flat is None:
        return None
    sizes, kv_sizes = (sizes_of(value) for value in (query, keys[2]))
    width = width_of(flat.outputs[0])
    if list(swapped.attributes.get_ints("perm", ())) != HEADS_LAST or sizes is None or kv_sizes is None:
        return None
    if (
        width != sizes[0] * sizes[1]
        or sizes[1] != kv_sizes[1]
        or sizes[0] % kv_sizes[0]
        or sizes_of(values[2]) != kv_sizes
        or keys[3] != values[3]
    ):
        return None
    past_key, key, present_key, is_rounded = keys
    past_value, value, present_value, _ = values
    return CachedAttention(
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
        is_rounded=is_rounded,
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


def _joined(value: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value, bool] | None:
    """The old cache, the new rows, both together as they are read, and whether that is rounded by head and token."""
    flat = producer_of(value, "Reshape")
    wide = producer_of(flat.inputs[0], "Expand") if flat is not None else None
    single = producer_of(wide.inputs[0], "Unsqueeze") if wide is not None else None
    if flat is not None and wide is not None and single is not None:
        source, sizes, many = single.inputs[0], sizes_of(flat.outputs[0]), wide.outputs[0].shape
        own = sizes_of(source)
        # (batch, heads, 1, positions, size) → (batch, heads, times, positions, size): a head's copies are neighbours
        if own is None or sizes is None or many is None or list(many)[1] != own[0] or many[4] != own[1]:
            return None
        value = source if many[2] == sizes[0] // own[0] and sizes[1] == own[1] else None
    rounded = _rounded_by_head(value)
    joined = producer_of(value if rounded is None else rounded, "Concat")
    if (
        joined is None
        or value is None
        or len(joined.inputs) != 2
        or joined.attributes.get_int("axis", 0) not in (2, -2)
    ):
        return None
    past, new = joined.inputs
    if past is None or new is None or not past.is_graph_input():
        return None
    return past, new, value, rounded is not None


def _rounded_by_head(value: ir.Value | None) -> ir.Value | None:
    """What is rounded, each head of each token by itself, to give a value (batch, heads, positions, size)."""
    restored, sizes = producer_of(value, "DequantizeLinear"), sizes_of(value)
    return rounded_value(restored, sizes[1]) if restored is not None and sizes is not None else None


def sizes_of(value: ir.Value | None) -> tuple[int, int] | None:
    """Heads and size of a value (batch, heads, positions, size); None where they are not known."""
    if value is None or value.shape is None or len(value.shape) != 4:
        return None
    heads, size = value.shape[1], value.shape[3]
    return (heads, size) if isinstance(heads, int) and isinstance(size, int) else None


def width_of(value: ir.Value) -> int | None:
    """Last size of a value (batch, positions, width); None where it is not known."""
    width = value.shape[2] if value.shape is not None and len(value.shape) == 3 else None
    return width if isinstance(width, int) else None


def _only_reader(value: ir.Value, op: str) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0][0] if len(uses) == 1 and uses[0][0].op_type == op and not value.is_graph_output() else None


def is_causal(model: ir.Model, bias: ir.Value, decoder: Decoder, *, past: int = _PAST) -> bool:
    """Whether a bias hides exactly the later tokens where the mask is of ones, worked out for a few tokens.

    Args:
        model: The border model.
        bias: What is added to scores.
        decoder: What the model's inputs mean.
        past: Tokens before these: a window of attention shows only behind as many as it has.
    """
    part = extract_prefix(model, [str(bias.name)])
    names = {decoder.batch: 1, decoder.sequence: _NEW, decoder.past: past, decoder.total: past + _NEW}
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
            inputs[decoder.positions] = np.arange(past, past + _NEW, dtype=np.int64)[None]
    got = np.asarray(run_unoptimized(part, inputs)[str(bias.name)], np.float64)
    if got.ndim != 4 or got.shape[2:] != (_NEW, past + _NEW) or got.shape[1] != 1:
        return False
    later = np.triu(np.ones((_NEW, past + _NEW), bool), past + 1)
    return bool((got[..., ~later] == 0).all() and (got[..., later] <= _HIDDEN).all())
