#!/usr/bin/env python3
"""Write a transformer encoder with made-up weights: a large model to build, without a download.

    scripts/make_transformer_model.py encoder.onnx --size-mb 1000

The graph is what PyTorch's exporter writes for a BERT-like encoder: linear layers as MatMul + Add, GELU by Erf,
attention with its Reshapes and Transposes, sizes computed from Shape in every place that needs them,
LayerNormalization in its parts below opset 17. The weights are drawn from fixed seeds when they are written, one
tensor at a time, into a file beside the model.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.tape

from compiler.errors import CompilerError, OutputError, UsageError

IR_VERSION = 8
LAYER_NORMALIZATION_SINCE = 17
OPSETS = range(13, 18)
MEGABYTE = 10**6
HEAD_WIDTH = 64
VOCABULARY = 30_000
EPSILON = 1e-12


@dataclass(frozen=True)
class Encoder:
    """The size of a transformer encoder.

    Args:
        layers: Count of blocks of attention and feed-forward.
        width: Length of the vector of a token, a multiple of `heads`.
        heads: Count of attention heads.
        vocabulary: Count of token ids.
        positions: Longest sequence.
        opset: 13 to 17; at 17, LayerNormalization is one operator.
        seed: The same seed gives the same weights.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int
    positions: int = 512
    opset: int = 14
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.heads, self.vocabulary, self.positions) < 1 or self.width % self.heads:
            raise UsageError(f"every size must be at least 1, and the width a multiple of the heads: {self}")
        if self.opset not in OPSETS:
            raise UsageError(f"opset {self.opset} is not one of {OPSETS.start} to {OPSETS.stop - 1}")

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in float32."""
        block = 12 * self.width**2 + 13 * self.width
        return 4 * (self.layers * block + self.width * (self.vocabulary + self.positions + 2))


def draw(name: str, shape: tuple[int, ...], centre: float, seeds: tuple[int, ...]) -> ir.TensorProtocol:
    """A weight with values around `centre`, the same for the same seeds."""
    values = np.random.default_rng(seeds).standard_normal(shape, np.float32)
    values *= np.float32(0.02)
    values += np.float32(centre)
    return ir.tensor(values, name=name)


class Exporter:
    """The graph so far; each name begins with the module that it belongs to."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.tape = onnx_ir.tape.Tape()
        self.module = "embeddings"

    def op(self, op: str, *inputs: ir.Value, **attributes: int | float | list[int] | ir.TensorProtocol) -> ir.Value:
        """Add a node, and return its output."""
        name = f"/{self.module}/{op}_{len(self.tape.nodes)}"
        return self.tape.op(op, inputs, attributes, name=name, output=ir.val(f"{name}_output_0"))

    def constant(self, value: int | float | list[int] | list[list[int]]) -> ir.Value:
        """Add a Constant node: int64 for integers, float32 for others."""
        kind = np.float32 if isinstance(value, float) else np.int64
        return self.op("Constant", value=ir.tensor(np.array(value, kind)))

    def weight(self, name: str, *shape: int, centre: float = 0.0) -> ir.Value:
        """Add an initializer whose values are drawn when somebody asks for them."""
        full_name = f"{self.module.replace('/', '.')}.{name}"
        values = partial(draw, full_name, shape, centre, (self.encoder.seed, len(self.tape.initializers)))
        lazy = ir.LazyTensor(values, ir.DataType.FLOAT, ir.Shape(shape), name=full_name)
        return self.tape.initializer(lazy, name=full_name)

    def linear(self, x: ir.Value, name: str, inputs: int, outputs: int) -> ir.Value:
        """x @ weight + bias"""
        product = self.op("MatMul", x, self.weight(f"{name}.weight", inputs, outputs))
        return self.op("Add", self.weight(f"{name}.bias", outputs), product)

    def normalize(self, x: ir.Value, name: str) -> ir.Value:
        """Layer normalisation over the last dimension."""
        width = self.encoder.width
        scale, shift = self.weight(f"{name}.weight", width, centre=1.0), self.weight(f"{name}.bias", width)
        if self.encoder.opset >= LAYER_NORMALIZATION_SINCE:
            return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=EPSILON)
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        variance = self.op("ReduceMean", self.op("Pow", centred, self.constant(2.0)), axes=[-1])
        deviation = self.op("Sqrt", self.op("Add", variance, self.constant(EPSILON)))
        return self.op("Add", self.op("Mul", self.op("Div", centred, deviation), scale), shift)

    def size(self, x: ir.Value, axis: int) -> ir.Value:
        """The size of one dimension, as a vector of one element."""
        scalar = self.op("Gather", self.op("Shape", x), self.constant(axis), axis=0)
        return self.op("Unsqueeze", scalar, self.constant([0]))

    def reshape(self, x: ir.Value, *last: int) -> ir.Value:
        """`x` with its batch and sequence kept and `last` for the dimensions after them."""
        shape = [self.size(x, 0), self.size(x, 1), *(self.constant([size]) for size in last)]
        return self.op("Reshape", x, self.op("Concat", *shape, axis=0))

    def embed(self, tokens: ir.Value) -> ir.Value:
        """The sum of each token's and each position's vector, normalised."""
        encoder = self.encoder
        words = self.op("Gather", self.weight("word.weight", encoder.vocabulary, encoder.width), tokens)
        numbers = self.constant([list(range(encoder.positions))])
        numbers = self.op("Slice", numbers, self.constant([0]), self.size(tokens, 1), self.constant([1]))
        places = self.op("Gather", self.weight("position.weight", encoder.positions, encoder.width), numbers)
        return self.normalize(self.op("Add", words, places), "norm")

    def attend(self, x: ir.Value) -> ir.Value:
        """Multi-head attention of every token to every token."""
        width, heads = self.encoder.width, self.encoder.heads
        query, key, value = (
            self.op("Transpose", self.reshape(self.linear(x, name, width, width), heads, width // heads), perm=order)
            for name, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
        )
        scores = self.op("Div", self.op("MatMul", query, key), self.constant(math.sqrt(width // heads)))
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), value)
        joined = self.reshape(self.op("Transpose", mixed, perm=[0, 2, 1, 3]), width)
        return self.linear(joined, "output", width, width)

    def gelu(self, x: ir.Value) -> ir.Value:
        """x * (1 + erf(x / sqrt(2))) * 0.5"""
        erf = self.op("Erf", self.op("Div", x, self.constant(math.sqrt(2))))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, self.constant(1.0))), self.constant(0.5))

    def feed_forward(self, x: ir.Value) -> ir.Value:
        """Two linear layers with GELU between them."""
        width = self.encoder.width
        return self.linear(self.gelu(self.linear(x, "up", width, 4 * width)), "down", 4 * width, width)

    def block(self, x: ir.Value, number: int) -> ir.Value:
        """Attention and feed-forward, each added to its input and normalised."""
        self.module = f"layer.{number}/attention"
        x = self.normalize(self.op("Add", self.attend(x), x), "norm")
        self.module = f"layer.{number}/feed_forward"
        return self.normalize(self.op("Add", self.feed_forward(x), x), "norm")


def make_transformer(encoder: Encoder) -> ir.Model:
    """An encoder from `tokens` (batch, sequence), int64, to `hidden` (batch, sequence, width), float32.

    Its weights are drawn anew each time they are asked for, and are not held in memory.
    """
    tokens = ir.val("tokens", ir.DataType.INT64, ["batch", "sequence"])
    exporter = Exporter(encoder)
    x = exporter.embed(tokens)
    for number in range(encoder.layers):
        x = exporter.block(x, number)
    x.name, x.dtype, x.shape = "hidden", ir.DataType.FLOAT, ir.Shape(["batch", "sequence", encoder.width])
    tape = exporter.tape
    opsets = {"": encoder.opset}
    graph = ir.Graph(
        [tokens], [x], nodes=tape.nodes, initializers=tape.initializers, opset_imports=opsets, name="encoder"
    )
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="fleetc make_transformer_model")


def encoder_of(size_mb: int, *, width: int, opset: int) -> Encoder:
    """The encoder of that width whose weights come nearest to `size_mb`.

    Raises:
        UsageError: Even one layer is far larger.
    """
    if width < HEAD_WIDTH or width % HEAD_WIDTH:
        raise UsageError(f"--width is {width}, and must be a multiple of {HEAD_WIDTH}")
    one, two = (Encoder(layers, width, width // HEAD_WIDTH, VOCABULARY, opset=opset) for layers in (1, 2))
    layers = 1 + round((size_mb * MEGABYTE - one.weight_bytes) / (two.weight_bytes - one.weight_bytes))
    if layers < 1:
        smallest = math.ceil(one.weight_bytes / MEGABYTE)
        raise UsageError(f"--size-mb is {size_mb}, and must be at least {smallest} with --width {width}")
    return Encoder(layers, width, width // HEAD_WIDTH, VOCABULARY, opset=opset)


def save(model: ir.Model, path: Path) -> None:
    """Write the model, and its weights into `path`.data, one tensor in memory at a time."""
    try:
        ir.save(model, path, external_data=path.name + ".data", size_threshold_bytes=1024)
    except OSError as error:
        raise OutputError(f"cannot write the model: {error.strerror}", where=str(path)) from error
    onnx.checker.check_model(str(path))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the model; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(description="Write a transformer encoder with made-up weights.")
    parser.add_argument("output", type=Path, metavar="OUT.onnx")
    parser.add_argument("--size-mb", type=int, default=1000, help="megabytes of weights, nearly (1000)")
    parser.add_argument("--width", type=int, default=1024, help="a multiple of 64 (1024)")
    parser.add_argument("--opset", type=int, default=14, help="13 to 17 (14)")
    options = parser.parse_args(arguments)
    try:
        encoder = encoder_of(options.size_mb, width=options.width, opset=options.opset)
        save(make_transformer(encoder), options.output)
    except CompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.output}  {encoder.layers} layers  {encoder.weight_bytes} bytes of weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
