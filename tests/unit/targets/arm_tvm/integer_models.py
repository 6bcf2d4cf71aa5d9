"""Quantized graphs for the tests of the integer kernels."""

import numpy as np
import onnx
import onnx_ir as ir
from arm_tvm_models import Array, make
from onnx import helper


class Quantizing:
    """Writes a Q/DQ graph node by node.

    Args:
        unsigned: Whether activations are uint8 with a zero point of 100; otherwise int8 and symmetric.
    """

    def __init__(self, *, unsigned: bool = False) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.zero = np.uint8(100) if unsigned else np.int8(0)
        self.rng = np.random.default_rng(5)

    def add(self, op: str, inputs: list[str], result: str, **attributes: object) -> str:
        """One node."""
        self.nodes.append(helper.make_node(op, inputs, [result], name=f"{op}_{result}", **attributes))
        return result

    def steps(self, value: str, scale: float) -> str:
        """QuantizeLinear, DequantizeLinear; the value between floats and floats."""
        self.constants |= {f"{value}_s": np.float32(scale), f"{value}_z": self.zero}
        self.add("QuantizeLinear", [value, f"{value}_s", f"{value}_z"], f"{value}_q")
        return self.add("DequantizeLinear", [f"{value}_q", f"{value}_s", f"{value}_z"], f"{value}_d")

    def weights(self, name: str, shape: tuple[int, ...], axis: int = 0, *, least: int = -127) -> str:
        """A constant behind DequantizeLinear, with one scale per index of `axis`."""
        values = self.rng.integers(least, 128, shape).astype(np.int8)
        values.flat[0] = least
        count = shape[axis]
        self.constants |= {
            f"{name}_q": values,
            f"{name}_s": self.rng.uniform(0.5, 1.0, count).astype(np.float32) / 127,
            f"{name}_z": np.zeros(count, dtype=np.int8),
        }
        return self.add("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], name, axis=axis)

    def bias(self, name: str, count: int) -> str:
        """A float constant."""
        self.constants[name] = self.rng.standard_normal(count).astype(np.float32)
        return name

    def model(
        self,
        inputs: dict[str, tuple[int | str, ...]],
        outputs: dict[str, tuple[int | str, ...]],
        *,
        dtypes: dict[str, int] | None = None,
    ) -> ir.Model:
        """The checked model with shapes and types."""
        model = make(self.nodes, inputs, outputs, self.constants, dtypes=dtypes)
        proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True, data_prop=True)
        return ir.from_proto(proto)


def residual_network(*, unsigned: bool = False, least: int = -127, batch: int | str = 1) -> ir.Model:
    """All that becomes an integer kernel: (1, 3, 40, 40) → (1, 10)."""
    net = Quantizing(unsigned=unsigned)
    image = net.steps("image", 0.03)
    net.add(
        "Conv",
        [image, net.weights("w0", (32, 3, 7, 7), least=least), net.bias("b0", 32)],
        "c0",
        strides=[2, 2],
        pads=[3] * 4,
    )
    first = net.steps(net.add("Relu", ["c0"], "r0"), 0.05)
    pooled = net.steps(net.add("MaxPool", [first], "m", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), 0.05)
    net.add("Conv", [pooled, net.weights("w1", (32, 32, 3, 3), least=least), net.bias("b1", 32)], "c1", pads=[1] * 4)
    inner = net.steps(net.add("Clip", ["c1", "zero", "six"], "r1"), 0.04)
    net.constants |= {"zero": np.float32(0), "six": np.float32(4.5)}
    net.add("Conv", [inner, net.weights("w2", (32, 1, 3, 3), least=least)], "c2", pads=[1] * 4, group=32)
    net.add("Add", ["c2", pooled], "a2")
    summed = net.steps(net.add("Relu", ["a2"], "r2"), 0.06)
    net.add("Conv", [summed, net.weights("w3", (64, 32, 3, 3), least=least), net.bias("b3", 64)], "c3", strides=[2, 2])
    down = net.steps("c3", 0.2)
    mean = net.steps(net.add("AveragePool", [summed], "p", kernel_shape=[2, 2], strides=[2, 2]), 0.06)
    net.constants["amounts"] = np.array([0, 0, 0, 0, 0, 32, 0, 0], dtype=np.int64)
    short = net.steps(net.add("Pad", [mean, "amounts"], "short"), 0.06)
    net.constants["edge"] = np.array([0, 0, 0, 0, 0, 0, 1, 1], dtype=np.int64)
    grown = net.steps(net.add("Pad", [down, "edge"], "grown"), 0.2)
    both = net.steps(net.add("Relu", [net.add("Add", [grown, short], "a4")], "r4"), 0.2)
    flat = net.steps(net.add("GlobalAveragePool", [both], "g"), 0.05)
    row = net.steps(net.add("Flatten", [flat], "f"), 0.05)
    net.add("Gemm", [row, net.weights("w5", (64, 10), 1, least=least), net.bias("b5", 10)], "scores")
    return net.model({"image": (batch, 3, 40, 40)}, {"scores": (batch, 10)})


def activated_network() -> ir.Model:
    """Activations behind convolutions and a product, before their results are quantized: (1, 3, 24, 24) → (1, 16)."""
    net = Quantizing(unsigned=True)
    net.constants |= {name: np.float32(value) for name, value in ACTIVATION_NUMBERS.items()}
    net.add(
        "Conv", [net.steps("image", 0.03), net.weights("w0", (24, 3, 3, 3)), net.bias("b0", 24)], "c0", pads=[1] * 4
    )
    net.add("Add", ["c0", "three"], "s0")
    net.add("Clip", ["s0", "zero", "six"], "k0")
    first = net.steps(net.add("Mul", ["c0", "k0"], "m0"), 0.3)
    net.add("Conv", [first, net.weights("w1", (24, 1, 5, 5))], "c1", pads=[2] * 4, group=24, strides=[2, 1])
    net.add("HardSwish", ["c1"], "h1")
    net.add("Mul", ["factor", "h1"], "m1")
    second = net.steps(net.add("Add", ["m1", "three"], "a1"), 0.4)
    net.add("Conv", [second, net.weights("w2", (16, 24, 1, 1))], "c2")
    net.add("Sigmoid", ["c2"], "s2")
    third = net.steps(net.add("Mul", ["c2", "s2"], "m2"), 0.2)
    row = net.steps(net.add("GlobalAveragePool", [third], "g"), 0.1)
    flat = net.steps(net.add("Flatten", [row], "f"), 0.1)
    net.add("MatMul", [flat, net.weights("w3", (16, 16), 1)], "c3")
    net.add("Add", [net.bias("b3", 16), "c3"], "a3")
    net.add("Div", ["a3", "root"], "d3")
    net.add("Erf", ["d3"], "e3")
    net.add("Add", ["e3", "one"], "p3")
    net.add("Mul", ["a3", "p3"], "q3")
    gelu = net.steps(net.add("Mul", ["q3", "half"], "y3"), 0.05)
    net.add("Gemm", [gelu, net.weights("w4", (16, 16), 1)], "y")
    return net.model({"image": (1, 3, 24, 24)}, {"y": (1, 16)})


ACTIVATION_NUMBERS = {"zero": 0, "one": 1, "three": 3, "six": 6, "half": 0.5, "root": 2**0.5, "factor": 1.3}
