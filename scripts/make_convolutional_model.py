#!/usr/bin/env python3
"""Write a convolutional network with made-up weights: MobileNet-v2 or ResNet-50 at 224 × 224, without a download.

    scripts/make_convolutional_model.py mobilenet mobilenet.onnx
    scripts/make_convolutional_model.py resnet50 resnet50.onnx

Convolutions are drawn as He et al. (2015) initialise them; each BatchNormalization holds the mean and the variance
that its input really has on made-up images, so activations keep the ranges of a trained network through all layers
and half precision or 8 bits can be judged. The same seed gives the same file on the same machine.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.tape
import onnxruntime

from compiler.errors import CompilerError, OutputError

IR_VERSION = 10
OPSET = 18
SIDE = 224
CLASSES = 1000
EPSILON = 1e-5
MEASURED_IMAGES = 4
SHIFT = np.float32(0.7)
"""With half of all activations cut, random weights amplify rounding errors from layer to layer; trained ones do not."""

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Statistics = dict[str, Floats]

MOBILENET_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))
"""Expansion, channels, repetitions and first stride: Sandler et al. (2018), table 2; the last row is in `mobilenet`."""
RESNET_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Inner channels, blocks and first stride: He et al. (2016), table 1, 50 layers."""


@dataclass
class Exporter:
    """The graph so far.

    Args:
        statistics: What every BatchNormalization holds, by its name; without it they are computed from the batch,
            as in training, and become outputs of the graph.
        seed: The same seed gives the same weights.
    """

    statistics: Statistics | None
    seed: int
    tape: onnx_ir.tape.Tape = field(default_factory=onnx_ir.tape.Tape)
    measured: list[ir.Value] = field(default_factory=list)
    count: int = 0
    norms: int = 0

    def __post_init__(self) -> None:
        """Starts the stream of random numbers."""
        self.random = np.random.default_rng(self.seed)

    def op(self, op: str, *inputs: ir.Value, **attributes: int | float | list[int]) -> ir.Value:
        """Add a node, and return its output."""
        self.count += 1
        name = f"{op}_{self.count}"
        output = ir.val(f"{name}_out", ir.DataType.FLOAT)
        self.tape.op(op, list(inputs), attributes, name=name, output=output)
        return output

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Add an initializer, named after the node that will use it."""
        return self.tape.initializer(ir.tensor(array), name=f"{self.count + 1}.{name}")

    def normal(self, deviation: float, *size: int) -> Floats:
        """Numbers of a normal distribution around 0."""
        return (self.random.standard_normal(size) * deviation).astype(np.float32)

    def conv(self, x: ir.Value, given: int, wanted: int, window: int, stride: int = 1, groups: int = 1) -> ir.Value:
        """A convolution without bias whose padding keeps the size at stride 1; variance 2 / fan-in."""
        fan_in = given // groups * window * window
        weight = self.constant("weight", self.normal(math.sqrt(2 / fan_in), wanted, given // groups, window, window))
        sizes = {"kernel_shape": [window] * 2, "strides": [stride] * 2, "pads": [window // 2] * 4}
        return self.op("Conv", x, weight, group=groups, **sizes)

    def normalize(self, x: ir.Value, channels: int) -> ir.Value:
        """BatchNormalization with scales around 1 and shifts around `SHIFT`."""
        self.norms += 1
        name = f"norm_{self.norms}"
        scale = (1 + 0.2 * self.random.standard_normal(channels)).astype(np.float32).clip(0.3, 2)
        shift = SHIFT + self.normal(0.2, channels)
        if self.statistics is None:
            return self._measure(x, name, scale, shift)
        parts = {"scale": scale, "shift": shift}
        parts |= {part: self.statistics[f"{name}_{part}"] for part in ("mean", "variance")}
        constants = [self.constant(part, array) for part, array in parts.items()]
        return self.op("BatchNormalization", x, *constants, epsilon=EPSILON)

    def _measure(self, x: ir.Value, name: str, scale: Floats, shift: Floats) -> ir.Value:
        axes = self.constant("axes", np.array([0, 2, 3], np.int64))
        mean = self.op("ReduceMean", x, axes)
        centred = self.op("Sub", x, mean)
        variance = self.op("ReduceMean", self.op("Mul", centred, centred), axes)
        for value, part in ((mean, "mean"), (variance, "variance")):
            value.name = f"{name}_{part}"
            self.measured.append(value)
        deviation = self.op("Sqrt", self.op("Add", variance, self.constant("epsilon", np.array(EPSILON, np.float32))))
        scaled = self.op("Mul", self.op("Div", centred, deviation), self.constant("scale", scale.reshape(1, -1, 1, 1)))
        return self.op("Add", scaled, self.constant("shift", shift.reshape(1, -1, 1, 1)))

    def relu6(self, x: ir.Value) -> ir.Value:
        """min(max(x, 0), 6)"""
        low, high = (self.constant(f"limit{value}", np.array(value, np.float32)) for value in (0, 6))
        return self.op("Clip", x, low, high)

    def classify(self, x: ir.Value, channels: int) -> ir.Value:
        """Global average, then a linear layer with bias."""
        x = self.op("Flatten", self.op("GlobalAveragePool", x))
        weight = self.constant("weight", self.normal(math.sqrt(1 / channels), CLASSES, channels))
        return self.op("Gemm", x, weight, self.constant("bias", self.normal(0.1, CLASSES)), transB=1)


def mobilenet(exporter: Exporter, image: ir.Value) -> ir.Value:
    """MobileNet-v2 of width 1.0: inverted residuals with depthwise convolutions and ReLU6."""
    x = exporter.relu6(exporter.normalize(exporter.conv(image, 3, 32, 3, 2), 32))
    channels = 32
    for expansion, wanted, repetitions, first in (*MOBILENET_BLOCKS, (6, 320, 1, 1)):
        for number in range(repetitions):
            x = inverted_residual(exporter, x, channels, wanted, expansion, first if number == 0 else 1)
            channels = wanted
    x = exporter.relu6(exporter.normalize(exporter.conv(x, channels, 1280, 1), 1280))
    return exporter.classify(x, 1280)


def inverted_residual(
    exporter: Exporter, x: ir.Value, given: int, wanted: int, expansion: int, stride: int
) -> ir.Value:
    """Expand, filter each channel by itself, project; added to the input where the sizes are the same."""
    before, inner = x, given * expansion
    if expansion != 1:
        x = exporter.relu6(exporter.normalize(exporter.conv(x, given, inner, 1), inner))
    x = exporter.relu6(exporter.normalize(exporter.conv(x, inner, inner, 3, stride, inner), inner))
    x = exporter.normalize(exporter.conv(x, inner, wanted, 1), wanted)
    return exporter.op("Add", before, x) if stride == 1 and given == wanted else x


def resnet50(exporter: Exporter, image: ir.Value) -> ir.Value:
    """ResNet-50 with the stride in the 3 × 3 convolution."""
    x = exporter.op("Relu", exporter.normalize(exporter.conv(image, 3, 64, 7, 2), 64))
    x = exporter.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for inner, blocks, first in RESNET_STAGES:
        for number in range(blocks):
            x = bottleneck(exporter, x, channels, inner, first if number == 0 else 1)
            channels = 4 * inner
    return exporter.classify(x, channels)


def bottleneck(exporter: Exporter, x: ir.Value, given: int, inner: int, stride: int) -> ir.Value:
    """Narrow, filter, widen; added to the input, which is widened too where it must be."""
    y = exporter.op("Relu", exporter.normalize(exporter.conv(x, given, inner, 1), inner))
    y = exporter.op("Relu", exporter.normalize(exporter.conv(y, inner, inner, 3, stride), inner))
    y = exporter.normalize(exporter.conv(y, inner, 4 * inner, 1), 4 * inner)
    if given != 4 * inner or stride != 1:
        x = exporter.normalize(exporter.conv(x, given, 4 * inner, 1, stride), 4 * inner)
    return exporter.op("Relu", exporter.op("Add", x, y))


NETWORKS = {"mobilenet": mobilenet, "resnet50": resnet50}


def make_images(count: int, seed: int, side: int = SIDE) -> Floats:
    """Made-up pictures (count, 3, side, side) in [0, 1]: noise of several sizes of grain, as smooth as photographs."""
    return np.stack(list(_images(count, np.random.default_rng(seed), side)))


def _images(count: int, random: np.random.Generator, side: int) -> Iterator[Floats]:
    for _ in range(count):
        picture = np.zeros((3, side, side), np.float32)
        for grain in (4, 16, 56):
            coarse = random.random((3, side // grain + 1, side // grain + 1), np.float32)
            picture += np.kron(coarse, np.ones((grain, grain), np.float32))[:, :side, :side] * grain
        picture -= picture.min()
        yield picture / picture.max()


def make_network(name: str, seed: int = 0) -> ir.Model:
    """The network from `image` (batch, 3, 224, 224) in [0, 1] to `logits` (batch, 1000)."""
    measuring, _ = _graph(name, Exporter(None, seed), batch=MEASURED_IMAGES)
    session = onnxruntime.InferenceSession(
        ir.to_proto(measuring).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in measuring.graph.outputs]
    found = session.run(names, {"image": make_images(MEASURED_IMAGES, seed)})
    statistics = {str(key): np.ravel(array) for key, array in zip(names, found, strict=True)}
    return _graph(name, Exporter(statistics, seed), batch="batch")[0]


def _graph(name: str, exporter: Exporter, *, batch: int | str) -> tuple[ir.Model, ir.Value]:
    image = ir.val("image", ir.DataType.FLOAT, [batch, 3, SIDE, SIDE])
    logits = NETWORKS[name](exporter, image)
    logits.name, logits.shape = "logits", ir.Shape([batch, CLASSES])
    outputs = exporter.measured or [logits]
    graph = ir.Graph(
        [image],
        outputs,
        nodes=exporter.tape.nodes,
        initializers=exporter.tape.initializers,
        opset_imports={"": OPSET},
        name=name,
    )
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="fleetc make_convolutional_model"), logits


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the model; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(description="Write a convolutional network with made-up weights.")
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("output", type=Path, metavar="OUT.onnx")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same weights (0)")
    options = parser.parse_args(arguments)
    try:
        save(make_network(options.network, options.seed), options.output)
    except CompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.output}  {options.output.stat().st_size} bytes")
    return 0


def save(model: ir.Model, path: Path) -> None:
    """Write the checked model.

    Raises:
        OutputError: It cannot be written.
    """
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    try:
        path.write_bytes(proto.SerializeToString(deterministic=True))
    except OSError as error:
        raise OutputError(f"cannot write the model: {error.strerror}", where=str(path)) from error


if __name__ == "__main__":
    sys.exit(main())
