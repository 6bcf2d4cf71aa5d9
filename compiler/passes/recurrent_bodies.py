"""LSTM, GRU and RNN written out step by step, for a target that lacks an activation, peepholes or another attribute.

For each direction one product makes the input's part of all gates; then every time step is written out, so their number
must be known. With lengths, a sequence that has ended keeps its states and gives zeros, as ONNX says; one that is read
backwards is turned round before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

STEPS_MAX = 128
"""Most time steps that are written out: an LSTM becomes some 15 operators for each."""

_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
_DEFAULTS = {"GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh"), "RNN": ("Tanh",)}
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
_INPUTS = ("X", "W", "R", "B", "lengths", "h0", "c0", "P")


@dataclass(frozen=True)
class _Activation:
    """An operator that is an activation of recurrent ones, and the defaults of its parameters; None: it has none."""

    op_type: str
    alpha: float | None = None
    beta: float | None = None


_ACTIVATIONS = {
    "elu": _Activation("Elu", 1.0),
    "hardsigmoid": _Activation("HardSigmoid", 0.2, 0.5),
    "leakyrelu": _Activation("LeakyRelu", 0.01),
    "relu": _Activation("Relu"),
    "sigmoid": _Activation("Sigmoid"),
    "softplus": _Activation("Softplus"),
    "softsign": _Activation("Softsign"),
    "tanh": _Activation("Tanh"),
    "thresholdedrelu": _Activation("ThresholdedRelu", 1.0),
}
"""By name in small letters. Of Affine and ScaledTanh, ONNX and ONNX Runtime have different default parameters."""


@dataclass(frozen=True)
class RecurrentLayer:
    """A node that can be written out.

    Args:
        op_type: LSTM, GRU or RNN.
        inputs: Names of its inputs in the body, those that are left out included.
        given: Those that are not left out.
        steps: Time steps.
        hidden: Size of the state.
        dtype: Element type of the data.
        activations: Op and attributes in ONNX text, those of each direction after each other.
        reverse: For each direction, whether it reads backwards.
        clip: Bound of what activations take; 0: none.
        is_linear_before_reset, couples_forget: The attributes `linear_before_reset` and `input_forget`.
        opset: Of the model.
    """

    op_type: str
    inputs: tuple[str, ...]
    given: frozenset[str]
    steps: int
    hidden: int
    dtype: ir.DataType
    activations: tuple[str, ...]
    reverse: tuple[bool, ...]
    clip: float
    is_linear_before_reset: bool
    couples_forget: bool
    opset: int

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs in the body."""
        return ("Y", "Y_h", "Y_c") if self.op_type == "LSTM" else ("Y", "Y_h")


def layer_of(node: ir.Node, opset: int) -> RecurrentLayer | None:
    """What a node computes; None where it is not covered, or ONNX and ONNX Runtime do not agree what that is."""
    attributes, data = node.attributes, node.inputs[0]
    layout = attributes.get_int("layout", 0)
    if data is None or data.shape is None or data.dtype is None or layout:
        return None
    given = frozenset(name for name, value in zip(_INPUTS, node.inputs, strict=False) if value is not None)
    steps, weights = data.shape[0], node.inputs[2]
    width = weights.shape[2] if weights is not None and weights.shape is not None else None
    hidden = attributes.get_int("hidden_size", None) or width
    activations, clip = _activations(node), max(0.0, attributes.get_float("clip", 0.0))
    if activations is None or not isinstance(steps, int) or not 0 < steps <= STEPS_MAX or not isinstance(hidden, int):
        return None
    if clip and ("P" in given or "B" not in given):
        return None  # ONNX Runtime clips before it adds peepholes, and not at all without a bias
    return RecurrentLayer(
        node.op_type,
        _INPUTS[: len(node.inputs)],
        given,
        steps,
        hidden,
        data.dtype,
        activations,
        _DIRECTIONS[attributes.get_string("direction", "forward")],
        clip,
        bool(attributes.get_int("linear_before_reset", 0)),
        bool(attributes.get_int("input_forget", 0)),
        opset,
    )


def _activations(node: ir.Node) -> tuple[str, ...] | None:
    attributes = node.attributes
    directions = len(_DIRECTIONS[attributes.get_string("direction", "forward")])
    names = attributes.get_strings("activations", ()) or _DEFAULTS[node.op_type] * directions
    # the lists hold values only for those activations that have such a parameter, in order
    alphas, betas = (list(attributes.get_floats(f"activation_{key}", ())) for key in ("alpha", "beta"))
    if not all(name.lower() in _ACTIVATIONS for name in names):
        return None
    return tuple(_spelled(_ACTIVATIONS[name.lower()], alphas, betas) for name in names)


def _spelled(activation: _Activation, alphas: list[float], betas: list[float]) -> str:
    pairs = (("alpha", activation.alpha, alphas), ("beta", activation.beta, betas))
    values = [
        f"{key}: float = {given.pop(0) if given else default!r}" for key, default, given in pairs if default is not None
    ]
    return activation.op_type + (f"<{', '.join(values)}>" if values else "")


def write_out(layer: RecurrentLayer) -> tuple[str, ...]:
    """The nodes of the layer in ONNX text."""
    return tuple(_lines(layer))


def _lines(layer: RecurrentLayer) -> Iterator[str]:
    yield from _common(layer)
    for index in range(len(layer.reverse)):
        yield from _direction(layer, index)
    directions = range(len(layer.reverse))
    for name, axis in zip(layer.outputs, (1, 0, 0), strict=False):
        yield f"{name} = Concat<axis = {axis}>({', '.join(f'{name}_{index}' for index in directions)})"


def _common(layer: RecurrentLayer) -> Iterator[str]:
    """Constants, and the state that stands before the first step where none is given."""
    yield from (f"axis_{axis} = Constant<value_ints = [{axis}]>()" for axis in (0, 1, 2))
    yield f"hidden = Constant<value_ints = [{layer.hidden}]>()"
    yield "sizes = Shape(X)"
    yield "batch = Slice(sizes, axis_1, axis_2)"
    yield "state_sizes = Concat<axis = 0>(batch, hidden)"
    yield "zeros = ConstantOfShape(state_sizes)"
    yield f"zero = Cast<to = {int(layer.dtype)}>(zeros)"
    yield "one_float = Constant<value_float = 1.0>()"
    yield f"one = Cast<to = {int(layer.dtype)}>(one_float)"
    if layer.clip:
        for name, bound in (("lowest", -layer.clip), ("highest", layer.clip)):
            yield f"{name}_float = Constant<value_float: float = {bound!r}>()"
            yield f"{name} = Cast<to = {int(layer.dtype)}>({name}_float)"
    for step in range(layer.steps):
        yield f"at_{step} = Constant<value_int = {step}>()"
        if "lengths" in layer.given:
            yield f"step_{step} = Cast<to = {int(ir.DataType.INT32)}>(at_{step})"
            yield f"goes_on_{step} = Less(step_{step}, lengths)"
            yield from _unsqueeze(layer, f"goes_on_{step}", 1, f"alive_{step}")


def _direction(layer: RecurrentLayer, d: int) -> Iterator[str]:
    has_lengths, reverse = "lengths" in layer.given, layer.reverse[d]
    turn = "ReverseSequence<time_axis = 0, batch_axis = 1>"
    yield f"place_{d} = Constant<value_int = {d}>()"
    for name in ("W", "R"):
        yield f"{name}_of_{d} = Gather<axis = 0>({name}, place_{d})"
        yield f"{name}_{d} = Transpose<perm = [1, 0]>({name}_of_{d})"
    if layer.op_type == "GRU":
        yield from _split(layer, f"R_{d}", 1, [f"R_{gate}_{d}" for gate in "zrh"])
    yield from _biases(layer, d)
    lengths = f"lengths64_{d}"
    if reverse and has_lengths:
        yield f"{lengths} = Cast<to = {int(ir.DataType.INT64)}>(lengths)"
        yield f"X_{d} = {turn}(X, {lengths})"
    yield f"product_{d} = MatMul({f'X_{d}' if reverse and has_lengths else 'X'}, W_{d})"
    yield f"G_{d} = Add(product_{d}, bias_{d})"
    states = ("h", "c") if layer.op_type == "LSTM" else ("h",)
    for state in states:
        is_given = f"{state}0" in layer.given
        yield f"{state}_{d}_first = " + (f"Gather<axis = 0>({state}0, place_{d})" if is_given else "Identity(zero)")
    if "P" in layer.given:
        yield f"P_of_{d} = Gather<axis = 0>(P, place_{d})"
        yield from _split(layer, f"P_of_{d}", 0, [f"P_{gate}_{d}" for gate in "iof"])
    last, order = "first", range(layer.steps)
    for step in reversed(order) if reverse and not has_lengths else order:
        yield f"g_{d}_{step} = Gather<axis = 0>(G_{d}, at_{step})"
        yield from _CELLS[layer.op_type](layer, d, step, last)
        for state in states:
            new, old = f"{state}_{d}_{step}", f"{state}_{d}_{last}"
            yield f"{new} = " + (f"Where(alive_{step}, new_{new}, {old})" if has_lengths else f"Identity(new_{new})")
        shown = f"shown_{d}_{step}"
        yield f"{shown} = " + (f"Where(alive_{step}, h_{d}_{step}, zero)" if has_lengths else f"Identity(h_{d}_{step})")
        yield from _unsqueeze(layer, shown, 0, f"y_{d}_{step}")
        last = str(step)
    yield f"ys_{d} = Concat<axis = 0>({', '.join(f'y_{d}_{step}' for step in order)})"
    if reverse and has_lengths:
        yield f"turned_{d} = {turn}(ys_{d}, {lengths})"
    yield from _unsqueeze(layer, f"turned_{d}" if reverse and has_lengths else f"ys_{d}", 1, f"Y_{d}")
    for state in states:
        yield from _unsqueeze(layer, f"{state}_{d}_{last}", 0, f"Y_{state}_{d}")


def _biases(layer: RecurrentLayer, d: int) -> Iterator[str]:
    """`bias`: what is added to the product of the input; `recurrent_bias`: of a GRU, what the reset gate multiplies."""
    width, hidden = _GATES[layer.op_type] * layer.hidden, layer.hidden
    if "B" not in layer.given:
        yield f"bias_{d} = Sub(one, one)"
        if layer.is_linear_before_reset:
            yield f"recurrent_bias_{d} = Identity(bias_{d})"
        return
    yield f"B_of_{d} = Gather<axis = 0>(B, place_{d})"
    parts = {"input": (0, width), "recurrent": (width, 2 * width)}
    if layer.is_linear_before_reset:
        parts = {"input": (0, width), "gates": (width, 2 * width - hidden), "hidden": (2 * width - hidden, 2 * width)}
    for name, (start, end) in parts.items():
        yield f"{name}_start_{d} = Constant<value_ints = [{start}]>()"
        yield f"{name}_end_{d} = Constant<value_ints = [{end}]>()"
        yield f"{name}_bias_{d} = Slice(B_of_{d}, {name}_start_{d}, {name}_end_{d})"
    if not layer.is_linear_before_reset:
        yield f"bias_{d} = Add(input_bias_{d}, recurrent_bias_{d})"
        return
    yield f"none_{d} = Sub(hidden_bias_{d}, hidden_bias_{d})"
    yield f"both_{d} = Concat<axis = 0>(gates_bias_{d}, none_{d})"
    yield f"bias_{d} = Add(input_bias_{d}, both_{d})"
    yield f"recurrent_bias_{d} = Identity(hidden_bias_{d})"


def _rnn(layer: RecurrentLayer, d: int, step: int, last: str) -> Iterator[str]:
    at = f"{d}_{step}"
    yield f"product_{at} = MatMul(h_{d}_{last}, R_{d})"
    yield f"sum_{at} = Add(g_{at}, product_{at})"
    yield from _activate(layer, d, 0, f"sum_{at}", f"new_h_{at}")


def _lstm(layer: RecurrentLayer, d: int, step: int, last: str) -> Iterator[str]:
    at = f"{d}_{step}"
    yield f"product_{at} = MatMul(h_{d}_{last}, R_{d})"
    yield f"sum_{at} = Add(g_{at}, product_{at})"
    yield from _split(layer, f"sum_{at}", 1, [f"{gate}_sum_{at}" for gate in "iofc"])
    yield from _gate(layer, d, "i", at, f"c_{d}_{last}")
    if layer.couples_forget:
        yield f"f_{at} = Sub(one, i_{at})"
    else:
        yield from _gate(layer, d, "f", at, f"c_{d}_{last}")
    yield from _activate(layer, d, 1, f"c_sum_{at}", f"candidate_{at}")
    yield f"kept_{at} = Mul(f_{at}, c_{d}_{last})"
    yield f"added_{at} = Mul(i_{at}, candidate_{at})"
    yield f"new_c_{at} = Add(kept_{at}, added_{at})"
    yield from _gate(layer, d, "o", at, f"new_c_{at}")
    activation = layer.activations[len(layer.activations) // len(layer.reverse) * d + 2]
    yield f"cell_{at} = {activation}(new_c_{at})"
    yield f"new_h_{at} = Mul(o_{at}, cell_{at})"


def _gate(layer: RecurrentLayer, d: int, gate: str, at: str, cell: str) -> Iterator[str]:
    """A gate of an LSTM, which looks at the cell where there are peepholes."""
    source = f"{gate}_sum_{at}"
    if "P" in layer.given:
        yield f"{gate}_look_{at} = Mul(P_{gate}_{d}, {cell})"
        yield f"{gate}_all_{at} = Add({source}, {gate}_look_{at})"
        source = f"{gate}_all_{at}"
    yield from _activate(layer, d, 0, source, f"{gate}_{at}")


def _gru(layer: RecurrentLayer, d: int, step: int, last: str) -> Iterator[str]:
    at, state = f"{d}_{step}", f"h_{d}_{last}"
    yield from _split(layer, f"g_{at}", 1, [f"{gate}_in_{at}" for gate in "zrh"])
    for gate in "zr":
        yield f"{gate}_product_{at} = MatMul({state}, R_{gate}_{d})"
        yield f"{gate}_sum_{at} = Add({gate}_in_{at}, {gate}_product_{at})"
        yield from _activate(layer, d, 0, f"{gate}_sum_{at}", f"{gate}_{at}")
    if layer.is_linear_before_reset:
        yield f"h_product_{at} = MatMul({state}, R_h_{d})"
        yield f"h_biased_{at} = Add(h_product_{at}, recurrent_bias_{d})"
        yield f"h_part_{at} = Mul(r_{at}, h_biased_{at})"
    else:
        yield f"reset_{at} = Mul(r_{at}, {state})"
        yield f"h_part_{at} = MatMul(reset_{at}, R_h_{d})"
    yield f"h_sum_{at} = Add(h_in_{at}, h_part_{at})"
    yield from _activate(layer, d, 1, f"h_sum_{at}", f"candidate_{at}")
    yield f"rest_{at} = Sub(one, z_{at})"
    yield f"taken_{at} = Mul(rest_{at}, candidate_{at})"
    yield f"kept_{at} = Mul(z_{at}, {state})"
    yield f"new_h_{at} = Add(taken_{at}, kept_{at})"


_CELLS: dict[str, Callable[[RecurrentLayer, int, int, str], Iterator[str]]] = {"GRU": _gru, "LSTM": _lstm, "RNN": _rnn}


def _activate(layer: RecurrentLayer, d: int, place: int, source: str, result: str) -> Iterator[str]:
    """One of a direction's activations, of clipped numbers where the layer clips."""
    activation = layer.activations[len(layer.activations) // len(layer.reverse) * d + place]
    if layer.clip:
        yield f"{result}_clipped = Clip({source}, lowest, highest)"
        source = f"{result}_clipped"
    yield f"{result} = {activation}({source})"


def _split(layer: RecurrentLayer, source: str, axis: int, results: Sequence[str]) -> Iterator[str]:
    count = f", num_outputs = {len(results)}" if layer.opset >= 18 else ""
    yield f"{', '.join(results)} = Split<axis = {axis}{count}>({source})"


def _unsqueeze(layer: RecurrentLayer, source: str, axis: int, result: str) -> Iterator[str]:
    if layer.opset >= 13:
        yield f"{result} = Unsqueeze({source}, axis_{axis})"
    else:
        yield f"{result} = Unsqueeze<axes = [{axis}]>({source})"
