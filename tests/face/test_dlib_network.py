"""The reader of dlib's files, on a small network written here in dlib's format."""

import struct
from collections.abc import Sequence

import numpy as np
import pytest
from dlib_network import Affine, Conv, Join, Linear, Mark, Pool, Relu, parse
from hypothesis import given, settings
from hypothesis import strategies as st
from make_face_model import export

from compiler.errors import InvalidModel


def integer(value: int) -> bytes:
    count = max(1, (abs(value).bit_length() + 7) // 8)
    return bytes([count | (0x80 if value < 0 else 0)]) + abs(value).to_bytes(count, "little")


def integers(*values: int) -> bytes:
    return b"".join(map(integer, values))


def real(value: float) -> bytes:
    return integers(int(value * 2**16), -16)


def text(value: str) -> bytes:
    return integer(len(value)) + value.encode()


def tensor(values: np.ndarray, shape: Sequence[int]) -> bytes:
    return integers(2, *shape) + values.astype("<f4").tobytes()


TRAINING_STATE = b"110" + 3 * tensor(np.zeros(0), (0, 0, 0, 0))
LEARNING_RATES = 4 * real(1)


def conv(weight: np.ndarray, *, stride: int) -> bytes:
    filters, channels, window, _ = weight.shape
    weights = np.concatenate([weight.ravel(), np.arange(filters)])
    sizes = integers(filters, window, window, stride, stride, 0, 0)
    aliases = integers(1, filters, channels, window, window, 1, 1, filters, 1, 1)
    return text("con_4") + tensor(weights, (weights.size, 1, 1, 1)) + sizes + aliases + LEARNING_RATES + TRAINING_STATE


def affine(channels: int) -> bytes:
    aliases = integers(1, 1, channels, 1, 1, 1, 1, channels, 1, 1)
    return (
        text("affine_") + tensor(np.arange(2 * channels), (2 * channels, 1, 1, 1)) + aliases + b"\1\0" + TRAINING_STATE
    )


def average(window: int, stride: int) -> bytes:
    return text("avg_pool_2") + integers(window, window, stride, stride, 0, 0) + TRAINING_STATE


def linear(inputs: int, outputs: int) -> bytes:
    weights = tensor(np.ones(inputs * outputs), (inputs, outputs, 1, 1))
    aliases = integers(1, inputs, outputs, 1, 1, 1, 0, 0, 0, 0, 1)
    return text("fc_2") + integers(outputs, inputs) + weights + aliases + LEARNING_RATES + TRAINING_STATE


def named(name: str) -> bytes:
    return text(name) + TRAINING_STATE


FIRST = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2) / 8
LAYER, MARK = b"\1\2", b"\1\1"


def small_network() -> bytes:
    """Input 9 x 9; a convolution, a block that halves the picture and doubles the channels, an average, a product."""
    skins = [LAYER, LAYER, LAYER, LAYER, LAYER, MARK, MARK, LAYER, MARK, LAYER, LAYER]
    contents = [
        affine(2),
        named("relu_"),
        conv(np.ones((4, 2, 3, 3)), stride=2),
        average(2, 2),
        named("add_prev_"),
        named("relu_"),
        average(0, 1),
        linear(4, 5),
    ]
    header = integer(1) + text("loss_metric_2") + real(0.04) + real(0.6) + b"".join(skins) + integer(3)
    picture = text("input_rgb_image_sized") + real(122.5) + real(117) + real(-104.25) + integers(9, 9)
    return header + picture + conv(FIRST, stride=1) + integer(1) + b"".join(contents)


def test_layers_come_out_in_the_order_of_execution():
    kinds = [type(layer) for layer in parse(small_network()).layers]
    assert kinds == [Conv, Affine, Relu, Mark, Conv, Mark, Mark, Pool, Join, Relu, Pool, Linear]


def test_numbers_come_out_as_written():
    network = parse(small_network())
    first, scale = network.layers[:2]
    assert network.mean == (122.5, 117.0, -104.25)
    assert network.side == 9
    assert isinstance(first, Conv) and isinstance(scale, Affine)
    np.testing.assert_array_equal(first.weight, FIRST.astype(np.float32))
    assert first.bias.tolist() == [0, 1]
    assert (scale.scale.tolist(), scale.shift.tolist()) == ([0, 1], [2, 3])


def test_each_side_of_a_join_is_padded_with_zeros_where_the_other_is_larger():
    nodes = export(parse(small_network())).graph
    pads = [node.inputs[1].const_value.numpy().tolist() for node in nodes if node.op_type == "Pad"]
    assert pads == [[0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 2, 0, 0]]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "ends too early"),
        (lambda data: b"ONNX" + data, "no dlib network"),
        (lambda data: data[:-1], "ends too early"),
        (lambda data: data + b"\0", "goes on"),
        (lambda data: data.replace(b"affine_", b"bn_con2"), "bn_con2"),
        (lambda data: data.replace(struct.pack("<f", 2.5), struct.pack("<f", float("nan"))), "not finite"),
        (lambda data: data.replace(b"input_rgb_image_sized", b"input_rgb_image_wrong"), "not an RGB picture"),
        (lambda data: data.replace(text("loss_metric_2"), text("loss_metric_9")), "metric loss"),
    ],
)
def test_damaged_file_is_refused_with_the_reason(damage, reason):
    damaged = damage(small_network())
    with pytest.raises(InvalidModel, match=reason):
        parse(damaged, "weights.dat")


def test_join_without_a_mark_is_refused():
    data = small_network().replace(MARK + MARK + LAYER + MARK, LAYER, 1)
    with pytest.raises(InvalidModel, match="lost its beginning"):
        export(parse(data))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_change_of_bytes_gives_a_network_or_a_named_error(data):
    broken = bytearray(small_network())
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    try:
        model = export(parse(bytes(broken)))
    except InvalidModel as error:
        assert error.what
    else:
        assert model.graph.outputs[0].name == "embedding"
