"""How a target runs operators in few bits, as data: what the quantizer must put into the graph for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

BITS_KEY = "fleetc.bits"
"""Metadata of a DequantizeLinear of weights in blocks: bits that its integers need."""

Granularity: TypeAlias = Literal["tensor", "channel", "block"]


@dataclass(frozen=True)
class TensorFormat:
    """One tensor's number format.

    Args:
        dtype: ONNX element type in lower case: `int8`, `uint8`, `int4`, `uint4`, `float8e4m3fn`.
        symmetric: Whether the zero point is 0 (128 for `uint8`).
        granularity: One scale per tensor, per output channel, or per block of `block_size` inputs.
        narrow: Whether the lowest value is left out, so that the range is as wide below zero as above.
        block_size: Elements that share a scale; 0 where the granularity is another.
        positive: Element type instead, with zero point 0, where no observed value is below zero; empty: the same.
    """

    dtype: str
    symmetric: bool = True
    granularity: Granularity = "tensor"
    narrow: bool = False
    block_size: int = 0
    positive: str = ""


@dataclass(frozen=True)
class BlockFormat:
    """Weights in few bits, with a scale for each block of inputs of each output.

    Args:
        bits: Of one weight, 2 to 8.
        block: Inputs that share a scale; 0: all inputs of an output.
        symmetric: Whether the zero point is the middle of the range, and is not stored.
        scale_bits: Of a stored scale.
    """

    bits: int
    block: int = 32
    symmetric: bool = False
    scale_bits: int = 16

    def __str__(self) -> str:
        block = f"blocks of {self.block}" if self.block else "by output"
        return f"{self.bits} bits, {block}" + (", symmetric" if self.symmetric else "")

    def blocks_of(self, inputs: int) -> int:
        """How many scales an output has."""
        return -(-inputs // self.block) if self.block else 1

    def bytes_of(self, outputs: int, inputs: int) -> int:
        """Bytes of a matrix: weights, scales and zero points."""
        each = self.scale_bits + (0 if self.symmetric else self.bits)
        return outputs * (-(-inputs * self.bits // 8) + -(-self.blocks_of(inputs) * each // 8))


@dataclass(frozen=True)
class WeightChoices:
    """The formats a target reads weights in while it computes in floating point, for a search to choose from by layer.

    Args:
        products: Of weights that activations are multiplied with.
        tables: Of a table of vectors that tokens are looked up in, and of a product that shares its weights.
    """

    products: tuple[BlockFormat, ...]
    tables: tuple[BlockFormat, ...]


@dataclass(frozen=True)
class OpScheme:
    """How one operator runs in few bits.

    An operator without `weights` runs so only where a quantized operator reads its result: by itself it would gain
    nothing.

    Args:
        inputs: Input index → format, for inputs that are computed at run time. A value that several operators read
            has the format of the last of them.
        weights: Input index → format, for inputs that are constants.
        float_bias: Whether its bias stays float32; otherwise it becomes int32 of scale input × weight.
        fuses: Operators that may follow it before its result is quantized, in one kernel (`Relu`, `Clip`). `Add` among
            them: the sum with another value is computed in that kernel, and only the other value is quantized.
        quantizes_output: Whether its result is quantized where a quantized operator reads it; otherwise it hands on
            what it was given (`MaxPool`, `Reshape`: same scale in and out).
    """

    inputs: Mapping[int, TensorFormat] = field(default_factory=dict)
    weights: Mapping[int, TensorFormat] = field(default_factory=dict)
    float_bias: bool = True
    fuses: tuple[str, ...] = ()
    quantizes_output: bool = True


@dataclass(frozen=True)
class QuantScheme:
    """Everything the quantizer needs to know of a target and a precision.

    Args:
        name: For keys and messages: two device classes with schemes that are equal share the quantized model.
        ops: Operator → how it runs quantized; an operator that is missing stays in floating point.
        compute: Precision of what is not quantized: `fp32`, `fp16`, `bf16`.
        needs_calibration: Whether ranges of activations must be observed on data.
        min_inputs: Terms of a product (inputs × window) from which a Conv, Gemm or MatMul is quantized; below it the
            work of quantizing its input outweighs the gain.
        weights: Formats of weights alone, chosen layer by layer under a limit of bytes; `ops` is empty then.
        rounds_activations: Whether products of such weights are summed in integers: what they read is rounded to 8 bits
            while the model runs, block by block as the weights are.
        rounds_cache: Whether keys and values are rounded to 8 bits in a language model's cache, by head and token.
        times: Bits of weights → time of a product of them against one of others, as the target's kernels take it: a
            limit on speed is held by it. Empty where the target says nothing.
    """

    name: str
    ops: Mapping[str, OpScheme]
    compute: str = "fp32"
    needs_calibration: bool = True
    min_inputs: int = 0
    weights: WeightChoices | None = None
    rounds_activations: bool = False
    rounds_cache: bool = False
    times: Mapping[int, float] = field(default_factory=dict)
