"""Products of rounded activations compared one by one: each is given what the border model gives it."""

import numpy as np
import onnx_ir as ir
import pytest

from compiler.compress.quant.apply import at_opset
from compiler.compress.weight_only.apply import apply_weights
from compiler.compress.weight_only.fit import fit_blocks
from compiler.compress.weight_only.layers import find_layers
from compiler.compress.weight_only.round_activations import round_activations
from compiler.driver.stages.products import cut_at_roundings, given_case
from compiler.driver.stages.reference import ParityCase
from compiler.model.frontend.infer import infer_shapes
from compiler.model.numerics import compare_all
from compiler.model.reference import Unoptimized
from compiler.passes.quantized import rounded_value
from compiler.target.scheme import BlockFormat

WIDTH = 96
"""One block and a half of 64."""


@pytest.fixture(scope="module")
def deep() -> ir.Model:
    """Eight products after each other, each rounded before."""
    random = np.random.default_rng(0)
    weights = ", ".join(f"float[{WIDTH},{WIDTH}] w{number}" for number in range(8))
    steps = " ".join(f"p{n} = MatMul(x{n}, w{n}) x{n + 1} = Tanh(p{n})" for n in range(8))
    head = '<ir_version: 10, opset_import: ["" : 21]> g'
    model = ir.from_onnx_text(f"{head} (float[N,{WIDTH}] x0, {weights}) => (float[N,{WIDTH}] x8) {{ {steps} }}")
    for number, node in enumerate(model.graph):
        node.name = f"node{number}"
    for value in list(model.graph.inputs)[1:]:
        array = random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / np.sqrt(WIDTH).astype(np.float32) * 3
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    infer_shapes(model)
    model = at_opset(model, 21)
    layers = {layer.name: layer for layer in find_layers(model)}
    stored = {}
    for name in layers:
        weight = np.ascontiguousarray(model.graph.initializers[name].const_value.numpy().T)
        scales = fit_blocks(weight, np.ones(WIDTH, np.float32), BlockFormat(8, 64))
        stored[name] = (scales.integers(weight), scales)
    formats = {name: scales.format for name, (_, scales) in stored.items()}
    made = apply_weights(model, layers, formats, stored.__getitem__)
    round_activations(made)
    return made


def test_a_rounding_is_to_127_steps_of_each_blocks_largest(deep):
    x = np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)
    x[1] = 0
    first = next(node.outputs[0] for node in deep.graph if rounded_value(node) is not None)
    tapped = deep.clone()
    tapped.graph.outputs.append(next(v for node in tapped.graph for v in node.outputs if v.name == first.name))
    got = Unoptimized(tapped).run({"x0": x})[first.name]
    for columns in (slice(0, 64), slice(64, WIDTH)):
        step = np.maximum(np.abs(x[:, columns]).max(axis=1, keepdims=True) / 127, 1e-30)
        assert np.allclose(got[:, columns], np.rint(x[:, columns] / step) * step, atol=1e-6)


def test_the_cut_model_computes_each_part_as_the_whole_does(deep):
    x = np.random.default_rng(2).standard_normal((4, WIDTH)).astype(np.float32)
    case, cut = given_case(deep, ParityCase("N=4", {"x0": x}, {}))
    _, names = cut_at_roundings(deep)
    assert len(names) == 8 and set(case.expected) == {"x8", *names} - {"x0"}
    assert all(stats.sqnr_db > 120 for stats in compare_all(case.expected, Unoptimized(cut).run(case.inputs)).values())


def test_what_is_given_keeps_a_rounding_that_goes_the_other_way_from_all_behind_it(deep):
    """The reason for the cut: the first place of a mantissa comes out of the whole model as another result."""
    x = np.random.default_rng(3).standard_normal((64, WIDTH)).astype(np.float32)
    moved = np.nextafter(x, np.float32(9))
    whole = compare_all(Unoptimized(deep).run({"x0": x}), Unoptimized(deep).run({"x0": moved}))["x8"]
    case, cut = given_case(deep, ParityCase("N=64", {"x0": x}, {}))
    parts = Unoptimized(cut).run({**case.inputs, "x0": moved})
    assert whole.sqnr_db < 60 < min(stats.sqnr_db for stats in compare_all(case.expected, parts).values())
