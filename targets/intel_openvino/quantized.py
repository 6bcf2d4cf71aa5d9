"""How OpenVINO's CPU plugin runs operators in 8 bits, as data.

Convolutions and products take unsigned or signed activations without zero points (those cost a pass over the weights'
sums) and signed weights per channel. Both inputs of an addition are quantized: then it is computed in the kernel of
the convolution before it and reads one byte per element. Biases stay float.
"""

from __future__ import annotations

from compiler.target import BlockFormat, OpScheme, QuantScheme, TensorFormat, WeightChoices

_MOVING = TensorFormat("int8", positive="uint8")
_WEIGHT = TensorFormat("int8", granularity="channel", narrow=True)
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "PRelu")

_PRODUCT = OpScheme({0: _MOVING}, {1: _WEIGHT}, fuses=_ACTIVATIONS)
_SAME_SCALE = OpScheme({0: _MOVING}, quantizes_output=False)
_ELEMENTWISE = OpScheme({0: _MOVING, 1: _MOVING}, fuses=_ACTIVATIONS)
_POOL = OpScheme({0: _MOVING})

INT8 = QuantScheme(
    "openvino-int8",
    {
        "Conv": _PRODUCT,
        "ConvTranspose": _PRODUCT,
        "Gemm": _PRODUCT,
        "MatMul": OpScheme({0: _MOVING, 1: _MOVING}, {1: _WEIGHT}, fuses=_ACTIVATIONS),
        "Add": _ELEMENTWISE,
        "AveragePool": _POOL,
        "GlobalAveragePool": _POOL,
        **dict.fromkeys(
            ("Concat", "Flatten", "MaxPool", "Pad", "Reshape", "Squeeze", "Transpose", "Unsqueeze"), _SAME_SCALE
        ),
    },
)

_WIDE = BlockFormat(8, 64, symmetric=True)
_NARROW = BlockFormat(4, 32)

WEIGHTS = QuantScheme(
    "openvino-weights", {}, weights=WeightChoices((_NARROW, BlockFormat(4, 64), _WIDE), (_WIDE, _NARROW))
)
"""Weights of language models that the plugin multiplies without expanding them; it has no other bits than 4 and 8."""
