"""Which models are shown to compute each sample by itself, so that a batch may be divided."""

from __future__ import annotations

import numpy as np
import pytest
from arm_tvm_models import make
from onnx import helper

from compiler.errors import UnsupportedModel
from compiler.fleet import Range
from targets.arm_tvm.graph.capability import capability_of
from targets.arm_tvm.graph.place_rules import Places
from targets.arm_tvm.graph.places import places_of, why_mixed
from targets.arm_tvm.graph.sizes import MOST_SIZES, bind_size, plan_sizes

W = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)


def reason(nodes, shape, result, weights=None) -> str:
    """Why places of N in x are mixed on the way to y."""
    model = make(nodes, {"x": shape}, {"y": result}, weights)
    first, second = (bind_size(model, "N", size) for size in (4, 3))
    return why_mixed(model, first, second, "N", (4, 3))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def node(op: str, *inputs: str, **attributes: object):
    return helper.make_node(op, ["x", *inputs], ["y"], name="n", **attributes)


APART = {
    "relu": ([node("Relu")], ("N", 6), ("N", 6), None),
    "product": ([node("MatMul", "w")], ("N", 5, 6), ("N", 5, 6), {"w": W}),
    "product of the other side": ([helper.make_node("MatMul", ["w", "x"], ["y"])], (6, "N"), (6, "N"), {"w": W}),
    "softmax of the other axis": ([node("Softmax", axis=1)], ("N", 6), ("N", 6), None),
    "mean of the other axes": ([node("ReduceMean", "a", keepdims=0)], (3, "N", 6), ("N",), {"a": ints(0, 2)}),
    "rows of all": (
        [helper.make_node("Reshape", ["x", "s"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])],
        *(("N", 5, 6), ("M", 6), {"s": ints(-1, 6), "w": W}),
    ),
    "transposed": ([node("Transpose", perm=[1, 0])], ("N", 6), (6, "N"), None),
    "attention": (
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["x", "t"], ["p"]),
            helper.make_node("Softmax", ["p"], ["s"], axis=-1),
            helper.make_node("MatMul", ["s", "x"], ["y"]),
        ],
        *(("N", 5, 6), ("N", 5, 6), None),
    ),
    "a shape of its own": (
        [
            helper.make_node("Shape", ["x"], ["s"], start=0, end=1),
            helper.make_node("Concat", ["s", "rest"], ["shape"], axis=0),
            helper.make_node("Reshape", ["x", "shape"], ["y"]),
        ],
        *(("N", 2, 3), ("N", 6), {"rest": ints(6)}),
    ),
    "constants for all": ([node("Add", "c")], ("N", 6), ("N", 6), {"c": W[:1]}),
    "joined channels": ([node("Concat", "x", axis=1)], ("N", 6), ("N", 12), None),
}
MIXED = {
    "softmax of the axis": ([node("Softmax", axis=0)], ("N", 6), ("N", 6), None),
    "mean of the axis": ([node("ReduceMean", "a", keepdims=1)], ("N", 6), (1, 6), {"a": ints(0)}),
    "centred by the mean of all": (
        [helper.make_node("ReduceMean", ["x", "a"], ["m"], keepdims=1), helper.make_node("Sub", ["x", "m"], ["y"])],
        *(("N", 6), ("N", 6), {"a": ints(0)}),
    ),
    "all summed": ([node("ReduceSum", keepdims=0)], ("N", 6), (), None),
    "cumulated": ([node("CumSum", "a")], ("N", 6), ("N", 6), {"a": np.array(0)}),
    "joined along the axis": ([node("Concat", "x", axis=0)], ("N", 6), ("M", 6), None),
    "cut out": ([node("Slice", "s", "e", "a")], ("N", 6), (1, 6), {"s": ints(0), "e": ints(1), "a": ints(0)}),
    "moved across": ([node("Reshape", "s")], ("N", 2, 3), (2, "M"), {"s": ints(2, -1)}),
    "of both operands": (
        [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])],
        *(("N", 6), ("N", "N"), None),
    ),
    "summed product": (
        [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("MatMul", ["t", "x"], ["y"])],
        *(("N", 6), (6, 6), None),
    ),
    "width of a convolution": (
        [node("Conv", "w", pads=[1] * 4)],
        (1, 2, 6, "N"),
        (1, 4, 6, "N"),
        {"w": np.ones((4, 2, 3, 3))},
    ),
    "padded": ([node("Pad", "p")], ("N", 6), ("M", 6), {"p": ints(1, 0, 0, 0)}),
    "divided by the number": (
        [
            helper.make_node("Shape", ["x"], ["s"], start=0, end=1),
            helper.make_node("Cast", ["s"], ["n"], to=1),
            helper.make_node("Div", ["x", "n"], ["y"]),
        ],
        *(("N", 6), ("N", 6), None),
    ),
    "an operator without a rule": ([node("Einsum", equation="ab->ab")], ("N", 6), ("N", 6), None),
}


@pytest.mark.parametrize("name", APART)
def test_places_that_are_computed_apart_are_shown_to_be(name: str) -> None:
    assert reason(*APART[name]) == ""


@pytest.mark.parametrize("name", MIXED)
def test_places_that_may_be_mixed_are_named_with_the_node(name: str) -> None:
    assert "'N'" in reason(*MIXED[name])


def test_places_are_where_shapes_differ_as_the_sizes_do() -> None:
    assert places_of((3, 8, 5), (3, 6, 5), (4, 3)) == Places(1, 2)
    assert places_of((3, 5), (3, 5), (4, 3)) is None
    with pytest.raises(ValueError, match="not one axis"):
        places_of((4, 4), (3, 3), (4, 3))


def test_a_branch_is_not_divided() -> None:
    nodes = [node("Relu")]
    model = make(nodes, {"x": ("N", 6)}, {"y": ("N", 6)})
    bound = [bind_size(model, "N", size) for size in (4, 3)]
    loop = make(
        [helper.make_node("If", ["c"], ["y"], name="b", **_branches())], {"c": ()}, {"y": (1,)}, dtypes={"c": 9}
    )
    assert why_mixed(loop, *bound, "N", (4, 3)) == "If 'b' may take another way at another size"


def _branches() -> dict[str, object]:
    value = helper.make_tensor_value_info("y", 1, (1,))
    constant = helper.make_node("Constant", [], ["y"], value_floats=[1.0])
    graph = helper.make_graph([constant], "branch", [], [value])
    return {"then_branch": graph, "else_branch": graph}


def planned(nodes, sizes: Range):
    model = make(nodes, {"x": ("N", 6)}, {"y": ("N", 6)}, {"a": np.array(0)})
    return plan_sizes(model, {"N": sizes}, capability_of("sdot"))


@pytest.mark.parametrize(
    ("sizes", "built"),
    [
        (Range(1, 8, 32), (1, 4, 8)),
        (Range(1, 1, 32), (1, 2)),
        (Range(3, 20, 20), (1, 4, 16, 20)),
        (Range(1, 2, 2), (1, 2)),
    ],
)
def test_a_batch_is_built_at_powers_of_four_below_the_best_and_at_that(sizes: Range, built: tuple[int, ...]) -> None:
    found = planned([node("Relu")], sizes)
    assert found is not None
    assert (found.built, found.best, found.divides) == (built, max(sizes.opt, 1), True)


def test_every_size_is_built_of_what_cannot_be_divided() -> None:
    found = planned([node("Softmax", axis=0)], Range(3, 4, 6))
    assert found is not None
    assert (found.built, found.divides) == ((3, 4, 5, 6), False)


def test_more_sizes_than_can_be_built_are_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedModel) as refused:
        planned([node("Softmax", axis=0)], Range(1, 2, MOST_SIZES + 1))
    assert "33 sizes of 'N', 1 to 33, and builds 32 at most" in refused.value.what
    assert "Softmax 'n' mixes places of 'N'" in refused.value.what


def test_operators_are_refused_as_they_are_at_fixed_sizes() -> None:
    with pytest.raises(UnsupportedModel, match="refuses 1 of 1 nodes"):
        planned([node("Celu")], Range(1, 2, 3))
