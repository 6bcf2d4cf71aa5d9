"""A layer as a matrix product (im2col): rows of its input and rows of its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.model.numerics import Array
from compiler.passes.values import constant_of

Matrix = NDArray[np.float64]


def as_matrix(array: NDArray[Any]) -> Matrix:
    """The array in float64; numpy's type hints for its solvers do not state the element type."""
    return np.asarray(array, np.float64)


def squares(array: Array) -> float:
    """The sum of the squares of its elements, in float64."""
    return float(np.square(np.asarray(array, np.float64)).sum())


@dataclass(frozen=True)
class Layer:
    """A layer whose weights can be solved by least squares.

    Args:
        node: Name of its first output, which is also the value that is matched.
        source: Name of the value it reads.
        weights: Name of its weights.
        bias: Name of its bias; empty without one.
        kernel: Sizes of the filter; empty for a matrix product.
        strides: Steps of the filter.
        pads: Zeros before and after every spatial axis.
        dilations: Steps inside the filter.
        flipped: Whether the weights of a matrix product are (N, K).
    """

    node: str
    source: str
    weights: str
    bias: str
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    flipped: bool = False

    def matrix(self, weights: Array) -> Matrix:
        """Weights as (K, N): K inputs of one output, channel by channel."""
        if self.kernel:
            return weights.reshape(len(weights), -1).T.astype(np.float64)
        return (weights.T if self.flipped else weights).astype(np.float64)

    def weights_of(self, matrix: Matrix, like: Array) -> Array:
        """The inverse of `matrix`, in the shape and type of `like`."""
        turned = matrix.T if self.kernel or self.flipped else matrix
        return np.ascontiguousarray(turned.reshape(like.shape).astype(like.dtype))


def layer_of(node: ir.Node) -> Layer | None:
    """The layer of a node; None if its weights cannot be solved for (groups, padding by name, no constant weights)."""
    weights, get = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None, node.attributes
    if weights is None or not node.outputs[0].name or not node.inputs[0]:
        return None
    bias = str(node.inputs[2].name) if len(node.inputs) > 2 and node.inputs[2] is not None else ""
    common = (str(node.outputs[0].name), str(node.inputs[0].name), str(node.inputs[1].name), bias)  # type: ignore[union-attr]
    if node.op_type == "Conv" and weights.ndim == 4:
        if get.get_int("group", 1) != 1 or get.get_string("auto_pad", "NOTSET") != "NOTSET":
            return None
        ones = (1, 1)
        return Layer(
            *common,
            kernel=weights.shape[2:],
            strides=tuple(get.get_ints("strides", ones)),
            pads=tuple(get.get_ints("pads", (0, 0, 0, 0))),
            dilations=tuple(get.get_ints("dilations", ones)),
        )
    plain = get.get_float("alpha", 1.0) == 1.0 and get.get_float("beta", 1.0) == 1.0
    if node.op_type == "Gemm" and not get.get_int("transA", 0) and plain:
        return Layer(*common, flipped=get.get_int("transB", 0) != 0)
    return Layer(*common) if node.op_type == "MatMul" and weights.ndim == 2 else None


def sample_rows(
    layer: Layer, read: Array, outputs: Array, *, per_item: int, random: np.random.Generator
) -> tuple[Matrix, Matrix]:
    """Rows (R, K) of the input at sampled positions, and the outputs (R, N) there.

    Args:
        layer: The layer.
        read: Its input, (B, C, H, W) or (…, K).
        outputs: Its output, (B, O, H', W') or (…, N); may be that of another model's layer of the same name.
        per_item: Most positions of one item that are sampled.
        random: Generator for the positions.
    """
    if not layer.kernel:
        return _take(
            read.reshape(-1, read.shape[-1]), outputs.reshape(-1, outputs.shape[-1]), per_item * len(read), random
        )
    top, left, bottom, right = layer.pads
    padded = np.pad(read, ((0, 0), (0, 0), (top, bottom), (left, right)))
    height, width = outputs.shape[2:]
    count = min(per_item, height * width)
    places = np.stack([random.permutation(height * width)[:count] for _ in range(len(read))])
    rows, columns = places // width, places % width
    item = np.arange(len(read))[:, None]
    ys = rows[..., None] * layer.strides[0] + np.arange(layer.kernel[0]) * layer.dilations[0]
    xs = columns[..., None] * layer.strides[1] + np.arange(layer.kernel[1]) * layer.dilations[1]
    patches = padded[item[..., None, None], :, ys[..., :, None], xs[..., None, :]]  # (B, R, kh, kw, C)
    inputs = np.moveaxis(patches, -1, 2).reshape(len(read) * count, -1)
    return inputs.astype(np.float64), outputs[item, :, rows, columns].reshape(len(read) * count, -1).astype(np.float64)


def _take(inputs: Array, outputs: Array, count: int, random: np.random.Generator) -> tuple[Matrix, Matrix]:
    chosen = random.permutation(len(inputs))[:count]
    return inputs[chosen].astype(np.float64), outputs[chosen].astype(np.float64)
