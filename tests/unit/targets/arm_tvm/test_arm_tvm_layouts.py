"""Whole graphs whose values stay in blocks of channels, or in rows, from kernel to kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from arm_tvm_models import make, needs_aarch64, reference
from onnx import helper

from compiler.fleet.profile import HardwareProfile
from compiler.model.numerics import TOLERANCES, compare_all
from compiler.passes.pipelines import precision_passes
from compiler.passes.run import run_passes
from compiler.target import TargetPlan
from targets.arm_tvm import TARGET, Options
from targets.arm_tvm.kernels.machine import Machine

pytestmark = pytest.mark.needs_tvm
pytest.importorskip("tvm")

PI5 = Options("aarch64-linux-gnu", "cortex-a76", ("+neon", "+fullfp16", "+dotprod"))
emulated = [pytest.mark.needs_emulator, needs_aarch64]
node = helper.make_node


def _mixed() -> ir.Model:
    """What detection networks are made of: split, resized and joined channels, groups, gates, a ragged last product."""
    rng = np.random.default_rng(5)
    weights = {
        "first": rng.normal(size=(32, 3, 3, 3)) / 5,
        "grouped": rng.normal(size=(32, 16, 3, 3)) / 12,
        "small": rng.normal(size=(16, 16, 1, 1)) / 4,
        "gate": rng.normal(size=(32, 32, 1, 1)) / 6,
        "last": rng.normal(size=(16, 5)) / 4,
        "twice": np.array([1, 1, 2, 2], np.float32),
    }
    integers = {"first_half": [0], "half": [16], "channels": [1], "one": [1]}
    weights |= {name: np.array(values, np.int64) for name, values in integers.items()}
    nodes = [
        node("Conv", ["x", "first"], ["a"], strides=[2, 2], auto_pad="SAME_UPPER"),
        node("HardSwish", ["a"], ["b"]),
        node("Split", ["b"], ["c", "d"], axis=1, num_outputs=2),
        node("Conv", ["c", "small"], ["e"], strides=[2, 2]),
        node("Resize", ["e", "", "twice"], ["f"], mode="nearest", coordinate_transformation_mode="asymmetric"),
        node("Concat", ["f", "d"], ["g"], axis=1),
        node("Conv", ["g", "grouped"], ["h"], group=2, pads=[1] * 4),
        node("Gelu", ["h"], ["i"]),
        node("GlobalAveragePool", ["i"], ["j"]),
        node("Conv", ["j", "gate"], ["k"]),
        node("Sigmoid", ["k"], ["l"]),
        node("Mul", ["i", "l"], ["m"]),
        node("Slice", ["m", "first_half", "half", "channels", "one"], ["n"]),
        node("GlobalAveragePool", ["n"], ["o"]),
        node("Flatten", ["o"], ["p"]),
        node("Gemm", ["p", "last"], ["q"]),
        node("Softmax", ["q"], ["y"], axis=-1),
    ]
    return make(nodes, {"x": (1, 3, 15, 16)}, {"y": (1, 5)}, weights)


def _attention() -> ir.Model:
    """One block of a transformer of width 24 with 3 heads, 9 tokens."""
    rng = np.random.default_rng(6)
    weights = {name: rng.normal(size=(24, 24)) / 5 for name in ("q", "k", "v", "o")}
    weights |= {"scale": rng.normal(size=24), "shift": rng.normal(size=24), "root": np.array(8**0.5)}
    weights |= {"heads": np.array([1, 9, 3, 8]), "joined": np.array([1, 9, 24])}
    nodes = [node("LayerNormalization", ["x", "scale", "shift"], ["n"], axis=-1, epsilon=1e-5)]
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", ["n", name], [f"{name}1"]),
            node("Reshape", [f"{name}1", "heads"], [f"{name}2"]),
            node("Transpose", [f"{name}2"], [f"{name}3"], perm=order),
        ]
    nodes += [
        node("MatMul", ["q3", "k3"], ["s"]),
        node("Div", ["s", "root"], ["t"]),
        node("Softmax", ["t"], ["u"], axis=-1),
        node("MatMul", ["u", "v3"], ["w"]),
        node("Transpose", ["w"], ["w1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["w1", "joined"], ["w2"]),
        node("MatMul", ["w2", "o"], ["w3"]),
        node("Add", ["w3", "x"], ["y"]),
    ]
    return make(nodes, {"x": (1, 9, 24)}, {"y": (1, 9, 24)}, weights)


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        pytest.param(PI5, "fp32", marks=emulated, id="aarch64-fp32"),
        pytest.param(PI5, "fp16", marks=emulated, id="aarch64-fp16"),
    ],
)
@pytest.mark.parametrize("model", [_mixed(), _attention()], ids=["mixed", "attention"])
def test_graph_computes_what_the_reference_computes(
    model: ir.Model, options: Options, precision: str, tmp_path: Path, cache_dir: Path, pi5: HardwareProfile
) -> None:
    (shape,) = (tuple(value.shape.numpy()) for value in model.graph.inputs if value.shape is not None)
    given = {"x": np.random.default_rng(4).normal(size=shape).astype(np.float32)}
    expected = reference(model, given)
    converted = model.clone()
    run_passes(converted, precision_passes(precision))
    artifact = TARGET.build(converted, TargetPlan(precision, options, cache_dir=cache_dir), pi5, workdir=tmp_path / "o")
    (stats,) = compare_all(expected, TARGET.load(artifact).run(given)).values()
    assert TOLERANCES[precision].accepts(stats)


def _packed(model: ir.Model) -> Any:
    from targets.arm_tvm.graph.fold_constants import fold_constants
    from targets.arm_tvm.graph.lower import import_relax
    from targets.arm_tvm.graph.packing import pack_graph

    return pack_graph(fold_constants(import_relax(model)), Machine(), schedule={})["main"].script()


def test_split_resized_joined_and_sliced_channels_stay_packed() -> None:
    text = _packed(_mixed())
    assert "unpack" not in text
    assert "conv2d(" not in text


def test_attention_is_made_of_our_kernels() -> None:
    text = _packed(_attention())
    assert not any(f"R.{name}(" in text for name in ("matmul", "nn.softmax", "nn.layer_norm", "divide"))


@pytest.mark.parametrize(("first", "size"), [(2, 8), (0, 6)])
def test_channels_cut_inside_a_block_are_unpacked(first: int, size: int) -> None:
    weights = {"w": np.ones((16, 16, 1, 1)), "v": np.ones((4, size, 1, 1))}
    weights |= {"first": np.array([first]), "last": np.array([first + size]), "axis": np.array([1])}
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Slice", ["a", "first", "last", "axis"], ["b"]),
        node("Conv", ["b", "v"], ["y"]),
    ]
    assert "unpack" in _packed(make(nodes, {"x": (1, 16, 4, 4)}, {"y": (1, 4, 4, 4)}, weights))


def test_a_reshaped_constant_is_folded_as_tvm_folds_it_and_not_compiled_for_it() -> None:
    import tvm
    from tvm import relax

    from targets.arm_tvm.graph.fold_constants import _reshaper, fold_constants
    from targets.arm_tvm.graph.lower import import_relax

    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"])]
    weights = {"w": np.ones((8, 4, 3, 3), np.float32), "b": np.arange(8, dtype=np.float32)}
    module = import_relax(make(nodes, {"x": (1, 4, 8, 8)}, {"y": (1, 8, 6, 6)}, weights))
    assert "reshape" in module["main"].script()
    assert "reshape" not in str(_reshaper()(module).visit_expr(module["main"]).script())
    assert tvm.ir.save_json(fold_constants(module)) == tvm.ir.save_json(relax.transform.FoldConstant()(module))
