"""Profiles and small models for the tests of the NVIDIA target."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from compiler.artifact import Artifact
from compiler.fleet.profile import HardwareProfile

Build = Callable[..., Artifact]


def gpu_profile(compute_capability: str = "8.9", **options: object) -> HardwareProfile:
    """A profile of a GPU of that compute capability."""
    given = {"compute_capability": compute_capability, **options}
    return HardwareProfile(schema=1, name="a-gpu", target="tensorrt", target_options=given)


def text_model(
    text: str, weights: Mapping[str, np.ndarray] | None = None, *, opset: int = 18, ir_version: int = 10
) -> ir.Model:
    """A model of ONNX text (graph only) and named weights."""
    proto = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> {text}')
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def conv_net(dtype: type = np.float32, *, channels: int = 4) -> ir.Model:
    """Convolution, ReLU and global pooling: `x` (batch, 3, 8, 8) to `y` (batch, channels, 1, 1)."""
    weights = np.random.default_rng(7).standard_normal((channels, 3, 3, 3)).astype(dtype)
    kind = "float" if dtype is np.float32 else "float16"
    body = "[conv] c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c) y = GlobalAveragePool(r)"
    signature = f"g ({kind}[batch, 3, 8, 8] x) => ({kind}[batch, {channels}, 1, 1] y)"
    return text_model(f"{signature} {{ {body} }}", {"w": weights})
