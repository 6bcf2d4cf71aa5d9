"""trim-kernels: removes rows and columns of a filter that are only ever multiplied with padding.

Along an axis of size I, tap k of a Conv reads i = o·stride − pad + k·dilation for the outputs o = 0 … O−1. Taps at
either end for which no i is in 0 … I−1 are multiplied with zeros alone: they are cut off, and the pads shrink by as
many steps.
Late layers have them: a 3 × 3 filter on a picture of 1 × 1 has one tap that counts, and eight that are stored, loaded
and multiplied for nothing.

A pad is never made negative: with a dilation, one tap may be worth more steps than there is padding, and then it stays.
Only constant filters and sizes that are numbers; a filter all of whose taps lie on padding is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compiler.model.graph import FunctionPass, PassResult, add_constant
from compiler.passes.values import Names, constant_of, graphs_of, record_origin, replace_input

Span = tuple[int, int]
"""Taps of a filter along one axis that remain: first, and behind the last."""


def trim_kernels(model: ir.Model) -> PassResult:
    """Trims in the main graph and in subgraphs."""
    names = Names(model)
    return PassResult(any([_trim(node, graph, names) for graph in graphs_of(model) for node in graph]))


def _trim(node: ir.Node, graph: ir.Graph, names: Names) -> bool:
    spans = _spans(node)
    if spans is None:
        return False
    old = node.inputs[1]
    weights = constant_of(old)
    if old is None or weights is None:
        return False
    sides, get = weights.shape[2:], node.attributes
    if all(span == (0, side) for span, side in zip(spans, sides, strict=True)):
        return False
    places = [slice(None), slice(None), *(slice(*span) for span in spans)]
    trimmed = np.ascontiguousarray(weights[tuple(places)])
    name = names.fresh(f"{old.name}_trimmed")
    new = add_constant(graph, name, ir.tensor(trimmed, dtype=old.dtype, name=name))
    record_origin(node, [node])
    replace_input(node, 1, new)
    rank = len(sides)
    pads, dilations = get.get_ints("pads", (0,) * 2 * rank), get.get_ints("dilations", (1,) * rank)
    gone = [start for start, _ in spans] + [side - end for side, (_, end) in zip(sides, spans, strict=True)]
    left = [pad - steps * dilations[place % rank] for place, (pad, steps) in enumerate(zip(pads, gone, strict=True))]
    get["pads"] = ir.AttrInt64s("pads", left)
    if "kernel_shape" in get:
        get["kernel_shape"] = ir.AttrInt64s("kernel_shape", list(trimmed.shape[2:]))
    return True


def _spans(node: ir.Node) -> list[Span] | None:
    """The taps to keep along every spatial axis; None where they are not known, or where there are none."""
    if node.op_type != "Conv" or node.domain != "" or len(node.inputs) < 2:
        return None
    values = (node.inputs[0], node.outputs[0], node.inputs[1])
    sizes, get = [_spatial(value) for value in values], node.attributes
    if not all(sizes) or get.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None
    rank = len(sizes[0])
    strides, dilations = (get.get_ints(name, (1,) * rank) for name in ("strides", "dilations"))
    pads = get.get_ints("pads", (0,) * 2 * rank)
    spans = [
        _counting(lengths, stride=strides[axis], dilation=dilations[axis], before=pads[axis], after=pads[axis + rank])
        for axis, lengths in enumerate(zip(*sizes, strict=True))
    ]
    return None if None in spans else [span for span in spans if span is not None]


def _spatial(value: ir.Value | None) -> list[int]:
    """Sizes behind batch and channels; none where one is not known."""
    sizes = list(value.shape)[2:] if value is not None and value.shape is not None else []
    known = [size for size in sizes if isinstance(size, int)]
    return known if len(known) == len(sizes) else []


def _counting(sizes: Sequence[int], *, stride: int, dilation: int, before: int, after: int) -> Span | None:
    """From the first to behind the last tap that reads an element for any output; None where none does."""
    size, outputs, taps = sizes
    first = np.arange(outputs) * stride - before
    counts = [tap for tap in range(taps) if np.any((first + tap * dilation >= 0) & (first + tap * dilation < size))]
    if not counts:
        return None
    # each tap that goes takes `dilation` elements of padding along, and a Conv cannot have less than none
    start, left_over = min(counts[0], before // dilation), min(taps - 1 - counts[-1], after // dilation)
    return start, taps - left_over


TRIM_KERNELS = FunctionPass("trim-kernels", trim_kernels)
