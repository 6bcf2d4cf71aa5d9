"""Random networks whose channels are tied in random ways, as ONNX text."""

from __future__ import annotations

from collections.abc import Callable

from graphs import Sketch
from hypothesis import strategies as st


def _source(sketch: Sketch) -> str:
    return sketch.pick(3)


def _weighted(sketch: Sketch, name: str, out: int, groups: int, kernel: int = 1) -> str:
    channels, height, width = sketch.values[name]
    weight = sketch.constant((out, channels // groups, kernel, kernel))
    bias = f", {sketch.constant((out,))}" if sketch.draw(st.booleans()) else ""
    pad = kernel // 2
    attributes = f"<group={groups}, pads=[{pad},{pad},{pad},{pad}]>"
    return sketch.add(f"Conv{attributes}({name}, {weight}{bias})", (out, height, width))


def conv(sketch: Sketch) -> None:
    _weighted(sketch, _source(sketch), sketch.draw(st.sampled_from([4, 6])), 1, sketch.draw(st.sampled_from([1, 3])))


def depthwise(sketch: Sketch) -> None:
    name = _source(sketch)
    channels = sketch.values[name][0]
    _weighted(sketch, name, channels * sketch.draw(st.sampled_from([1, 2])), channels, 3)


def grouped(sketch: Sketch) -> None:
    name = _source(sketch)
    if sketch.values[name][0] % 2 == 0:
        _weighted(sketch, name, 4, 2)


def activation(sketch: Sketch) -> None:
    name = sketch.pick()
    operator = sketch.draw(st.sampled_from(["Relu", "Sigmoid", "Tanh", "HardSwish", "Exp", "Softmax<axis=1>"]))
    bound = f"Tanh({name})" if operator == "Exp" else name
    sketch.add(f"{operator}({sketch.side(bound) if bound != name else name})", sketch.values[name])


def normalization(sketch: Sketch) -> None:
    name = _source(sketch)
    count = sketch.values[name][0]
    parts = [sketch.constant((count,)) for _ in range(3)]
    variance = sketch.constant((count,), numbers=[0.5 + index for index in range(count)])
    operator = sketch.draw(st.sampled_from(["BatchNormalization", "InstanceNormalization"]))
    operands = f"{parts[0]}, {parts[1]}" + (f", {parts[2]}, {variance}" if operator[0] == "B" else "")
    sketch.add(f"{operator}({name}, {operands})", sketch.values[name])


def join(sketch: Sketch) -> None:
    left = sketch.pick()
    equal = [name for name, shape in sketch.values.items() if shape == sketch.values[left]]
    operator = sketch.draw(st.sampled_from(["Add", "Mul", "Max", "Sub"]))
    sketch.add(f"{operator}({left}, {sketch.draw(st.sampled_from(equal))})", sketch.values[left])


def scale(sketch: Sketch) -> None:
    name = _source(sketch)
    count = sketch.values[name][0]
    shape = sketch.draw(st.sampled_from([(count, 1, 1), (1, count, 1, 1), (1,), (1, 1)]))
    sketch.add(f"{sketch.draw(st.sampled_from(['Add', 'Mul']))}({name}, {sketch.constant(shape)})", sketch.values[name])


def gate(sketch: Sketch) -> None:
    name = _source(sketch)
    channels, height, width = sketch.values[name]
    pooled = sketch.side(f"GlobalAveragePool({name})")
    sketch.values[pooled] = (channels, 1, 1)
    squeezed = _weighted(sketch, pooled, 2, 1)
    gated = sketch.side(f"Sigmoid({_weighted(sketch, squeezed, channels, 1)})")
    sketch.add(f"Mul({name}, {gated})", (channels, height, width))


def concat(sketch: Sketch) -> None:
    first = _source(sketch)
    channels, height, width = sketch.values[first]
    fitting = [name for name, shape in sketch.values.items() if len(shape) == 3 and shape[1:] == (height, width)]
    second = sketch.draw(st.sampled_from(fitting))
    sketch.add(f"Concat<axis=1>({first}, {second})", (channels + sketch.values[second][0], height, width))


def split(sketch: Sketch) -> None:
    name = _source(sketch)
    channels, height, width = sketch.values[name]
    if channels < 3:
        return
    sizes = sketch.constant((2,), "int64", [2, channels - 2])
    first, second = f"{sketch.name()}a", f"{sketch.name()}b"
    sketch.lines.append(f"[n{sketch.count}] {first}, {second} = Split<axis=1>({name}, {sizes})")
    sketch.values[first], sketch.values[second] = (2, height, width), (channels - 2, height, width)


def crop(sketch: Sketch) -> None:
    name = _source(sketch)
    channels, height, width = sketch.values[name]
    if channels > 2:
        ends = [sketch.constant((1,), "int64", [number]) for number in (1, channels, 1)]
        sketch.add(f"Slice({name}, {', '.join(ends)})", (channels - 1, height, width))


def widen(sketch: Sketch) -> None:
    name = _source(sketch)
    channels, height, width = sketch.values[name]
    before, after = sketch.draw(st.sampled_from([(0, 2), (1, 1), (0, channels)]))
    pads = sketch.constant((8,), "int64", [0, before, 0, 0, 0, after, 0, 0])
    sketch.add(f"Pad({name}, {pads})", (channels + before + after, height, width))


def pool(sketch: Sketch) -> None:
    name = _source(sketch)
    channels, height, width = sketch.values[name]
    if min(height, width) > 1:
        operator = sketch.draw(st.sampled_from(["MaxPool", "AveragePool"]))
        sketch.add(f"{operator}<kernel_shape=[2,2]>({name})", (channels, height - 1, width - 1))


def shuffle(sketch: Sketch) -> None:
    name = _source(sketch)
    channels, height, width = sketch.values[name]
    if channels % 2:
        return
    opened = sketch.constant((5,), "int64", [-1, 2, channels // 2, height, width])
    closed = sketch.constant((4,), "int64", [0, channels, height, width])
    turned = sketch.side(f"Transpose<perm=[0,2,1,3,4]>({sketch.side(f'Reshape({name}, {opened})')})")
    sketch.add(f"Reshape({turned}, {closed})", (channels, height, width))


def dense(sketch: Sketch) -> None:
    name = sketch.pick()
    shape = sketch.values[name]
    size = 1
    for length in shape:
        size *= length
    flat = name if len(shape) == 1 else sketch.side(f"Flatten({name})")
    bias = sketch.constant((4,))
    if sketch.draw(st.booleans()):
        sketch.add(f"Gemm<transB=1>({flat}, {sketch.constant((4, size))}, {bias})", (4,))
    else:
        sketch.add(f"Add({sketch.side(f'MatMul({flat}, {sketch.constant((size, 4))})')}, {bias})", (4,))


STEPS: tuple[Callable[[Sketch], None], ...] = (
    conv, conv, depthwise, grouped, activation, normalization, join, join, scale, gate, concat, split, crop, widen,
    pool, shuffle, dense,
)  # fmt: skip


@st.composite
def networks(draw: st.DrawFn) -> str:
    """ONNX text of a network with input `x` (N, 3, 6, 6) whose first layer has channels to cut, opset 20."""
    sketch = Sketch(draw)
    conv(sketch)
    for _ in range(draw(st.integers(1, 10))):
        draw(st.sampled_from(STEPS))(sketch)
    last = list(sketch.values)[-1]
    outputs = [sketch.add(f"Identity({_head(sketch, last)})", sketch.values[last])]
    declared = ", ".join(f"float[N,{','.join(map(str, sketch.values[name]))}] {name}" for name in outputs)
    constants = ", ".join(text.replace("NAME", name) for name, text in sketch.constants.items())
    body = "\n  ".join(sketch.lines)
    header = '<ir_version: 10, opset_import: ["": 20]>'
    return f"{header}\ng (float[N,3,6,6] x) => ({declared})\n<{constants}>\n{{\n  {body}\n}}"


def _head(sketch: Sketch, name: str) -> str:
    """A last layer, whose own channels are the model's output and stay."""
    if len(sketch.values[name]) != 3:
        return name
    made = _weighted(sketch, name, 3, 1)
    sketch.values[name] = sketch.values[made]
    return made
