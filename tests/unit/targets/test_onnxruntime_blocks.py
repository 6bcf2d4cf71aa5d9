"""Weights in blocks as ONNX Runtime's own operators: the same numbers, in the bytes that were counted."""

import numpy as np
import onnx_ir as ir
import pytest
from language_models import tiny_decoder, windows

from compiler.compress.quant.apply import at_opset
from compiler.compress.weight_only.apply import apply_weights
from compiler.compress.weight_only.fit import fit_blocks
from compiler.compress.weight_only.layers import find_layers
from compiler.compress.weight_only.round_activations import round_activations
from compiler.model.frontend import extract_prefix
from compiler.model.numerics import compare
from compiler.model.onnx_runtime import OnnxRuntimeSession
from compiler.model.reference import Unoptimized
from compiler.model.save import save_model
from compiler.target.scheme import BlockFormat
from targets.onnxruntime_cpu.blocks import pack_weights

FORMATS = [
    BlockFormat(4, 32),
    BlockFormat(8, 64, symmetric=True),
    BlockFormat(4, 64, symmetric=True),
    BlockFormat(8, 32),
]


def in_blocks(format_: BlockFormat, *, rounds: bool = False) -> ir.Model:
    model = at_opset(tiny_decoder(), 21)
    layers = {layer.name: layer for layer in find_layers(model)}
    stored = {}
    for name, layer in layers.items():
        array = model.graph.initializers[name].const_value.numpy()
        weight = np.ascontiguousarray(array.T) if layer.is_turned else array
        scales = fit_blocks(weight, np.ones(layer.inputs, np.float32), format_)
        stored[name] = (scales.integers(weight), scales)
    made = apply_weights(model, layers, stored)
    if rounds:
        round_activations(made)
    return made


@pytest.mark.parametrize(("rounds", "least_db"), [(False, 80), (True, 20)], ids=["float32", "int8"])
@pytest.mark.parametrize("format_", FORMATS, ids=str)
def test_packed_weights_compute_what_the_border_model_does(format_, rounds, least_db, tmp_path):
    border = in_blocks(format_, rounds=rounds)
    packed = pack_weights(border)
    operators = [node.op_type for node in packed.graph]
    assert operators.count("MatMulNBits") == (30 if format_.bits == 6 else 15)
    assert operators.count("GatherBlockQuantized") == (2 if format_.bits == 6 else 1)
    assert not {"DequantizeLinear", "QuantizeLinear", "ReduceMax"} & set(operators)
    levels = {node.attributes.get_int("accuracy_level", 0) for node in packed.graph if node.op_type == "MatMulNBits"}
    assert levels == {4 if rounds else 1}
    inputs = windows(border, 1, length=8, past=4)[0]
    save_model(packed, tmp_path / "packed.onnx")
    got = OnnxRuntimeSession(tmp_path / "packed.onnx", is_optimized=True).run(inputs)
    want = Unoptimized(border).run(inputs)
    assert {name: array.shape for name, array in got.items()} == {name: array.shape for name, array in want.items()}
    assert compare(want["logits"], got["logits"]).sqnr_db > least_db


def test_a_weight_that_is_looked_at_stays_beside_the_packed_one(tmp_path):
    """As where the first operator that diverges is looked for."""
    border = in_blocks(BlockFormat(4, 32))
    product = next(node for node in border.graph if node.op_type == "MatMul" and node.inputs[1].producer() is not None)
    names = [product.inputs[1].name, product.outputs[0].name]
    part = extract_prefix(border, names)
    save_model(pack_weights(part), tmp_path / "part.onnx")
    inputs = windows(border, 1, length=8, past=4)[0]
    session = OnnxRuntimeSession(tmp_path / "part.onnx", is_optimized=True)
    got = session.run({spec.name: inputs[spec.name] for spec in session.inputs})
    want = Unoptimized(part).run({value.name: inputs[value.name] for value in part.graph.inputs})
    assert all(compare(want[name], got[name]).sqnr_db > 80 for name in names)


def test_a_shared_table_is_stored_once_and_bytes_are_those_counted():
    format_ = BlockFormat(4, 32)
    packed = pack_weights(in_blocks(format_))
    counted = sum(format_.bytes_of(layer.outputs, layer.inputs) for layer in find_layers(tiny_decoder()))
    stored = {
        name: value.const_value.nbytes
        for name, value in packed.graph.initializers.items()
        if name.endswith(("packed0", "half", "zeros0", "zeros"))
    }
    # the zero points of the table are there twice: one to a byte for the look-up
    assert sum(stored.values()) - 256 * 4 == counted


def test_a_model_without_blocks_is_left_as_it_is():
    model = tiny_decoder()
    assert pack_weights(model) is model
