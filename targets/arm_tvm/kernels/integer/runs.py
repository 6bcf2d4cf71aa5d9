"""What the windows of an integer convolution read of an image, as runs of words of four inputs."""

from __future__ import annotations

from dataclasses import replace

from targets.arm_tvm.kernels.integer.specs import BLOCK, ConvSpec, Dot
from targets.arm_tvm.kernels.integer.vectors import vectors_of
from targets.arm_tvm.kernels.runs import Runs

MANY_BLOCKS = 8
"""Blocks of results that read a pixel often enough to repay its copy: with 4 it took longer, with 15 a quarter less."""
LINE_BYTES = 64
"""Of memory, as caches hold it."""
MOST_PADDING = 1.15
"""Times the bytes of weights, which then have zeros for what is filled up."""


def as_multiplied(spec: ConvSpec, dot: Dot) -> ConvSpec:
    """The convolution as it is multiplied: for AMX that of one pixel reads all channels of a pixel as one run.

    In blocks they would be runs of 16 bytes, where a row of a tile has 64 and takes as long. The kernel copies them,
    where that is cheap to whole lines of memory: a row across two lines takes twice as long to load.
    """
    image = spec.source
    single = spec.kernel == (1, 1) and not spec.padded and not spec.depthwise
    worthwhile = image.blocks > 1 and spec.result.blocks >= MANY_BLOCKS
    if not vectors_of(dot).tiled or not single or image.layout != "blocked" or not worthwhile:
        return spec
    whole = -(-image.channels // LINE_BYTES) * LINE_BYTES
    channels = whole if whole <= MOST_PADDING * image.blocks * BLOCK else image.channels
    return replace(spec, source=replace(image, layout="rows", channels=channels))


def runs_of(spec: ConvSpec) -> Runs:
    """The runs of a convolution or matrix product, as it is multiplied."""
    height, width = spec.kernel
    if spec.source.layout == "pixels":
        # A row's last word is filled up with weights of zero.
        return Runs(1, height, 1, -(-width * spec.source.channels // 4))
    if spec.source.layout == "rows":
        return Runs(1, 1, 1, 4 * spec.source.blocks)
    return Runs(spec.source.blocks, height, *((width, 4) if spec.dilations[1] != 1 else (1, 4 * width)))
