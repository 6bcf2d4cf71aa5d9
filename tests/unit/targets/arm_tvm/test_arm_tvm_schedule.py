import pytest
from arm_tvm_models import make
from onnx import helper

pytestmark = pytest.mark.needs_tvm


def scheduled(nodes, inputs, outputs) -> str:
    from tvm.relax.transform import LegalizeOps

    from targets.arm_tvm.graph.lower import import_relax
    from targets.arm_tvm.graph.tvm_kernels import parallelize

    return parallelize(LegalizeOps()(import_relax(make(nodes, inputs, outputs)))).script()


@pytest.mark.parametrize(("size", "parallel_loops"), [(8, 0), (256, 1)])
def test_only_large_kernels_are_spread_over_threads(size, parallel_loops):
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    text = scheduled(nodes, {"x": (size, size)}, {"y": (size, size)})
    assert text.count("T.parallel(") == parallel_loops


def test_reduction_loops_are_never_spread():
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)]
    assert "T.parallel(" not in scheduled(nodes, {"x": (256, 256)}, {"y": ()})
