"""LSTM, GRU and RNN nodes: for each direction one matrix product over all time steps, then a kernel with the loop.

Beside them ReverseSequence, which models have around layers that run backwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.target import Array
from targets.arm_tvm.graph.reading import constant, shape_of
from targets.arm_tvm.kernels.floating_point.recurrent import DTYPE, GATES, Recurrent, arrange, emit_recurrent, pack
from targets.arm_tvm.kernels.machine import Machine

RECURRENT = tuple(GATES)
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@dataclass(frozen=True)
class _Activation:
    """An activation of a recurrent operator.

    Args:
        alpha, beta: Defaults of its parameters; None: it has none of that name.
        text: Writes it as an expression of `x`, as in `kernels.expressions`.
    """

    alpha: float | None
    beta: float | None
    text: Callable[[float, float], str]


_ACTIVATIONS = {
    "hardsigmoid": _Activation(0.2, 0.5, lambda a, b: f"clip(add(multiply(x,{a!r}),{b!r}),0.0,1.0)"),
    "leakyrelu": _Activation(0.01, None, lambda a, _: f"add(maximum(x,0.0),multiply(minimum(x,0.0),{a!r}))"),
    "relu": _Activation(None, None, lambda *_: "maximum(x,0.0)"),
    "sigmoid": _Activation(None, None, lambda *_: "sigmoid(x)"),
    "softsign": _Activation(None, None, lambda *_: "divide(x,add(maximum(x,subtract(0.0,x)),1.0))"),
    "tanh": _Activation(None, None, lambda *_: "tanh(x)"),
}
"""By name in small letters. Of Affine and ScaledTanh, ONNX and ONNX Runtime have different default parameters."""


def recurrent_reason(node: ir.Node) -> str:
    """Why a recurrent node is refused; empty if it is not."""
    names = node.attributes.get_strings("activations", [])
    unknown = sorted({name for name in names if name.lower() not in _ACTIVATIONS})
    if unknown:
        return f"activations {', '.join(unknown)} are not among {', '.join(sorted(_ACTIVATIONS))}"
    if node.attributes.get_float("clip", 0.0) > 0 and (_has(node, 7) or not _has(node, 3)):
        return "clip with peepholes or without a bias: ONNX and ONNX Runtime define it differently"
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or not shape.is_static():
        return "the number of time steps must be fixed"
    if 0 in shape.numpy():
        return "its input is empty"
    return ""


def _has(node: ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is not None


def recurrent(
    builder: Any, machine: Machine, operator: str, inputs: Sequence[Any], attributes: Mapping[str, Any]
) -> Any:
    """The tuple of outputs that a node becomes: Y, Y_h and, of an LSTM, Y_c.

    Args:
        builder: TVM's block builder.
        machine: What the kernel is for.
        operator: LSTM, GRU or RNN.
        inputs: As ONNX orders them, None for one that is left out; weights, bias and peepholes are constants.
        attributes: By name.
    """
    from tvm import relax

    layer = _Layer(builder, machine, operator, [*inputs, *[None] * (8 - len(inputs))], attributes)
    directions = [layer.direction(index) for index in range(len(layer.reversed))]
    steps, batch, hidden = directions[0].steps, directions[0].batch, directions[0].hidden
    results = [layer.run(work, index) for index, work in enumerate(directions)]
    shapes = [(steps, 1, batch, hidden), *[(1, batch, hidden)] * (len(results[0]) - 1)]
    outputs = []
    for place, shape in enumerate(shapes):
        parts = [builder.emit(relax.op.reshape(result[place], shape)) for result in results]
        axis = 1 if place == 0 else 0
        outputs.append(parts[0] if len(parts) == 1 else builder.emit(relax.op.concat(parts, axis=axis)))
    return relax.Tuple(outputs)


def reverse_sequence(builder: Any, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    """Each sequence backwards as far as it is long; what is behind its end stays."""
    from tvm import te, tirx

    time, batch = int(attributes.get("time_axis", 0)), int(attributes.get("batch_axis", 1))

    def reversed_sequences(data: Any, lengths: Any) -> Any:
        def element(*place: Any) -> Any:
            at, length = place[time], lengths[place[batch]]
            source = tirx.if_then_else(at < length, length - 1 - at, at)
            return data[(*place[:time], source, *place[time + 1 :])]

        return te.compute(data.shape, element, "reverse_sequence")

    return builder.emit_te(reversed_sequences, *inputs, primfunc_name_hint="reverse_sequence")


class _Layer:
    """One node while it is converted."""

    def __init__(
        self, builder: Any, machine: Machine, operator: str, inputs: Sequence[Any], attributes: Mapping[str, Any]
    ) -> None:
        self.builder, self.machine, self.operator, self.attributes = builder, machine, operator, attributes
        self.source, *weights, self.lengths, self.state, self.cell, peepholes = inputs
        self.weights, self.recurrent, self.bias = (None if value is None else constant(value) for value in weights)
        self.peepholes = None if peepholes is None else constant(peepholes)
        self.reversed = _DIRECTIONS[_text(attributes.get("direction", "forward"))]
        self.gates, self.lanes = GATES[operator], machine.lanes(DTYPE)

    def direction(self, index: int) -> Recurrent:
        """What the kernel of one direction computes."""
        steps, batch, _ = shape_of(self.source)
        clip = float(self.attributes.get("clip", 0.0))
        return Recurrent(
            self.operator,
            steps,
            batch,
            _array(self.recurrent).shape[-1],
            _activations(self.operator, self.attributes, index, len(self.reversed)),
            reverse=self.reversed[index],
            # ONNX Runtime takes no clip, or one that is not positive, for none.
            clip=clip if clip > 0 else math.inf,
            linear_before_reset=self.operator == "GRU" and bool(self.attributes.get("linear_before_reset", 0)),
            peepholes=self.peepholes is not None,
            lengths=self.lengths is not None,
        )

    def run(self, work: Recurrent, index: int) -> list[Any]:
        """The results of one direction: all states, the last one, and the cell of an LSTM."""
        from tvm import relax

        products, extra = self._products(work, index)
        packed = pack(work, _array(self.recurrent)[index], self.machine)
        operands = [products, relax.const(packed), *map(relax.const, extra)]
        if work.peepholes:
            units = _array(self.peepholes)[index].reshape(3, 1, work.hidden)
            operands.append(relax.const(np.concatenate([arrange(unit, self.lanes) for unit in units])))
        if self.lengths is not None:
            operands.append(self.lengths)
        states = [self.state, self.cell] if self.operator == "LSTM" else [self.state]
        operands += [self._first(state, index, (work.batch, work.hidden)) for state in states]
        shape = (work.batch, work.hidden)
        types = [relax.TensorType(size, DTYPE) for size in ((work.steps, *shape), *[shape] * len(states))]
        function = self.builder.add_func(emit_recurrent(work, self.machine), self.operator.lower())
        value = self.builder.emit(relax.call_tir(function, operands, types))
        return [self.builder.emit(relax.TupleGetItem(value, place)) for place in range(len(types))]

    def _products(self, work: Recurrent, index: int) -> tuple[Any, list[Array]]:
        """The products of the input with its weights, biases added; and the bias that the kernel adds itself."""
        from tvm import relax

        size = (self.gates, work.hidden)
        weights = _array(self.weights)[index].reshape(*size, -1).transpose(2, 0, 1)
        both = np.zeros((2, *size), DTYPE) if self.bias is None else self.bias[index].reshape(2, *size)
        bias, extra = both[0] + both[1], []
        if work.linear_before_reset:
            bias[2] = both[0, 2]
            extra = [arrange(both[1, 2:], self.lanes)]
        value = self.builder.emit(relax.op.matmul(self.source, relax.const(arrange(weights, self.lanes))))
        return self.builder.emit(relax.op.add(value, relax.const(arrange(bias, self.lanes)))), extra

    def _first(self, state: Any, index: int, shape: tuple[int, int]) -> Any:
        """The first state of one direction."""
        from tvm import relax

        if state is None:
            return relax.const(np.zeros(shape, DTYPE))
        if len(self.reversed) > 1:
            state = self.builder.emit(relax.op.strided_slice(state, [0], [index], [index + 1]))
        return self.builder.emit(relax.op.reshape(state, shape))


def _activations(operator: str, attributes: Mapping[str, Any], index: int, directions: int) -> tuple[str, ...]:
    """The activations of one direction, as expressions."""
    names = [_text(name).lower() for name in attributes.get("activations", _DEFAULTS[operator] * directions)]
    alphas, betas = (list(attributes.get(name, ())) for name in ("activation_alpha", "activation_beta"))
    texts = []
    for name in names:
        # The lists hold values only for those activations that have such a parameter, in order.
        rule = _ACTIVATIONS[name]
        alpha, beta = _parameter(rule.alpha, alphas), _parameter(rule.beta, betas)
        texts.append(rule.text(alpha, beta))
    count = len(texts) // directions
    return tuple(texts[index * count : (index + 1) * count])


def _parameter(default: float | None, given: list[float]) -> float:
    if default is None:
        return 0.0
    return float(given.pop(0)) if given else default


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _array(array: Array | None) -> Array:
    if array is None:
        raise ValueError("weights of a recurrent operator must be constants")
    return array
