"""Pruning as a whole: redundant channels go first and are made up for, limits and warnings hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import onnx_ir as ir
import pytest

from compiler.compress.prune import Unprunable, find_order, prune
from compiler.compress.prune.costs import Costs
from compiler.compress.prune.gains import error_gains
from compiler.compress.prune.groups import find_ties
from compiler.compress.prune.importance import Measure
from compiler.compress.prune.prepare import prepare
from compiler.compress.prune.repair import by_depth
from compiler.compress.prune.rows import layer_of
from compiler.compress.prune.views import with_mirrors
from compiler.model.graph import check_model
from compiler.model.numerics import Arrays
from compiler.passes.infer_shapes import INFER_SHAPES
from compiler.passes.probe import run_unoptimized

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


def with_weights(text: str) -> ir.Model:
    """A model whose inputs but the first are weights of random numbers."""
    model = ir.from_onnx_text(text)
    random = np.random.default_rng(0)
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        array = random.standard_normal([int(size) for size in value.shape or ()]).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
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


@pytest.mark.parametrize("measure", get_args(Measure))
def test_channels_that_carry_nothing_go_first_by_every_measure(measure: Measure) -> None:
    model = network()
    for name, axis in (("a", 0), ("b", 0), ("c", 1)):
        value = model.graph.initializers[name]
        array = np.moveaxis(np.array(value.const_value.numpy()), axis, 0)
        array[[2, 9]] = 0
        value.const_value = ir.tensor(np.moveaxis(array, 0, axis), name=name)
    (group,) = find_order(model, lambda: batches(4), measure=measure)["groups"]
    first = find_ties(prepare(model)).groups[0].channels
    assert sorted(first.index(channel) for channel in group["order"][:2]) == [2, 9]
    assert group["errors"] == sorted(group["errors"]) and group["errors"][1] < 1e-6 < group["errors"][-1]


def test_an_error_counts_by_what_it_does_to_the_outputs() -> None:
    text = f"""{HEADER}
        g (float[N,3,8,8] x, float[8,3,1,1] a, float[8,3,1,1] b, float[1] c, float[2,8,1,1] d)
          => (float[N,2,8,8] y) {{
          s = Conv(x, a) t = Conv(x, b) u = Mul(t, c) v = Add(s, u) y = Conv(v, d) }}"""
    model = with_weights(text)
    model.graph.initializers["c"].const_value = ir.tensor(np.float32([0.01]), name="c")
    layers = [layer for node in model.graph if (layer := layer_of(node)) is not None]
    gains = error_gains(model, layers, batches(1))
    assert gains["y"] == 1.0 and gains["s"] == pytest.approx(1, rel=0.3)
    assert gains["t"] < 1e-3 * gains["s"]


def test_a_device_pays_for_layers_at_their_prices() -> None:
    model = network()
    ties = find_ties(prepare(model))
    for prices, saved in (({}, 3 + 4), ({"Conv:y": 10.0}, 3 + 40)):
        costs = Costs(prepare(model), ties, prices)
        assert costs.saved(ties.groups[0].channels[:4]) == pytest.approx(4 * saved * 9 * 64)


def test_control_flow_keeps_what_it_reads_and_says_so() -> None:
    text = f"""{HEADER}
        g (bool q, float[N,4,8,8] x) => (float[N,4,8,8] y)
        <float[4,4,1,1] w = {{{",".join(["1"] * 16)}}}> {{
          s = Conv(x, w)
          y = If (q) <then_branch = t () => (float[N,4,8,8] a) {{ a = Relu(s) }},
                      else_branch = e () => (float[N,4,8,8] b) {{ b = Abs(s) }}> }}"""
    model = ir.from_onnx_text(text)
    INFER_SHAPES(model)
    with pytest.raises(Unprunable, match="If 'If:y' mixes channels in a way that is not known"):
        find_order(model, batches)


def test_mirror_images_follow_their_pictures_in_the_same_half() -> None:
    seen = list(with_mirrors(lambda: batches(5))())
    assert len(seen) == 9
    for index in (0, 1, 4, 5):
        np.testing.assert_array_equal(seen[index]["x"][..., ::-1], seen[index + 2]["x"])
    flat = list(with_mirrors(lambda: iter([{"x": np.ones((2, 3), np.float32)}] * 2))())
    assert len(flat) == 2


def test_layers_of_two_branches_are_repaired_in_one_pass_and_a_chain_in_order() -> None:
    text = f"""{HEADER}
        g (float[N,3,8,8] x, float[8,3,1,1] a, float[4,8,1,1] b, float[4,8,1,1] c, float[2,4,1,1] d)
          => (float[N,2,8,8] y) {{
          s = Conv(x, a) r = Relu(s) t = Conv(r, b) u = Conv(r, c) v = Add(t, u) y = Conv(v, d) }}"""
    runs = by_depth(with_weights(text), {"b", "c", "d"})
    assert [[(spot.layer.weights, spot.match) for spot in run] for run in runs] == [
        [("b", "t"), ("c", "u")],
        [("d", "y")],
    ]


def test_the_last_layer_of_a_residual_block_is_matched_where_its_shortcut_is_added() -> None:
    text = f"""{HEADER}
        g (float[N,3,8,8] x, float[8,3,1,1] a, float[8,8,1,1] b, float[8,8,1,1] c, float[2,8,1,1] d)
          => (float[N,2,8,8] y) {{
          s = Conv(x, a) i = Conv(s, b) r = Relu(i) t = Conv(r, c) v = Add(s, t) y = Conv(v, d) }}"""
    runs = by_depth(with_weights(text), {"b", "c", "d"})
    assert [[(spot.layer.weights, spot.match) for spot in run] for run in runs] == [
        [("b", "i")],
        [("c", "v")],
        [("d", "y")],
    ]


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
