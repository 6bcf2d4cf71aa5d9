"""Activations behind integer operators: computed in their kernels, before the result is rounded."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from arm_tvm_models import needs_aarch64
from integer_models import Quantizing, activated_network
from test_arm_tvm_integer import BOARDS, HOSTS, assert_agrees, built, image, ops

from compiler.fleet.detect import host_isa
from targets.arm_tvm.graph.quantized.rewrite import use_integers
from targets.arm_tvm.kernels.integer.kernel import Kernel
from targets.arm_tvm.kernels.integer.specs import ConvSpec, ElementwiseSpec

SHAPE = (1, 16, 8, 8)


def kernels_of(model: ir.Model) -> list[Kernel]:
    return list(use_integers(model, "sdot").kernels.values())


def test_nothing_of_a_network_with_activations_stays_in_float() -> None:
    model = activated_network()
    assert ops(model) == []
    names = [kernel.name for kernel in kernels_of(model)]
    assert names.count("int8_pack") == names.count("int8_unpack") == 1


@pytest.mark.parametrize("dot", ["generic", "amx_int8"])
def test_activations_are_what_the_model_says_on_the_host(
    dot: str, tmp_path: Path, cache_dir: Path, pi5: object
) -> None:
    options, needed = HOSTS[dot]
    if missing := needed - host_isa():
        pytest.skip(f"this machine's processor lacks {', '.join(sorted(missing))}")
    model = activated_network()
    assert_agrees(model, {"image": image(1, 3, 24, 24)}, built(model, options, tmp_path, cache_dir, pi5))


@pytest.mark.slow
@needs_aarch64
def test_activations_are_what_the_model_says_under_the_emulator(tmp_path: Path, cache_dir: Path, pi5: object) -> None:
    model = activated_network()
    artifact = built(model, BOARDS["sdot"], tmp_path, cache_dir, pi5)
    assert_agrees(model, {"image": image(1, 3, 24, 24)}, artifact)


def convolved(end: Callable[[Quantizing], str], *outputs: str) -> ir.Model:
    """One convolution `c`, and what `end` writes behind it."""
    net = Quantizing()
    data = net.steps("image", 0.03)
    net.add("Conv", [data, net.weights("w", (16, 16, 1, 1))], "c")
    return net.model({"image": SHAPE}, dict.fromkeys((end(net), *outputs), SHAPE))


def epilogue_texts(model: ir.Model) -> tuple[str, ...]:
    (spec,) = [kernel.spec for kernel in kernels_of(model) if isinstance(kernel.spec, ConvSpec)]
    return spec.epilogue.activations


def sigmoid_of(net: Quantizing) -> str:
    return net.steps(net.add("Sigmoid", ["c"], "y"), 0.01)


def test_relu_alone_stays_a_limit_of_the_integers() -> None:
    assert epilogue_texts(convolved(lambda net: net.steps(net.add("Relu", ["c"], "y"), 0.05))) == ()
    assert epilogue_texts(convolved(sigmoid_of)) == ("sigmoid(x)",)


def test_relu_before_another_activation_is_computed_before_it() -> None:
    def end(net: Quantizing) -> str:
        return net.steps(net.add("Sigmoid", [net.add("Relu", ["c"], "r")], "y"), 0.01)

    assert epilogue_texts(convolved(end)) == ("maximum(x,0.0)", "sigmoid(x)")


def test_a_value_that_others_read_ends_a_kernel_before_its_activation() -> None:
    assert epilogue_texts(convolved(sigmoid_of, "c")) == ()


def test_a_factor_for_each_channel_is_no_activation() -> None:
    def end(net: Quantizing) -> str:
        net.constants["factors"] = net.rng.standard_normal((16, 1, 1)).astype("float32")
        return net.add("Mul", ["c", "factors"], "y")

    assert ops(convolved(end)) == ["Mul"]


def test_activations_of_integers_that_others_read_too_are_kernels_of_their_own() -> None:
    net = Quantizing()
    data = net.steps("image", 0.03)
    first = net.steps(net.add("HardSwish", [data], "h"), 0.02)
    second = net.steps(net.add("Tanh", [data], "t"), 0.01)
    net.add("Add", [first, second], "a")
    model = net.model({"image": SHAPE}, {net.steps("a", 0.03): SHAPE})
    assert ops(model) == []
    texts = [
        kernel.spec.epilogue.activations for kernel in kernels_of(model) if isinstance(kernel.spec, ElementwiseSpec)
    ]
    assert [len(text) for text in texts] == [1, 1, 0]


def gated_network(channels: int = 24) -> ir.Model:
    """Squeeze and excitation: channels are scaled by what their means give; some floats are read as integers too."""
    net = Quantizing(unsigned=True)
    data = net.steps("image", 0.03)
    net.add("Conv", [data, net.weights("w0", (channels, 16, 3, 3)), net.bias("b0", channels)], "c", pads=[1] * 4)
    net.add("HardSwish", ["c"], "h")
    mean = net.steps(net.add("GlobalAveragePool", [net.steps("h", 0.2)], "g"), 0.043)
    net.add("Conv", [mean, net.weights("w1", (channels, channels, 1, 1)), net.bias("b1", channels)], "e")
    net.add("HardSigmoid", ["e"], "s")
    scaled = net.steps(net.add("Mul", ["h", "s"], "m"), 0.1)
    # Scales in no simple ratio: a mean that ends in a half is rounded up or down by the last digit of a float.
    pooled = net.steps(net.add("AveragePool", [scaled], "p", kernel_shape=[2, 2]), 0.067)
    net.add("Conv", [pooled, net.weights("w2", (16, channels, 1, 1))], "y")
    return net.model({"image": SHAPE}, {"y": (1, 16, 7, 7), "p": (1, channels, 7, 7)})


def test_channels_are_scaled_where_they_lie() -> None:
    model = gated_network()
    assert ops(model) == []
    names = [node.name.split(".")[-2] for node in use_integers(model, "sdot").model.graph if node.name]
    assert names.count("int8_gate") == 1
    assert names.count("int8_unpack") == 2  # both results
    assert names.count("int8_pack") == 3  # the image, and floats that are read as floats too


@pytest.mark.parametrize("dot", ["generic", "amx_int8"])
def test_scaled_channels_are_what_the_model_says(dot: str, tmp_path: Path, cache_dir: Path, pi5: object) -> None:
    options, needed = HOSTS[dot]
    if missing := needed - host_isa():
        pytest.skip(f"this machine's processor lacks {', '.join(sorted(missing))}")
    model = gated_network()
    assert_agrees(model, {"image": image(*SHAPE)}, built(model, options, tmp_path, cache_dir, pi5))
