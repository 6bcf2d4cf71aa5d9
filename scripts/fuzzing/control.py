"""If, Loop and Scan, whose bodies read values of the graph around them."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, helper

from fuzzing.sketch import Array, Sketch


def _body(name: str, nodes: list[object], inputs: dict[str, Array | None], outputs: dict[str, Array]) -> GraphProto:
    def declared(values: dict[str, Array]) -> list[object]:
        return [
            helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for key, array in values.items()
        ]

    return helper.make_graph(nodes, name, declared(inputs), declared(outputs))


def branch(sketch: Sketch) -> None:
    """If on a constant, on a value, or on what a shape decides."""
    source = sketch.value(least=1)
    array = sketch.of(source)
    how = sketch.choice("constant", "input", "shape")
    if how == "shape":
        condition = _condition_of_shape(sketch, source)
    elif how == "input":
        condition = [sketch.input(np.array(sketch.chance(50)))]
    else:
        condition = [sketch.constant(np.array(sketch.chance(50)))]
    if not condition:
        return
    place = f"b{len(sketch.values)}"
    operators = [sketch.choice("Neg", "Relu", "Identity", "Abs") for _ in range(2)]
    bodies = [
        _body(
            f"{place}_{side}",
            [helper.make_node(operator, [source], [f"{place}_{side}_y"])],
            {},
            {f"{place}_{side}_y": array},
        )
        for side, operator in zip(("then", "else"), operators, strict=True)
    ]
    sketch.node("If", condition, then_branch=bodies[0], else_branch=bodies[1])


def _condition_of_shape(sketch: Sketch, source: str) -> list[str]:
    shape = sketch.node("Shape", [source])
    size = shape and sketch.node("Gather", [*shape, sketch.constant(np.array(0))])
    return size and sketch.node("Equal", [*size, sketch.constant(np.array(sketch.integer(1, 3)))])


def loop(sketch: Sketch) -> None:
    """Loop with a constant trip count, one carried value and perhaps one collected output."""
    if sketch.opset < 11:
        return
    state = sketch.value(least=1)
    array = sketch.of(state)
    place = f"l{len(sketch.values)}"
    step = sketch.weight(array.shape)
    nodes = [
        helper.make_node("Identity", [f"{place}_go"], [f"{place}_on"]),
        helper.make_node(sketch.choice("Add", "Mul", "Sub"), [f"{place}_s", step], [f"{place}_t"]),
        helper.make_node("Tanh", [f"{place}_t"], [f"{place}_n"]),
        helper.make_node("Relu", [f"{place}_n"], [f"{place}_c"]),
    ]
    flag = np.array(True)
    takes = {f"{place}_i": np.array(0), f"{place}_go": flag, f"{place}_s": array}
    gives = {f"{place}_on": flag, f"{place}_n": array, f"{place}_c": array}
    trips = sketch.constant(np.array(sketch.integer(1, 3)))
    sketch.node("Loop", [trips, sketch.constant(flag), state], 2, body=_body(place, nodes, takes, gives))


def scan(sketch: Sketch) -> None:
    """Scan over the first axis, forwards or backwards."""
    if sketch.opset < 11:
        return
    source = sketch.value(least=2)
    row = sketch.of(source)[0]
    place = f"s{len(sketch.values)}"
    nodes = [
        helper.make_node("Add", [f"{place}_s", f"{place}_x"], [f"{place}_n"]),
        helper.make_node(sketch.choice("Tanh", "Neg"), [f"{place}_n"], [f"{place}_y"]),
    ]
    body = _body(place, nodes, {f"{place}_s": row, f"{place}_x": row}, {f"{place}_n": row, f"{place}_y": row})
    reverse = [sketch.integer(0, 1)]
    sketch.node(
        "Scan", [sketch.weight(row.shape), source], 2, body=body, num_scan_inputs=1, scan_input_directions=reverse
    )


STEPS = (branch, branch, loop, scan)
