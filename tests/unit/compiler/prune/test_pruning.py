"""Pruning as a whole: redundant channels go first and are made up for, limits and warnings hold."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from compiler.graph import check_model
from compiler.numerics import Arrays
from compiler.passes.infer_shapes import INFER_SHAPES
from compiler.passes.probe import run_unoptimized
from compiler.prune import Unprunable, find_order, prune

HEADER = '<ir_version: 10, opset_import: ["": 20]>'


def network(channels: int = 16) -> ir.Model:
    """Two convolutions and a relu; the last four inner channels are sums of two others, so nothing needs them."""
    random = np.random.default_rng(0)
    first = random.standard_normal((channels, 3, 3, 3)).astype(np.float32)
    first[-4:] = first[:4]
    model = ir.from_onnx_text(
        f"""{HEADER}
        g (float[N,3,8,8] x) => (float[N,4,8,8] y) {{
          s = Conv<pads=[1,1,1,1]>(x, a, b) r = Relu(s) y = Conv<pads=[1,1,1,1]>(r, c, d) }}""".replace(
            "g (float[N,3,8,8] x)",
            f"g (float[N,3,8,8] x, float[{channels},3,3,3] a, float[{channels}] b, "
            f"float[4,{channels},3,3] c, float[4] d)",
        )
    )
    shapes = {"b": (channels,), "c": (4, channels, 3, 3), "d": (4,)}
    arrays = {"a": first} | {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["b"][-4:] = arrays["b"][:4]
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(arrays[str(value.name)], name=value.name)
        model.graph.register_initializer(value)
    INFER_SHAPES(model)
    return model


def batches(count: int = 30) -> Iterator[Arrays]:
    random = np.random.default_rng(5)
    for _ in range(count):
        yield {"x": random.standard_normal((4, 3, 8, 8)).astype(np.float32)}


def test_channels_that_others_repeat_go_first_and_nothing_is_lost() -> None:
    model = network()
    pruned = prune(model, find_order(model, batches), batches, ratio=0.25, multiple=4)
    check_model(pruned.model)
    assert [(group.channels, group.kept) for group in pruned.plan.groups] == [(16, 12)]
    inputs = {"x": np.random.default_rng(9).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    wanted, found = run_unoptimized(model, inputs)["y"], run_unoptimized(pruned.model, inputs)["y"]
    assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)


def test_repair_leaves_less_error_than_the_cut_made() -> None:
    model = network()
    pruned = prune(model, find_order(model, batches), batches, ratio=0.5, multiple=4)
    assert all(one.after < one.before for one in pruned.repaired)
    assert pruned.plan.ratio == pytest.approx(0.5, abs=0.01)


def test_more_than_there_is_to_cut_is_said() -> None:
    model = network()
    pruned = prune(model, find_order(model, batches), batches, ratio=0.99, multiple=8)
    assert any("99% were asked for" in warning for warning in pruned.warnings)
    assert pruned.plan.groups[0].kept == 8


def test_too_few_samples_are_said() -> None:
    model = network()

    def few() -> Iterator[Arrays]:
        return ({"x": batch["x"][:1]} for batch in batches(2))

    pruned = prune(model, find_order(model, few), few, ratio=0.25, multiple=4)
    assert any("too few calibration samples" in warning for warning in pruned.warnings)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y = Relu(x)", "nothing multiplies"),
        ("q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)", "quantized already"),
    ],
)
def test_models_that_are_not_pruned_say_why(body: str, message: str) -> None:
    text = f"{HEADER}\ng (float[N,3,8,8] x) => (float[N,3,8,8] y)\n<float s = {{0.5}}>\n{{ {body} }}"
    model = ir.from_onnx_text(text)
    INFER_SHAPES(model)
    with pytest.raises(Unprunable, match=message):
        find_order(model, batches)
