"""Random small graphs as ONNX text: chains and diamonds of what exporters write, with shared and repeated pieces."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import permutations
from math import prod

from hypothesis import strategies as st

Shape = tuple[int, ...]
"""Sizes behind the symbolic batch."""


@dataclass
class Sketch:
    """A graph being drawn: lines of nodes, initializers, and the float values made so far with their shapes."""

    draw: st.DrawFn
    lines: list[str] = field(default_factory=list)
    constants: dict[str, str] = field(default_factory=dict)
    values: dict[str, Shape] = field(default_factory=lambda: {"x": (3, 6, 6)})
    count: int = 0

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def pick(self, rank: int | None = None) -> str:
        fitting = [name for name, shape in self.values.items() if rank is None or len(shape) == rank]
        return self.draw(st.sampled_from(fitting))

    def add(self, text: str, shape: Shape) -> str:
        out = self.name()
        self.lines.append(f"[n{self.count}] {out} = {text}")
        self.values[out] = shape
        return out

    def side(self, text: str) -> str:
        out = self.name()
        self.lines.append(f"{out} = {text}")
        return out

    def constant(self, shape: Shape, kind: str = "float", numbers: list[float] | None = None) -> str:
        drawn = numbers
        if drawn is None:
            seed = self.draw(st.integers(0, 5))
            drawn = [((seed * 7 + index * 5) % 11 - 5) / 8 for index in range(prod(shape))]
        text = f"{kind}[{','.join(map(str, shape))}] NAME = {{{','.join(map(str, drawn))}}}"
        shared = [name for name, known in self.constants.items() if known == text]
        if shared and self.draw(st.booleans()):
            return shared[0]
        name = f"c{len(self.constants)}"
        self.constants[name] = text
        return name


def _unary(sketch: Sketch) -> None:
    source = sketch.pick()
    operator = sketch.draw(st.sampled_from(["Relu", "Identity", "Neg", "Sigmoid", "Dropout", "Abs", "Tanh"]))
    sketch.add(f"{operator}({source})", sketch.values[source])


def _with_number(sketch: Sketch) -> None:
    source, operator = sketch.pick(), sketch.draw(st.sampled_from(["Add", "Mul", "Sub", "Div"]))
    number = sketch.draw(st.sampled_from([1.0, 2.0, 0.5] if operator == "Div" else [0.0, 1.0, 2.0, -0.5]))
    constant = sketch.constant((1,), numbers=[number])
    swapped = operator in ("Add", "Mul") and sketch.draw(st.booleans())
    operands = f"{constant}, {source}" if swapped else f"{source}, {constant}"
    sketch.add(f"{operator}({operands})", sketch.values[source])


def _per_channel(sketch: Sketch) -> None:
    source = sketch.pick(3) if any(len(shape) == 3 for shape in sketch.values.values()) else "x"
    constant = sketch.constant((sketch.values[source][0], 1, 1))
    sketch.add(f"{sketch.draw(st.sampled_from(['Add', 'Mul', 'Sub']))}({source}, {constant})", sketch.values[source])


def _two(sketch: Sketch) -> None:
    left = sketch.pick()
    equal = [name for name, shape in sketch.values.items() if shape == sketch.values[left]]
    right = sketch.draw(st.sampled_from(equal))
    sketch.add(f"{sketch.draw(st.sampled_from(['Add', 'Mul', 'Max']))}({left}, {right})", sketch.values[left])


def _conv(sketch: Sketch) -> None:
    source = sketch.pick(3)
    channels, height, width = sketch.values[source]
    kernel, pad = sketch.draw(st.sampled_from([(1, 0), (3, 1), (3, 0)]))
    if min(height, width) + 2 * pad < kernel:
        return
    out = sketch.draw(st.sampled_from([2, 3]))
    weight = sketch.constant((out, channels, kernel, kernel))
    bias = f", {sketch.constant((out,))}" if sketch.draw(st.booleans()) else ""
    pads = f"<pads=[{pad},{pad},{pad},{pad}]>"
    shape = (out, height + 2 * pad - kernel + 1, width + 2 * pad - kernel + 1)
    made = sketch.add(f"Conv{pads}({source}, {weight}{bias})", shape)
    if sketch.draw(st.booleans()):
        parts = [sketch.constant((out,)) for _ in range(3)]
        variance = sketch.constant((out,), numbers=[0.5 + index for index in range(out)])
        sketch.add(f"BatchNormalization({made}, {parts[0]}, {parts[1]}, {parts[2]}, {variance})", shape)


def _pad_or_pool(sketch: Sketch) -> None:
    source = sketch.pick(3)
    channels, height, width = sketch.values[source]
    if sketch.draw(st.booleans()):
        amount = sketch.draw(st.sampled_from([0, 1]))
        pads = sketch.constant((8,), "int64", [0, 0, amount, amount, 0, 0, amount, amount])
        sketch.add(f"Pad({source}, {pads})", (channels, height + 2 * amount, width + 2 * amount))
    elif min(height, width) >= 2:
        operator = sketch.draw(st.sampled_from(["MaxPool", "AveragePool"]))
        sketch.add(f"{operator}<kernel_shape=[2,2]>({source})", (channels, height - 1, width - 1))


def _transpose(sketch: Sketch) -> None:
    source = sketch.pick()
    shape = sketch.values[source]
    order = sketch.draw(st.sampled_from(list(permutations(range(len(shape))))))
    perm = [0, *(axis + 1 for axis in order)]
    sketch.add(f"Transpose<perm={perm}>({source})", tuple(shape[axis] for axis in order))


def _reshape(sketch: Sketch) -> None:
    source = sketch.pick()
    shape = sketch.values[source]
    way = sketch.draw(st.sampled_from(["flatten", "zeros", "merge", "dynamic", "unsqueeze"]))
    if way == "flatten":
        sketch.add(f"Flatten({source})", (prod(shape),))
    elif way == "zeros":
        target = sketch.constant((len(shape) + 1,), "int64", [0] * (len(shape)) + [-1])
        sketch.add(f"Reshape({source}, {target})", shape)
    elif way == "merge":
        target = sketch.constant((3,), "int64", [-1, shape[0], prod(shape[1:])])
        sketch.add(f"Reshape({source}, {target})", (shape[0], prod(shape[1:])))
    elif way == "dynamic":
        batch = sketch.side(f"Gather({sketch.side(f'Shape({source})')}, {sketch.constant((1,), 'int64', [0])})")
        target = sketch.side(f"Concat<axis=0>({batch}, {sketch.constant((1,), 'int64', [-1])})")
        sketch.add(f"Reshape({source}, {target})", (prod(shape),))
    elif len(shape) < 4:
        axes = sketch.constant((1,), "int64", [1])
        opened = sketch.side(f"Unsqueeze({source}, {axes})")
        sketch.add(f"Squeeze({opened}, {axes})", shape)


def _cast(sketch: Sketch) -> None:
    source = sketch.pick()
    middle = sketch.side(f"Cast<to={sketch.draw(st.sampled_from([11, 10, 1]))}>({source})")
    sketch.add(f"Cast<to=1>({middle})", sketch.values[source])


def _matmul(sketch: Sketch) -> None:
    flat = [name for name, shape in sketch.values.items() if len(shape) == 1]
    if not flat:
        return _reshape(sketch)
    source = sketch.draw(st.sampled_from(flat))
    columns = sketch.draw(st.sampled_from([2, 4]))
    product = sketch.add(f"MatMul({source}, {sketch.constant((*sketch.values[source], columns))})", (columns,))
    if sketch.draw(st.booleans()):
        sketch.add(f"Add({product}, {sketch.constant((columns,))})", (columns,))


def _constants(sketch: Sketch) -> None:
    source = sketch.pick()
    size = sketch.draw(st.sampled_from([2, 40000]))
    filled = sketch.side(f"ConstantOfShape({sketch.constant((1,), 'int64', [size])})")
    total = sketch.side(f"ReduceSum<keepdims=0>({filled})")
    sketch.add(f"Add({source}, {sketch.side(f'Neg({total})')})", sketch.values[source])


def _branch(sketch: Sketch) -> None:
    source = sketch.pick()
    condition, out = sketch.constant((1,), "bool", [sketch.draw(st.integers(0, 1))]), sketch.name()
    then, other = f"{out}_t", f"{out}_e"
    zero = sketch.constant((1,), numbers=[0.0])
    kind = f"float[{','.join(map(str, ('N', *sketch.values[source])))}]"
    sketch.lines.append(
        f"{out} = If({condition}) <"
        f"then_branch = g1 () => ({kind} {then}) {{ {out}_i = Identity({source}) {then} = Add({out}_i, {zero}) }}, "
        f"else_branch = g2 () => ({kind} {other}) {{ {out}_n = Neg({source}) {other} = Neg({out}_n) }}>"
    )
    sketch.values[out] = sketch.values[source]


_STEPS = (
    _unary,
    _with_number,
    _per_channel,
    _two,
    _conv,
    _pad_or_pool,
    _transpose,
    _reshape,
    _cast,
    _matmul,
    _constants,
    _branch,
)


@st.composite
def models(draw: st.DrawFn, steps_max: int = 10) -> str:
    """ONNX text of a valid model with input `x` (N, 3, 6, 6) and one to three outputs, opset 20."""
    sketch = Sketch(draw)
    for _ in range(draw(st.integers(1, steps_max))):
        step = draw(st.sampled_from(_STEPS))
        needs_image = step in (_conv, _pad_or_pool, _per_channel)
        if not needs_image or any(len(shape) == 3 for shape in sketch.values.values()):
            step(sketch)
    made = [name for name in sketch.values if name != "x"] or [sketch.add("Relu(x)", (3, 6, 6))]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    declared = ", ".join(f"float[N,{','.join(map(str, sketch.values[name]))}] {name}" for name in outputs)
    constants = ", ".join(text.replace("NAME", name) for name, text in sketch.constants.items())
    body = "\n  ".join(sketch.lines)
    header = '<ir_version: 10, opset_import: ["": 20]>'
    return f"{header}\ng (float[N,3,6,6] x) => ({declared})\n<{constants}>\n{{\n  {body}\n}}"
