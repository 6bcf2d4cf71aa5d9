"""What an integer kernel computes, as data: which tensors, which window, which requantization.

Activations are int8 everywhere inside; a `uint8` tensor of zero point z is held as int8 with zero point z − 128.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

BLOCK = 16
"""Channels that lie together: one vector of int8."""
SLACK_BYTES = 32
"""What a kernel may read behind the last pixel of an image whose pixels are shorter than a vector."""

Dot: TypeAlias = Literal["smmla", "sdot", "widen", "generic", "amx_int8", "avx512_vnni", "avx_vnni"]
ARM_DOTS: tuple[Dot, ...] = ("smmla", "sdot", "widen")


@dataclass(frozen=True)
class Image:
    """How one tensor lies in memory.

    Args:
        batch: Images.
        channels: Channels of the model; `blocked` and `rows` pad them to a multiple of 16.
        height: Rows.
        width: Pixels of a row.
        layout: `blocked`: (batch, channels / 16, height, width, 16). `rows`: (width, channels), a matrix, its rows
            padded to a multiple of 16.
            `pixels`: (height, width, channels) and some bytes that may be read and mean nothing.
        origin: Row and column of the model's first pixel; those before it are padding, and `pixels` alone has any.
    """

    batch: int
    channels: int
    height: int
    width: int
    layout: Literal["blocked", "rows", "pixels"] = "blocked"
    origin: tuple[int, int] = (0, 0)

    @property
    def blocks(self) -> int:
        """Vectors of channels."""
        return -(-self.channels // BLOCK)

    @property
    def pixel_stride(self) -> int:
        """Elements from one pixel to the next."""
        if self.layout == "pixels":
            return self.channels
        return BLOCK if self.layout == "blocked" else self.blocks * BLOCK

    @property
    def row_stride(self) -> int:
        """Elements from one row to the next."""
        return self.width * self.pixel_stride

    @property
    def block_stride(self) -> int:
        """Elements from 16 channels of a pixel to its next 16."""
        return self.height * self.row_stride if self.layout == "blocked" else BLOCK

    @property
    def batch_stride(self) -> int:
        """Elements from one image to the next."""
        if self.layout == "blocked":
            return self.blocks * self.block_stride
        return self.height * self.row_stride + (SLACK_BYTES if self.layout == "pixels" else 0)

    @property
    def elements(self) -> int:
        """Elements of the whole, padding included."""
        return self.batch * self.batch_stride


@dataclass(frozen=True)
class Epilogue:
    """From the accumulator to y = clamp(round(f(v) / step) + zero_point), v = acc · scale + bias [+ residual · factor].

    Scale and bias are per channel and come as arrays; without activations the result's scale is divided into them.

    Args:
        quantized: Whether the result is int8; otherwise float32, and nothing is rounded.
        zero_point: Of the result, −128 to 127.
        low: Least result; of a float32 result in its own unit.
        high: Greatest result.
        residual_scale: Factor of the residual: its scale in units of the result; None where there is none.
        activations: f: expressions of `x`, as in `kernels.expressions`, one after the other.
        step: Scale of the result behind activations; 1 without.
    """

    quantized: bool = True
    zero_point: int = 0
    low: float = -128
    high: float = 127
    residual_scale: float | None = None
    activations: tuple[str, ...] = ()
    step: float = 1.0


@dataclass(frozen=True)
class ConvSpec:
    """Convolution, or a matrix product where the layout is `rows`.

    Args:
        source: The input, not padded (`pixels`: padded already).
        result: The output.
        kernel: Rows and columns of the window.
        strides: Steps of the window.
        dilations: Distance of its taps.
        pads: Top and left padding; the rest follows from the result's size.
        fill: What the padding holds: the input's zero point.
        wide: Whether a weight is −128, so that two products overflow int16.
        epilogue: What follows.
        depthwise: Whether each channel has its own window.
    """

    source: Image
    result: Image
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]
    fill: int
    wide: bool
    epilogue: Epilogue
    depthwise: bool = False

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of the input that the windows touch, padding included."""
        return _extent(self.result, self.kernel, self.strides, self.dilations)

    @property
    def padded(self) -> bool:
        """Whether a window reaches beyond the input."""
        return any(self.pads) or is_beyond(self.extent, self.source)


@dataclass(frozen=True)
class PoolSpec:
    """Maximum or sum over a window, channel by channel; without an epilogue, int8 maxima are handed on as they are."""

    source: Image
    result: Image
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]
    fill: int
    maximum: bool
    epilogue: Epilogue | None
    scale: float = 1.0
    bias: float = 0.0

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of the input that the windows touch, padding included."""
        return _extent(self.result, self.kernel, self.strides, (1, 1))

    @property
    def padded(self) -> bool:
        """Whether a window reaches beyond the input."""
        return any(self.pads) or is_beyond(self.extent, self.source)


def _extent(
    result: Image, kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int]
) -> tuple[int, int]:
    sizes = zip((result.height, result.width), strides, kernel, dilations, strict=True)
    rows, columns = ((size - 1) * stride + (taps - 1) * dilation + 1 for size, stride, taps, dilation in sizes)
    return rows, columns


def is_beyond(extent: tuple[int, int], source: Image) -> bool:
    """Whether rows or columns are read that the image does not have."""
    return extent[0] > source.height or extent[1] > source.width


@dataclass(frozen=True)
class ElementwiseSpec:
    """y = clamp(round(a · scale + bias [+ b · residual_scale]) + zero_point) of whole tensors."""

    elements: int
    scale: float
    bias: float
    epilogue: Epilogue


@dataclass(frozen=True)
class GateSpec:
    """y = clamp(round(f(a · g · scale) / step) + zero_point) of floats in blocks, g one number for each channel."""

    image: Image
    scale: float
    epilogue: Epilogue


@dataclass(frozen=True)
class PadSpec:
    """A larger image around the source, which starts at `offset` (channel, row, column)."""

    source: Image
    result: Image
    offset: tuple[int, int, int]
    fill: int


@dataclass(frozen=True)
class JoinSpec:
    """Images of batch 1, one after the other along the channels."""

    elements: int


@dataclass(frozen=True)
class PackSpec:
    """From the model's own layout (NCHW, or a matrix) to an image, quantized on the way.

    Args:
        source: The tensor, as batch, channels, height, width.
        dtype: `float32`, or `int8` and `uint8` where it is quantized already.
        result: The image.
        scale: Of the result.
        zero_point: Of the result.
    """

    source: tuple[int, int, int, int]
    dtype: str
    result: Image
    scale: float
    zero_point: int


@dataclass(frozen=True)
class UnpackSpec:
    """From an image to the model's own layout; to float32 by scale and zero point, or to `int8`, `uint8` as it is."""

    source: Image
    source_dtype: str
    dtype: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int

    @property
    def is_same(self) -> bool:
        """Whether the image's elements are those of the result in the same order."""
        image = self.source
        in_order = image.layout == "rows" or image.height * image.width == 1
        return self.source_dtype == self.dtype == "float32" and in_order and image.channels % BLOCK == 0


Spec: TypeAlias = ConvSpec | PoolSpec | ElementwiseSpec | GateSpec | PadSpec | JoinSpec | PackSpec | UnpackSpec
