"""Products of two computed matrices: the kernel against NumPy, and what of a graph becomes one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from arm_tvm_models import make
from onnx import helper

from targets.arm_tvm.graph.rowwise import PlainKernel, find_plain_kernels
from targets.arm_tvm.kernels.floating_point.matmul import Matmul, emit_matmul, vectors_for
from targets.arm_tvm.kernels.machine import Machine

pytestmark = pytest.mark.needs_tvm
pytest.importorskip("tvm")

NEON = Machine()
AVX512 = Machine(vector_bits=512, by_element=False, pairs=False)


@pytest.mark.parametrize("machine", [NEON, AVX512])
@pytest.mark.parametrize("sizes", [(2, 5, 7, 35), (1, 1, 32, 32), (3, 9, 3, 40)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_products_equal_numpy_for_any_rest(machine: Machine, sizes: tuple[int, ...], dtype: str) -> None:
    import tvm

    batch, rows, depth, columns = sizes
    work = Matmul(*sizes, dtype, ("multiply(x,0.5)",))
    assert vectors_for(work, machine) == machine
    rng = np.random.default_rng(rows)
    left, right = (rng.normal(size=size).astype(dtype) for size in ((batch, rows, depth), (batch, depth, columns)))
    module = tvm.IRModule({"kernel": emit_matmul(work, machine).with_attr("global_symbol", "kernel")})
    tensors = [tvm.runtime.tensor(one) for one in (left, right, np.zeros((batch, rows, columns), dtype))]
    tvm.compile(module, target="llvm")["kernel"](*tensors)
    expected = left.astype(np.float64) @ right.astype(np.float64) / 2
    np.testing.assert_allclose(tensors[-1].numpy(), expected, rtol=0, atol=2e-5 if dtype == "float32" else 2e-2)


def test_results_narrower_than_a_vector_are_declined() -> None:
    assert vectors_for(Matmul(1, 8, 8, 3, "float32"), NEON) is None


def test_results_narrower_than_the_widest_vectors_take_narrower_ones() -> None:
    wide = Machine(vector_bits=512, by_element=False, pairs=False)
    narrower = vectors_for(Matmul(1, 8, 8, 15, "float32"), wide)
    assert narrower is not None and narrower.lanes("float32") == 8
    assert vectors_for(Matmul(1, 8, 8, 3, "float32"), wide) is None


def _kernels(
    nodes: list[Any], inputs: dict[str, tuple[int, ...]], result: tuple[int, ...], *, opset: int = 20
) -> list[PlainKernel]:
    from targets.arm_tvm.graph.lower import import_relax

    weights = {"two": np.array(2.0), "little": np.array(0.25), "scale": np.ones(8), "shift": np.ones(8)}
    main = import_relax(make(nodes, inputs, {"y": result}, weights, opset=opset))["main"]
    return list(find_plain_kernels(main, NEON, claimed=()).values())


MATMUL = helper.make_node("MatMul", ["a", "b"], ["c"])


def test_product_takes_the_division_behind_it() -> None:
    nodes = [MATMUL, helper.make_node("Div", ["c", "two"], ["y"])]
    (found,) = _kernels(nodes, {"a": (2, 3, 4, 5), "b": (2, 3, 5, 6)}, (2, 3, 4, 6))
    assert found.shape == (6, 4, 6)
    assert "multiply(x,0.5)" in found.name


def test_product_that_broadcasts_is_left_alone() -> None:
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    assert _kernels([node], {"a": (2, 4, 5), "b": (5, 6)}, (2, 4, 6)) == []


@pytest.mark.parametrize("axis", [-1, 2, 1])
def test_softmax_is_a_kernel_of_rows_whatever_its_axis(axis: int) -> None:
    node = helper.make_node("Softmax", ["a"], ["y"], axis=axis)
    assert len(_kernels([node], {"a": (2, 3, 8)}, (2, 3, 8))) == 1


@pytest.mark.parametrize(("axis", "shape", "count"), [(-1, (2, 3, 8), 1), (2, (2, 3, 8), 1)])
def test_layer_norm_is_a_kernel_of_rows(axis: int, shape: tuple[int, ...], count: int) -> None:
    node = helper.make_node("LayerNormalization", ["a", "scale", "shift"], ["y"], axis=axis)
    assert len(_kernels([node], {"a": shape}, shape)) == count


def _written_out(*, power: bool) -> list[Any]:
    square = helper.make_node("Pow", ["d", "two"], ["q"]) if power else helper.make_node("Mul", ["d", "d"], ["q"])
    return [
        helper.make_node("ReduceMean", ["a"], ["m"], axes=[-1]),
        helper.make_node("Sub", ["a", "m"], ["d"]),
        square,
        helper.make_node("ReduceMean", ["q"], ["v"], axes=[-1]),
        helper.make_node("Add", ["v", "little"], ["w"]),
        helper.make_node("Sqrt", ["w"], ["r"]),
        helper.make_node("Div", ["d", "r"], ["n"]),
        helper.make_node("Mul", ["n", "scale"], ["s"]),
        helper.make_node("Add", ["s", "shift"], ["y"]),
    ]


@pytest.mark.parametrize("power", [True, False])
def test_layer_norm_of_an_old_opset_is_one_kernel_of_rows(power: bool) -> None:
    (kernel,) = _kernels(_written_out(power=power), {"a": (2, 3, 8)}, (2, 3, 8), opset=14)
    assert kernel.name.startswith("layernorm_0.25")
    assert kernel.shape == (6, 8)


@pytest.mark.parametrize(("index", "other"), [(1, ["m", "a"]), (4, ["v", "scale"]), (6, ["a", "r"]), (7, ["n", "a"])])
def test_what_is_nearly_a_layer_norm_is_left_alone(index: int, other: list[str]) -> None:
    nodes = _written_out(power=True)
    nodes[index].input[:] = other
    assert _kernels(nodes, {"a": (2, 3, 8)}, (2, 3, 8), opset=14) == []
