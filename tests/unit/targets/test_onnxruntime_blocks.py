"""Weights in blocks as ONNX Runtime's own operators: the same numbers, in the bytes that were counted."""

import numpy as np
import onnx_ir as ir
import pytest
from language_models import in_blocks, tiny_decoder, windows

from compiler.compress.weight_only.layers import find_layers
from compiler.model.frontend import extract_prefix
from compiler.model.numerics import compare
from compiler.model.onnx_runtime import OnnxRuntimeSession
from compiler.model.reference import Unoptimized
from compiler.model.save import save_model
from compiler.target.scheme import BlockFormat
from targets.onnxruntime_cpu.blocks import pack_weights
from targets.onnxruntime_cpu.last_logits import LOGITS_FROM, select_logits

FORMATS = [
    BlockFormat(4, 32),
    BlockFormat(8, 64, symmetric=True),
    BlockFormat(4, 64, symmetric=True),
    BlockFormat(8, 32),
]


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


@pytest.mark.parametrize("rounds", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("format_", [BlockFormat(4, 32), BlockFormat(6, 64)], ids=str)
def test_a_decoder_computes_the_logits_of_the_last_token_alone_when_asked(format_, rounds, tmp_path):
    packed = pack_weights(in_blocks(format_, rounds=rounds))
    inputs = windows(packed, 1, length=8, past=4)[0]
    save_model(packed, tmp_path / "all.onnx")
    want = OnnxRuntimeSession(tmp_path / "all.onnx", is_optimized=True).run(inputs)
    assert select_logits(packed)
    save_model(packed, tmp_path / "selects.onnx")
    session = OnnxRuntimeSession(tmp_path / "selects.onnx", is_optimized=True)
    assert LOGITS_FROM not in {spec.name for spec in session.inputs}  # nobody has to name it
    assert all(np.array_equal(want[name], array) for name, array in session.run(inputs).items())
    last = session.run({**inputs, LOGITS_FROM: np.array([-1])})
    assert last["logits"].shape == (1, 1, 256) and compare(want["logits"][:, -1:], last["logits"]).sqnr_db > 100
    present = next(name for name in want if name != "logits")
    assert np.array_equal(want[present], last[present])


def test_logits_that_are_no_product_are_computed_for_all_tokens():
    model = tiny_decoder()
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    capped = ir.node("Tanh", [logits], name="cap")
    model.graph.append(capped)
    logits.name, capped.outputs[0].name = "raw", "logits"
    capped.outputs[0].shape, capped.outputs[0].type = logits.shape, logits.type
    model.graph.outputs[model.graph.outputs.index(logits)] = capped.outputs[0]
    before = len(model.graph)
    assert not select_logits(model) and len(model.graph) == before
