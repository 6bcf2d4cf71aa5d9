"""What the builder fails at is refused by fleetc itself, before the toolchain is asked."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from targets.nvidia_tensorrt.refusals import refuse_unbuildable


def refused(text: str) -> list[str]:
    model = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {text}'))
    return [str(refusal) for refusal in refuse_unbuildable(model)]


def test_output_that_is_an_input_is_named() -> None:
    """It ended in "input '__x' is not in the model", exit code 4."""
    (line,) = refused("(float[2] x) => (float[2] y, float[2] x) { y = Relu (x) }")
    assert line.startswith("Output 'x': it is an input of the model, too")


CONV = (
    "(float[1,4,4,5] x, float[4,3,3,3] w) => (float[1,3,h,v] y) "
    "{ y = ConvTranspose <strides = [%s], dilations = [%s]> (x, w) }"
)


@pytest.mark.parametrize(("strides", "dilations"), [("2, 2", "2, 1"), ("2, 1", "1, 2")])
def test_transposed_convolution_with_strides_and_dilations_is_refused(strides: str, dilations: str) -> None:
    (line,) = refused(CONV % (strides, dilations))
    assert line.startswith("ConvTranspose '(unnamed)': TensorRT computes no transposed convolution")


@pytest.mark.parametrize(("strides", "dilations"), [("1, 1", "2, 2"), ("2, 2", "1, 1")])
def test_transposed_convolution_with_one_of_them_is_taken(strides: str, dilations: str) -> None:
    assert refused(CONV % (strides, dilations)) == []
