"""How TensorRT runs operators in few bits, as data.

Symmetric formats only. A Q/DQ on an int32 bias is refused, so biases stay float; what is not quantized is computed in
float16. The addition of a residual is computed in the kernel of the convolution before it, which reads the other
operand quantized.
"""

from __future__ import annotations

from compiler.target import OpScheme, QuantScheme, TensorFormat

INT4_BLOCK = 128
"""Weights along the summed dimension that share a scale."""

_ACTIVATIONS = ("Relu", "Clip")


def _eight_bits(name: str, dtype: str, *, pools: bool) -> QuantScheme:
    moving = TensorFormat(dtype)
    weight = TensorFormat(dtype, granularity="channel")
    product = OpScheme({0: moving}, {1: weight}, fuses=_ACTIVATIONS)
    convolution = OpScheme({0: moving}, {1: weight}, fuses=(*_ACTIVATIONS, "Add"))
    same_scale = OpScheme({0: moving}, quantizes_output=False)
    handing_on = ("Concat", "Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze") if pools else ()
    return QuantScheme(
        name,
        {
            "Conv": convolution,
            "Gemm": product,
            "MatMul": OpScheme({0: moving, 1: moving}, {1: weight}, fuses=_ACTIVATIONS),
            **({"Add": OpScheme({0: moving, 1: moving}, fuses=_ACTIVATIONS)} if pools else {}),
            **({"AveragePool": OpScheme({0: moving}), "GlobalAveragePool": OpScheme({0: moving})} if pools else {}),
            **dict.fromkeys(handing_on, same_scale),
        },
        compute="fp16",
    )


INT8 = _eight_bits("tensorrt-int8", "int8", pools=True)
FP8 = _eight_bits("tensorrt-fp8", "float8e4m3fn", pools=False)

_BLOCKS = OpScheme(weights={1: TensorFormat("int4", granularity="block", block_size=INT4_BLOCK)})
INT4_WEIGHTS = QuantScheme(
    "tensorrt-int4-weights", {"Gemm": _BLOCKS, "MatMul": _BLOCKS}, compute="fp16", needs_calibration=False
)
