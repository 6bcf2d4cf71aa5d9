"""What the windows of an integer convolution read of an image, as runs of words of four inputs."""

from __future__ import annotations

from targets.arm_tvm.kernels.integer.specs import ConvSpec
from targets.arm_tvm.kernels.runs import Runs


def runs_of(spec: ConvSpec) -> Runs:
    """The runs of a convolution or matrix product."""
    height, width = spec.kernel
    if spec.source.layout == "pixels":
        # A row's last word is filled up with weights of zero.
        return Runs(1, height, 1, -(-width * spec.source.channels // 4))
    if spec.source.layout == "rows":
        return Runs(1, 1, 1, 4 * spec.source.blocks)
    return Runs(spec.source.blocks, height, *((width, 4) if spec.dilations[1] != 1 else (1, 4 * width)))
