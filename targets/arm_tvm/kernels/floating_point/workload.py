"""A workload and a choice: what a kernel computes, and one way to compute it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ConvWorkload:
    """A 2-D convolution and what follows it in registers.

    Args:
        layout: `blocked`: source (N, C/L, H, W, L); `planar`: source (N, C, H, W); `rows`: source (W, C), a matrix
            whose rows are the columns of an image of one row. The result is `rows` for `rows`, else `blocked`.
        dtype: Element type of source, result, weights and sums.
        batch, channels, height, width: The source's logical sizes.
        filters: Output channels.
        kernel, strides, dilations: Rows, columns.
        padding: Top, left, bottom, right.
        groups: Parts of the channels that are convolved by themselves; `channels` where each is.
        epilogue: Steps after the sum and its bias, in order: `add` (a residual of the result's shape), `relu`,
            `clip LOW HIGH`, or an expression as in `expressions`.
        weights: Element type of the weights in memory; empty: `dtype`. With bfloat16 the source is rounded to it too.
    """

    layout: str
    dtype: str
    batch: int
    channels: int
    height: int
    width: int
    filters: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    epilogue: tuple[str, ...] = ()
    weights: str = ""

    @property
    def result(self) -> tuple[int, int]:
        """Rows and columns of the result."""
        top, left, bottom, right = self.padding
        sizes = (self.height + top + bottom, self.width + left + right)
        reach = [dilation * (size - 1) + 1 for dilation, size in zip(self.dilations, self.kernel, strict=True)]
        rows, columns = ((n - r) // s + 1 for n, r, s in zip(sizes, reach, self.strides, strict=True))
        return rows, columns

    @property
    def digest(self) -> str:
        """Names the workload in tuning logs and plans."""
        # Sorted keys: records in tuning logs must be found again when fields change their order.
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        fields = {name: value for name, value in asdict(self).items() if name != "weights" or value}
        return {"family": "conv2d", **fields}


@dataclass(frozen=True)
class Choice:
    """One way to compute a workload.

    Args:
        family: Name of the module in `targets.arm_tvm.kernels.floating_point`.
        parameters: The family's own, by name.
        cost: Predicted instructions; what choices are ordered by.
        weight_bytes: Of the weights as they are packed for it.
    """

    family: str
    parameters: Mapping[str, int] = field(default_factory=dict)
    cost: float = 0.0
    weight_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """What a tuning record keeps: the choice, not the prediction."""
        return {"family": self.family, **self.parameters}


def blocks(channels: int, lanes: int) -> int:
    """Blocks of `lanes` channels that hold all of them."""
    return -(-channels // lanes)


def packed_bytes(work: ConvWorkload, lanes: int, positions: int, *, sources: int) -> int:
    """Bytes of weights that are packed in whole blocks of channels.

    Args:
        work: What they are of.
        lanes: Channels of a block.
        positions: Weights per pair of channels: the window's size, or that of its transform.
        sources: Channels that each filter reads, filled up to whole blocks.
    """
    return blocks(work.filters, lanes) * lanes * sources * positions * _ITEM_BYTES[work.weights or work.dtype]


_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
