#!/usr/bin/env python3
"""Convert dlib's face recognition ResNet, shipped in PyPI's face_recognition_models, into ONNX.

    scripts/make_face_model.py face.onnx

The graph is what an exporter of a training framework would write: each layer is its own node, nothing is fused.
Where dlib adds two values of different sizes, it takes the larger size per dimension and reads zeros beyond the end of
the smaller one; here these zeros are explicit Pads.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.tape
from dlib_network import Affine, Conv, Floats, Join, Layer, Linear, Mark, Network, Pool, Relu, parse

from compiler.errors import CompilerError, InvalidModel, MissingError, OutputError

PACKAGE = "face_recognition_models"
WEIGHTS = "models/dlib_face_recognition_resnet_model_v1.dat"
INPUT_SCALE = 256.0
OPSET, IR_VERSION = 18, 10
METADATA = {
    "source": f"{Path(WEIGHTS).name} by Davis E. King, from PyPI's {PACKAGE}",
    "licence": "CC0-1.0",
    "channel_order": "RGB",
    "value_range": "0..255",
    "crop": "aligned face with 10 % of its width added on each side, 150 x 150 pixels",
    "output": "128-d embedding, not normalised",
}


@dataclass(frozen=True)
class Feature:
    """A value of the graph and its size without the batch: (C, H, W), or (C,) after the pictures are averaged."""

    value: ir.Value
    size: tuple[int, ...]


class Exporter:
    """The graph so far: one node for each call of `op`, named after its operator and its number."""

    def __init__(self) -> None:
        self.tape = onnx_ir.tape.Tape()

    def op(self, op: str, inputs: Sequence[ir.Value], size: tuple[int, ...], **attributes: int | list[int]) -> Feature:
        """Add a node, and return its output."""
        name = f"{op}_{len(self.tape.nodes)}"
        output = ir.val(f"{name}_out", ir.DataType.FLOAT, ["batch", *size])
        self.tape.op(op, inputs, attributes, name=name, output=output)
        return Feature(output, size)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Add an initializer, named after the node that will use it."""
        return self.tape.initializer(ir.tensor(array), name=f"{len(self.tape.nodes)}.{name}")

    def layer(self, x: Feature, layer: Layer) -> Feature:
        """Add the nodes of a layer with one input."""
        match layer:
            case Conv():
                return self.conv(x, layer)
            case Affine():
                return self.affine(x, layer)
            case Pool():
                return self.pool(x, layer)
            case Relu():
                return self.op("Relu", [x.value], x.size)
            case Linear():
                return self.linear(x, layer)
        raise InvalidModel(f"a {type(layer).__name__} cannot stand here")

    def per_channel(self, op: str, x: Feature, name: str, values: Floats) -> Feature:
        """Add an elementwise node with one constant per channel."""
        require(x, channels=values.size, rank=3)
        return self.op(op, [x.value, self.constant(name, values.reshape(1, -1, 1, 1))], x.size)

    def normalize(self, x: Feature, mean: Sequence[float]) -> Feature:
        """(x - mean) / 256"""
        x = self.per_channel("Sub", x, "mean", np.array(mean, np.float32))
        return self.op("Div", [x.value, self.constant("scale", np.array(INPUT_SCALE, np.float32))], x.size)

    def conv(self, x: Feature, conv: Conv) -> Feature:
        """A convolution with bias."""
        require(x, channels=conv.weight.shape[1], rank=3)
        window = conv.weight.shape[2]
        size = (len(conv.weight), *shrink(x.size[1:], window, conv.stride, conv.padding))
        weight, bias = self.constant("weight", conv.weight), self.constant("bias", conv.bias)
        strides, pads, kernel = [conv.stride] * 2, [conv.padding] * 4, [window] * 2
        return self.op("Conv", [x.value, weight, bias], size, kernel_shape=kernel, strides=strides, pads=pads)

    def affine(self, x: Feature, affine: Affine) -> Feature:
        """x * scale + shift"""
        return self.per_channel("Add", self.per_channel("Mul", x, "scale", affine.scale), "shift", affine.shift)

    def pool(self, x: Feature, pool: Pool) -> Feature:
        """A pool over windows, or over the whole picture, which leaves a vector."""
        require(x, channels=x.size[0], rank=3)
        if pool.window == 0:
            return self.op("Flatten", [self.op("GlobalAveragePool", [x.value], (x.size[0], 1, 1)).value], x.size[:1])
        size = (x.size[0], *shrink(x.size[1:], pool.window, pool.stride, 0))
        return self.op(pool.op, [x.value], size, kernel_shape=[pool.window] * 2, strides=[pool.stride] * 2)

    def linear(self, x: Feature, linear: Linear) -> Feature:
        """x @ weight"""
        require(x, channels=len(linear.weight), rank=1)
        return self.op("MatMul", [x.value, self.constant("weight", linear.weight)], linear.weight.shape[1:])

    def join(self, kept: Feature, x: Feature) -> Feature:
        """kept + x, each padded to the larger of both sizes."""
        for side in (kept, x):
            require(side, channels=side.size[0], rank=3)
        size = tuple(max(pair) for pair in zip(kept.size, x.size, strict=True))
        return self.op("Add", [self.grow(kept, size).value, self.grow(x, size).value], size)

    def grow(self, x: Feature, size: tuple[int, ...]) -> Feature:
        """`x` with zeros after the end of each dimension, up to `size`; itself where nothing lacks."""
        if x.size == size:
            return x
        lack = [wanted - have for wanted, have in zip(size, x.size, strict=True)]
        return self.op("Pad", [x.value, self.constant("pads", np.array([0] * 5 + lack, np.int64))], size)


def require(x: Feature, *, channels: int, rank: int) -> None:
    """Raise InvalidModel unless `x` has that many channels and, without the batch, dimensions."""
    if x.size[0] != channels or len(x.size) != rank:
        raise InvalidModel(f"a layer for {channels} channels in {rank} dimensions follows one of size {x.size}")


def shrink(sides: Sequence[int], window: int, stride: int, padding: int) -> tuple[int, ...]:
    """The sides of a picture after a window has moved over it."""
    shrunk = tuple((side + 2 * padding - window) // stride + 1 for side in sides)
    if min(shrunk) < 1:
        raise InvalidModel(f"a window of {window} x {window} does not fit a picture of {sides}")
    return shrunk


def walk(layers: Sequence[Layer], x: Feature, exporter: Exporter) -> Feature:
    """The output of all layers: what marks keep aside waits on a stack for its join."""
    kept: list[Feature] = []
    before: Layer | None = None
    for layer in layers:
        if isinstance(layer, Join):
            x = exporter.join(take_back(kept, 1), x)
        elif isinstance(layer, Mark) and isinstance(before, Mark):
            x = take_back(kept, 2)
        elif isinstance(layer, Mark):
            kept.append(x)
        else:
            x = exporter.layer(x, layer)
        before = layer
    if kept or len(x.size) != 1:
        raise InvalidModel("the network does not end in a vector")
    return x


def take_back(kept: list[Feature], place: int) -> Feature:
    """What was kept aside, counted from the newest, which is 1."""
    if len(kept) < place:
        raise InvalidModel("a residual block has lost its beginning")
    return kept.pop(-place)


def export(network: Network) -> ir.Model:
    """The network as an ONNX model from `image` (batch, 3, side, side) to `embedding` (batch, 128)."""
    size = (len(network.mean), network.side, network.side)
    image = ir.val("image", ir.DataType.FLOAT, ["batch", *size])
    exporter = Exporter()
    x = walk(network.layers, exporter.normalize(Feature(image, size), network.mean), exporter)
    x.value.name = "embedding"
    tape, opsets = exporter.tape, {"": OPSET}
    graph = ir.Graph(
        [image], [x.value], nodes=tape.nodes, initializers=tape.initializers, opset_imports=opsets, name="dlib_face"
    )
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="fleetc make_face_model")


def find_weights() -> Path:
    """dlib's file inside the installed package, which is not imported: its code needs the removed pkg_resources."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingError(f"the package {PACKAGE} is not installed", remedy="pip install 'fleetc[face]'")
    return Path(spec.origin).parent / WEIGHTS


def make_face_model(weights: Path) -> bytes:
    """The ONNX file made of dlib's weights; the same weights always give the same bytes.

    Raises:
        InvalidModel: The file of weights is damaged, or holds another network.
        MissingError: There is no such file.
    """
    try:
        data = weights.read_bytes()
    except OSError as error:
        raise MissingError(f"cannot read the weights: {error.strerror}", where=str(weights)) from error
    model = export(parse(data, str(weights)))
    model.metadata_props.update(METADATA, source_sha256=hashlib.sha256(data).hexdigest())
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString(deterministic=True))


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OutputError(f"cannot write the file: {error.strerror}", where=str(path)) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the model; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(description="Convert dlib's face recognition ResNet into ONNX.")
    parser.add_argument("output", type=Path, metavar="OUT.onnx")
    parser.add_argument("--weights", type=Path, help=f"dlib's file; the one inside {PACKAGE} if not given")
    options = parser.parse_args(arguments)
    try:
        model = make_face_model(options.weights or find_weights())
        write_file(options.output, model)
    except CompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.output}  {len(model)} bytes  sha256:{hashlib.sha256(model).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
