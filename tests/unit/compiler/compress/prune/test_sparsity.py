"""2:4 sparsity: the pattern holds along the inputs, the repair lowers the error, what cannot have it says why."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from compiler.compress.prune.rows import layer_of
from compiler.compress.prune.sparsity import has_pattern, mask_by_size, sparsify
from compiler.compress.prune.tap import watch
from compiler.model.graph import check_model
from compiler.model.numerics import Arrays
from compiler.passes.infer_shapes import INFER_SHAPES
from compiler.passes.probe import run_unoptimized

TEXT = """<ir_version: 10, opset_import: ["": 20]>
g (float[N,8,6,6] x, float[16,8,3,3] a, float[16] b, float[8,16,1,1] c, float[8] d, float[8,4] e, float[6,3,1,1] f)
  => (float[N,4] y, float[N,6,6,6] z) {
  [first] s = Conv<pads=[1,1,1,1]>(x, a, b) r = Relu(s) [second] t = Conv(r, c, d) g = GlobalAveragePool(t)
  h = Flatten(g) [product] y = MatMul(h, e)
  i, j, k = Split<axis=1>(x, sizes) [odd] z = Conv(i, f) }"""


@pytest.fixture
def model() -> ir.Model:
    found = ir.from_onnx_text(TEXT.replace("float[6,3,1,1] f)", "float[6,3,1,1] f, int64[3] sizes)"))
    random = np.random.default_rng(0)
    for value in list(found.graph.inputs)[1:]:
        shape = [int(size) for size in value.shape or ()]
        array = random.standard_normal(shape).astype(np.float32)
        found.graph.inputs.remove(value)
        value.const_value = ir.tensor(np.array([3, 3, 2]) if value.name == "sizes" else array, name=value.name)
        found.graph.register_initializer(value)
    INFER_SHAPES(found)
    return found


def batches() -> Iterator[Arrays]:
    random = np.random.default_rng(3)
    mixing = random.standard_normal((8, 8))  # channels that say something about each other
    for _ in range(12):
        yield {"x": np.einsum("ij,njhw->nihw", mixing, random.standard_normal((4, 8, 6, 6))).astype(np.float32)}


def error(model: ir.Model, found: ir.Model) -> float:
    inputs = next(iter(batches()))
    wanted, given = (run_unoptimized(one, inputs)["y"] for one in (model, found))
    return float(np.square(given - wanted).sum() / np.square(wanted).sum())


def test_two_of_every_four_weights_along_the_inputs_are_zero(model: ir.Model) -> None:
    found = sparsify(model, batches)
    check_model(found.model)
    layers = {str(node.name): layer for node in found.model.graph if (layer := layer_of(node)) is not None}
    for name in ("first", "second", "product"):
        weights = found.model.graph.initializers[layers[name].weights].const_value
        assert weights is not None and has_pattern(layers[name], weights.numpy())
        assert np.count_nonzero(weights.numpy()) == weights.size // 2
    channels = found.model.graph.initializers["a"].const_value
    assert channels is not None
    pairs = channels.numpy().reshape(16, 2, 4, 3, 3)  # by channel, at one place of the filter
    assert (np.count_nonzero(pairs, axis=2) == 2).all()


def test_repair_lowers_the_error_of_every_layer_and_of_the_outputs(model: ir.Model) -> None:
    found = sparsify(model, batches)
    assert all(one.after < 0.7 * one.before for one in found.repaired)
    masked = model.clone()
    for node in masked.graph:
        if (layer := layer_of(node)) is not None and node.name != "odd":
            value = masked.graph.initializers[layer.weights]
            assert value.const_value is not None
            old = value.const_value.numpy()
            value.const_value = ir.tensor(
                layer.weights_of(mask_by_size(layer, layer.matrix(old)), old), name=value.name
            )
    assert error(model, found.model) < 0.5 * error(model, masked)


def test_layer_with_an_odd_number_of_channels_stays_dense_and_says_why(model: ir.Model) -> None:
    found = sparsify(model, batches)
    assert found.kept == {"odd": "it reads 3 channels, which is no multiple of 4"}
    before, after = (one.graph.initializers["f"].const_value for one in (model, found.model))
    assert before is not None and after is not None
    np.testing.assert_array_equal(before.numpy(), after.numpy())


def test_input_that_is_watched_is_what_was_given(model: ir.Model) -> None:
    for (seen, _), batch in zip(watch(model, ["x", "s"], batches()), batches(), strict=True):
        np.testing.assert_array_equal(seen, batch["x"])
