"""The made-up transformer encoder: its forms agree, its weights repeat, its file holds what was asked for."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from make_transformer_model import Encoder, encoder_of, main, make_transformer, save

from compiler.errors import UsageError

SMALL = Encoder(layers=2, width=32, heads=4, vocabulary=50, positions=16)
TOKENS = np.random.default_rng(0).integers(0, 50, (3, 9))


def run(model: str | bytes, tokens: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"tokens": tokens})[0]


def to_bytes(encoder: Encoder) -> bytes:
    return ir.to_proto(make_transformer(encoder)).SerializeToString(deterministic=True)


@pytest.mark.parametrize("opset", [13, 14, 15, 16, 17])
def test_model_is_valid_and_batch_and_sequence_are_free(opset):
    model = to_bytes(replace(SMALL, opset=opset))
    onnx.checker.check_model(model, full_check=True)
    assert run(model, TOKENS).shape == (3, 9, 32)
    assert run(model, TOKENS[:1, :4]).shape == (1, 4, 32)


def test_layer_normalisation_in_parts_and_as_one_operator_agree():
    parts, one = to_bytes(SMALL), to_bytes(replace(SMALL, opset=17))
    np.testing.assert_allclose(run(parts, TOKENS), run(one, TOKENS), atol=1e-4)
    kinds = [Counter(node.op_type for node in onnx.load_from_string(model).graph.node) for model in (parts, one)]
    assert (kinds[0]["LayerNormalization"], kinds[0]["Sqrt"]) == (0, 5)
    assert (kinds[1]["LayerNormalization"], kinds[1]["Sqrt"]) == (5, 0)


def test_each_block_has_the_patterns_of_an_exporter():
    one, two = (Counter(n.op_type for n in make_transformer(replace(SMALL, layers=layers)).graph) for layers in (1, 2))
    block = {op: two[op] - one[op] for op in ("MatMul", "Erf", "Softmax", "Transpose", "Reshape", "Shape")}
    assert block == {"MatMul": 8, "Erf": 1, "Softmax": 1, "Transpose": 4, "Reshape": 4, "Shape": 8}


def test_a_sequence_has_the_same_result_alone_and_in_a_batch():
    model = to_bytes(SMALL)
    np.testing.assert_allclose(run(model, TOKENS)[1:2], run(model, TOKENS[1:2]), atol=1e-5)


def test_result_depends_on_every_token_and_on_their_order():
    model, tokens = to_bytes(SMALL), TOKENS[:1]
    changed = tokens.copy()
    changed[0, -1] = (changed[0, -1] + 1) % 50
    assert np.abs(run(model, tokens)[0, 0] - run(model, changed)[0, 0]).max() > 1e-5
    assert np.abs(run(model, tokens)[0, 0] - run(model, tokens[:, ::-1])[0, -1]).max() > 1e-3


def test_weights_repeat_with_the_seed_and_change_with_it():
    assert to_bytes(SMALL) == to_bytes(SMALL)
    assert to_bytes(SMALL) != to_bytes(replace(SMALL, seed=1))


def test_no_two_weights_are_equal():
    weights = [value.const_value.tobytes() for value in make_transformer(SMALL).graph.initializers.values()]
    assert len(set(weights)) == len(weights)


def test_saved_file_computes_the_same_and_holds_the_weights_beside_it(tmp_path):
    save(make_transformer(SMALL), tmp_path / "small.onnx")
    assert np.array_equal(run(str(tmp_path / "small.onnx"), TOKENS), run(to_bytes(SMALL), TOKENS))
    tensors = make_transformer(SMALL).graph.initializers.values()
    large = sum(tensor.const_value.nbytes for tensor in tensors if tensor.const_value.nbytes > 1024)
    assert (tmp_path / "small.onnx.data").stat().st_size == large


def test_weight_bytes_are_those_of_the_initializers():
    tensors = make_transformer(SMALL).graph.initializers.values()
    assert sum(tensor.const_value.nbytes for tensor in tensors) == SMALL.weight_bytes


def test_size_in_megabytes_is_met_within_half_a_layer():
    for size in (200, 1000, 3000):
        encoder = encoder_of(size, width=1024, opset=14)
        assert abs(encoder.weight_bytes / 1e6 - size) < 26


@pytest.mark.parametrize(
    ("size_mb", "width", "opset"), [(10, 1024, 14), (100, 100, 14), (100, 0, 14), (1000, 1024, 18), (1000, 1024, 12)]
)
def test_size_that_cannot_be_had_is_refused(size_mb, width, opset):
    with pytest.raises(UsageError):
        encoder_of(size_mb, width=width, opset=opset)


def test_command_writes_the_model_and_names_a_place_it_cannot_write(tmp_path, capsys):
    asked = ["--size-mb", "9", "--width", "64"]
    assert main([str(tmp_path / "small.onnx"), *asked]) == 0
    assert 8.5e6 < (tmp_path / "small.onnx.data").stat().st_size < 9.5e6
    assert main([str(tmp_path / "missing/small.onnx"), *asked]) == 2
    assert "missing/small.onnx" in capsys.readouterr().err
