"""What an emulator is given to run, decided before anything runs: sizes whose work ends in the time that there is.

The time is reckoned from the multiply-accumulates of the border model at those sizes. Of a decoder whose largest size
takes too long, a part of the prompt is read behind the same cache instead. What is left out is said with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.driver.stages.inputs import sizes_label
from compiler.driver.stages.reference import ParityCase
from compiler.model.decoder import Decoder, find_decoder, is_decoder
from compiler.model.frontend.infer import infer_shapes
from compiler.model.numerics import Arrays
from compiler.passes.macs import node_macs
from compiler.passes.quantized import QUANTIZED_OPS
from compiler.passes.values import graphs_of

FLOAT_MACS_PER_S = 60e6
INTEGER_MACS_PER_S = 600e6
"""What QEMU computes of a model for a Cortex-A76 on one core, half of what was measured.

That was 131 M and 1.3 G on a Xeon; other work may share the machine. An instruction of floats has 4 of them and takes a
call for each, a sum of 8-bit products has 16.
"""

_LEAST_TOKENS = 2
"""One token is a size by itself: fewer than two read no prompt."""


@dataclass(frozen=True)
class LeftOut:
    """Sizes that are not executed.

    Args:
        sizes: As figures are labelled with them.
        why: Why not.
    """

    sizes: str
    why: str

    def __str__(self) -> str:
        return f"{self.sizes}: {self.why}"


def choose_points(
    model: ir.Model, points: Sequence[ParityCase], *, seconds: float
) -> tuple[tuple[ParityCase, ...], tuple[LeftOut, ...]]:
    """The points that the emulator is reckoned to run one after another in the time that there is, and the others.

    Args:
        model: The border model.
        points: Inputs and expected outputs, the smallest sizes first.
        seconds: The time for all of them.
    """
    chosen: list[ParityCase] = []
    others: list[LeftOut] = []
    left_s = seconds
    for point in points:
        needed_s, macs = reckon(model, point.inputs)
        if needed_s <= left_s:
            chosen.append(point)
            left_s -= needed_s
        else:
            others.append(LeftOut(point.label, too_long(needed_s, macs, seconds)))
    return tuple(chosen), tuple(others)


def too_long(needed_s: float, macs: float, seconds: float) -> str:
    """Why something is not executed, with the time that it would take."""
    return (
        f"its {macs / 1e9:.1f} G multiply-accumulates are reckoned with {needed_s:.0f} s in the emulator, beyond the "
        f"{seconds:g} s of --emulate-seconds"
    )


def reckon(model: ir.Model, inputs: Arrays) -> tuple[float, float]:
    """Seconds that the emulator is reckoned to take for one run, and its multiply-accumulates.

    Args:
        model: The border model.
        inputs: Of the run; nothing but their shapes matters.
    """
    decoder = find_decoder(model) if is_decoder(model) else None
    if decoder is not None and inputs[decoder.ids].shape[1] == 1:
        # inference cannot tell one token from a size that is broadcast, and knows little of what comes behind
        seconds, total = _reckon_sized(_at_sizes(model, _with_another_token(inputs, decoder)))
        return seconds / 2, total / 2
    return _reckon_sized(_at_sizes(model, inputs))


def _reckon_sized(model: ir.Model) -> tuple[float, float]:
    seconds, total = 0.0, 0.0
    for graph in graphs_of(model):
        for node in graph:
            macs = node_macs(node) or 0  # an unknown shape counts as no work: the time is limited anyway
            seconds += macs / (INTEGER_MACS_PER_S if _sums_integers(node) else FLOAT_MACS_PER_S)
            total += macs
    return seconds, total


def _with_another_token(inputs: Arrays, decoder: Decoder) -> Arrays:
    wider = (decoder.ids, decoder.positions, decoder.mask)
    return {
        name: np.pad(array, [(0, 0), (0, 1)], mode="edge") if name in wider else array for name, array in inputs.items()
    }


def total_s(model: ir.Model, points: Sequence[ParityCase]) -> float:
    """Seconds that the emulator is reckoned to take for points, one after another."""
    return sum(reckon(model, point.inputs)[0] for point in points)


def fewer_tokens(model: ir.Model, point: ParityCase, decoder: Decoder, *, seconds: float) -> Mapping[str, Arrays]:
    """The inputs of a decoder's point with so few of its new tokens that they end in time, by their label.

    Args:
        model: The border model.
        point: The first of its tokens are taken.
        decoder: What its inputs mean.
        seconds: The time that there is.

    Returns:
        One set of inputs; none where even the fewest tokens take too long.
    """
    past = next(point.inputs[pair.past].shape[pair.axis] for pair in decoder.pairs)
    count = point.inputs[decoder.ids].shape[1] // 2
    while count >= _LEAST_TOKENS:
        ends = {decoder.ids: count, decoder.positions: count, decoder.mask: past + count}
        inputs = {name: array[:, : ends[name]] if name in ends else array for name, array in point.inputs.items()}
        if reckon(model, inputs)[0] <= seconds:
            return {sizes_label({decoder.sequence: count, decoder.past: past}): inputs}
        count //= 2
    return {}


def up_to(points: Sequence[ParityCase], label: str) -> tuple[ParityCase, ...]:
    """The points up to one of a label; all where there is none."""
    place = next((index for index, point in enumerate(points) if point.label == label), len(points))
    return tuple(points[: place + 1])


def _at_sizes(model: ir.Model, inputs: Arrays) -> ir.Model:
    """A copy of the model, weights shared, with the sizes of some inputs."""
    if all(value.shape is None or value.shape.is_static() for value in model.graph.inputs):
        return model
    copy = model.clone()
    for value in copy.graph.inputs:
        if value.name in inputs:
            value.shape = ir.Shape(inputs[str(value.name)].shape)
    for value in (*copy.graph.outputs, *(value for node in copy.graph.all_nodes() for value in node.outputs)):
        if value.shape is not None and not value.shape.is_static():
            value.shape = None  # what inference knows by the size it must not take from before
    infer_shapes(copy)
    return copy


def _sums_integers(node: ir.Node) -> bool:
    return node.op_type in QUANTIZED_OPS or all(_is_dequantized(value) for value in node.inputs[:2])


def _is_dequantized(value: ir.Value | None) -> bool:
    source = value.producer() if value is not None else None
    while source is not None and source.op_type in ("Transpose", "Reshape"):
        source = source.inputs[0].producer() if source.inputs[0] is not None else None
    return source is not None and source.op_type == "DequantizeLinear"
