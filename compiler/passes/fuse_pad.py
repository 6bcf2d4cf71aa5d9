"""Folds a constant Pad of the spatial dimensions into the operator after it.

1. Pad(v) → Pad(v)           one Pad with the sums.
2. Pad(0) → Conv             the Conv's pads grow.
3. Pad(0) → AveragePool      the pool's pads grow and count_include_pad becomes 1, as the zeros were counted; only where
                             the pool's own pads are counted or absent.
4. Pad(v) → MaxPool          the pool pads with −∞, so either v is −∞, or v ≤ 0 and the input is known to be ≥ 0 and
                             each window reads at least one element of it (pads smaller than the window, no dilation).

Pools keep floor mode, and pads smaller than their window: runtimes refuse others. ConvTranspose is left out: its pads
crop the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult, RewriteRuleClassBase

from compiler.passes.absorb import is_padded
from compiler.passes.matching import Refused, producer, rank_of, require_opset, rule_of
from compiler.passes.rules import RulePass
from compiler.passes.values import constant_of, display_name, scalar_of

NONNEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp"})
"""Operators whose output is never below 0."""


@dataclass(frozen=True)
class Padding:
    """What a constant Pad adds before and after each dimension, and with which number."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    number: float

    def spatial(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Before and after each spatial dimension of (N, C, …); Refused if batch or channels grow."""
        if any(self.before[:2]) or any(self.after[:2]):
            raise Refused("Pad adds to the batch or to the channels")
        return self.before[2:], self.after[2:]


class MergePads(RewriteRuleClassBase):
    """Case 1."""

    def pattern(self, op: Any, x: Any) -> Any:
        inner = op.Pad(x, _allow_other_inputs=True, _outputs=["inner"])
        return op.Pad(inner, _allow_other_inputs=True, _outputs=["outer"])

    def check(self, context: MatchContext, x: ir.Value, inner: ir.Value, outer: ir.Value) -> MatchResult:
        require_opset(context, 11, "Pad with inputs")
        if padding_of(producer(inner), x).number != padding_of(producer(outer), x).number:
            raise Refused("the two Pads add different numbers")
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, inner: ir.Value, outer: ir.Value) -> Any:
        first, second = padding_of(producer(inner), x), padding_of(producer(outer), x)
        pads = np.add(first.before + first.after, second.before + second.after).astype(np.int64)
        number = producer(outer).inputs[2] if len(producer(outer).inputs) > 2 else None
        inputs = [x, op.initializer(ir.tensor(pads), name=f"{display_name(producer(outer))}.pads")]
        return op.Pad(*inputs, *([number] if number is not None else []), mode="constant")


class PadIntoConv(RewriteRuleClassBase):
    """Case 2."""

    def pattern(self, op: Any, x: Any) -> Any:
        padded = op.Pad(x, _allow_other_inputs=True, _outputs=["padded"])
        return op.Conv(padded, _allow_other_inputs=True, _outputs=["layer_out"])

    def check(self, context: MatchContext, x: ir.Value, padded: ir.Value, layer_out: ir.Value) -> MatchResult:
        _require_zero(padding_of(producer(padded), x))
        merged_pads(producer(layer_out), padding_of(producer(padded), x))
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, padded: ir.Value, layer_out: ir.Value) -> Any:
        return _rebuild(op, x, producer(layer_out), padding_of(producer(padded), x))


class PadIntoAveragePool(RewriteRuleClassBase):
    """Case 3."""

    def pattern(self, op: Any, x: Any) -> Any:
        padded = op.Pad(x, _allow_other_inputs=True, _outputs=["padded"])
        return op.AveragePool(padded, _outputs=["layer_out"])

    def check(self, context: MatchContext, x: ir.Value, padded: ir.Value, layer_out: ir.Value) -> MatchResult:
        pool, padding = producer(layer_out), padding_of(producer(padded), x)
        _require_zero(padding)
        if is_padded(pool) and not pool.attributes.get_int("count_include_pad", 0):
            raise Refused("the pool does not count its own pads, but would have to count the Pad's")
        _require_small(pool, merged_pads(pool, padding))
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, padded: ir.Value, layer_out: ir.Value) -> Any:
        return _rebuild(op, x, producer(layer_out), padding_of(producer(padded), x), count_include_pad=1)


class PadIntoMaxPool(RewriteRuleClassBase):
    """Case 4."""

    def pattern(self, op: Any, x: Any) -> Any:
        padded = op.Pad(x, _allow_other_inputs=True, _outputs=["padded"])
        return op.MaxPool(padded, _outputs=["layer_out"])

    def check(self, context: MatchContext, x: ir.Value, padded: ir.Value, layer_out: ir.Value) -> MatchResult:
        pool, padding = producer(layer_out), padding_of(producer(padded), x)
        if padding.number != -np.inf and not (padding.number <= 0.0 and is_nonnegative(x)):
            raise Refused(f"Pad adds {padding.number:g}, and '{x.name}' may be below it")
        if any(dilation != 1 for dilation in pool.attributes.get_ints("dilations", ())):
            raise Refused("a dilated window may read nothing but padding")
        _require_small(pool, merged_pads(pool, padding))
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, padded: ir.Value, layer_out: ir.Value) -> Any:
        return _rebuild(op, x, producer(layer_out), padding_of(producer(padded), x))


def padding_of(pad: ir.Node, x: ir.Value) -> Padding:
    """What a Pad does; its pads are inputs since opset 11, attributes before.

    Raises:
        Refused: It is not constant, takes away, or is not known.
    """
    rank = rank_of(x)
    if rank is None:
        raise Refused(f"the rank of '{x.name}' is unknown")
    if pad.attributes.get_string("mode", "constant") != "constant":
        raise Refused("Pad repeats its input instead of adding a constant")
    pads, axes = _pads_and_axes(pad, rank)
    before, after = [0] * rank, [0] * rank
    for index, axis in enumerate(axes):
        before[axis], after[axis] = pads[index], pads[index + len(axes)]
    if min(*before, *after) < 0:
        raise Refused("Pad takes away")
    return Padding(tuple(before), tuple(after), _number(pad))


def _pads_and_axes(pad: ir.Node, rank: int) -> tuple[Sequence[int], Sequence[int]]:
    if "pads" in pad.attributes:
        return pad.attributes["pads"].as_ints(), range(rank)
    pads = constant_of(pad.inputs[1])
    axes_value = pad.inputs[3] if len(pad.inputs) > 3 else None
    axes = constant_of(axes_value)
    if pads is None or (axes_value is not None and axes is None):
        raise Refused("how much Pad adds is not constant")
    return pads.tolist(), range(rank) if axes is None else [int(axis) % rank for axis in axes]


def _number(pad: ir.Node) -> float:
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    number = pad.attributes.get_float("value", 0.0) if value is None else scalar_of(value)
    if number is None:
        raise Refused("the number that Pad adds is not constant")
    return number


def is_nonnegative(value: ir.Value) -> bool:
    """Whether a value is certainly never below 0."""
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "Clip" and len(node.inputs) > 1:
        lowest = scalar_of(node.inputs[1])
        return lowest is not None and lowest >= 0.0
    return node.domain == "" and node.op_type in NONNEGATIVE


def merged_pads(layer: ir.Node, padding: Padding) -> tuple[int, ...]:
    """The pads attribute of a layer that also does the Pad before it."""
    if layer.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Refused("auto_pad depends on the size that Pad makes")
    before, after = padding.spatial()
    own = layer.attributes.get_ints("pads", ()) if is_padded(layer) else ()
    return tuple(int(sum(pair)) for pair in zip(before + after, own or (0,) * 2 * len(before), strict=True))


def _require_zero(padding: Padding) -> None:
    if padding.number != 0.0:
        raise Refused(f"Pad adds {padding.number:g}, not 0")


def _require_small(pool: ir.Node, pads: tuple[int, ...]) -> None:
    window = tuple(pool.attributes.get_ints("kernel_shape", ()))
    if pool.attributes.get_int("ceil_mode", 0):
        raise Refused("in ceil mode a window may lie beyond the padding")
    if any(pad >= side for pad, side in zip(pads, window * 2, strict=True)):
        raise Refused(f"pads {list(pads)} are not smaller than the window {list(window)}")


def _rebuild(op: Any, x: ir.Value, layer: ir.Node, padding: Padding, **more: int) -> Any:
    attributes: dict[str, Any] = {key: value for key, value in layer.attributes.items() if key != "auto_pad"}
    attributes.update(more, pads=merged_pads(layer, padding))
    return op.op(layer.op_type, x, *layer.inputs[1:], **attributes)


FUSE_PAD = RulePass(
    "fuse-pad", [rule_of(r) for r in (MergePads(), PadIntoConv(), PadIntoAveragePool(), PadIntoMaxPool())]
)
