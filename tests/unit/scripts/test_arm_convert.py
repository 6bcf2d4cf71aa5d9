"""What is written into the peers' files, in their own format."""

import numpy as np
import pytest
from arm_convert import find_paddings, format_layers, parse_layers, quantize_ncnn, replace_paddings
from arm_guest import PeerUnavailable

PARAM = """7767517
4 4
Input                    in0                      0 1 in0
Convolution              conv_0                   1 1 in0 1 0=2 1=1 5=1 6=6
Pad                      Pad_3                    1 1 1 2
Convolution              conv_1                   1 1 2 out0 0=1 1=1 5=0 6=2
"""
LOG = "start\nignore Pad Pad_3 param pads=(0,1,2,3,0,4,5,6)\nend\n"


def weights() -> bytes:
    first = np.array([[1, -2, 0.5], [4, 0, 0]], "<f4")
    bias, second = np.array([7, 8], "<f4"), np.array([3, -6], "<f4")
    return b"\0" * 4 + first.tobytes() + bias.tobytes() + b"\0" * 4 + second.tobytes()


def test_layers_read_back_as_they_were_written():
    layers = parse_layers(PARAM)
    assert [layer.kind for layer in layers] == ["Input", "Convolution", "Pad", "Convolution"]
    assert parse_layers(format_layers(layers)) == layers
    assert format_layers(layers).splitlines()[1] == "4 4"


def test_padding_along_rows_columns_and_channels_is_ncnns_own():
    found = replace_paddings(parse_layers(PARAM), find_paddings(LOG))[2]
    assert found.kind == "Padding"
    assert dict(found.parameters) == dict(zip("01234578", "25360014", strict=True))


@pytest.mark.parametrize("log", ["", LOG.replace("(0,1", "(1,1"), LOG.replace(",6)", ")")])
def test_padding_that_is_not_told_or_of_the_batch_is_refused(log):
    with pytest.raises(PeerUnavailable, match="Pad_3"):
        replace_paddings(parse_layers(PARAM), find_paddings(log))


def test_scales_stand_after_the_weights_of_each_layer():
    layers = replace_paddings(parse_layers(PARAM), find_paddings(LOG))
    quantized, data = quantize_ncnn(layers, weights(), {"in0": 2.0, "2": 4.0})

    floats = np.frombuffer(data, "<f4")
    np.testing.assert_array_equal(floats[1:9], [1, -2, 0.5, 4, 0, 0, 7, 8])
    np.testing.assert_allclose(floats[9:12], [127 / 2, 127 / 4, 127 / 2])
    np.testing.assert_allclose(floats[13:], [3, -6, 127 / 6, 127 / 4])
    assert [layer.get("8") for layer in quantized if layer.kind == "Convolution"] == [1, 1]


def test_layer_read_only_by_a_convolution_gives_8_bits():
    layers = [layer for layer in parse_layers(PARAM.replace("1 1 2 out0", "1 1 1 out0")) if layer.kind != "Pad"]
    quantized, data = quantize_ncnn(layers, weights(), {"in0": 2.0, "1": 4.0})
    assert [layer.get("8") for layer in quantized] == [0, 101, 1]
    assert np.frombuffer(data, "<f4")[12] == pytest.approx(127 / 4)


def test_weights_of_another_format_or_length_are_refused():
    layers, ranges = parse_layers(PARAM), {"in0": 1.0, "2": 1.0}
    with pytest.raises(PeerUnavailable, match="not float32"):
        quantize_ncnn(layers, b"\1" + weights()[1:], ranges)
    with pytest.raises(PeerUnavailable, match="bytes"):
        quantize_ncnn(layers, weights() + b"1234", ranges)
