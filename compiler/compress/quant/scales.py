"""Scales that survive in the precision they are stored in: positive, finite, and exactly the number that was meant.

A filter of zeros has no range, and one of very small weights has a scale that is 0 in float16, which TensorRT refuses;
a scale that float16 rounds is another one than weights were rounded with.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

SMALLEST_SCALE = 2.0**-100
"""In float32. Smaller scales have reciprocals, or products with another scale, that are not finite normal numbers."""

_HALF: dict[str, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}

# the smallest normal number of float16, and the smallest of all
_NORMAL_HALF = 2.0**-14
_SMALLEST_HALF = 2.0**-24

_FAINT = 2.0**-12
"""Share of the largest scale below which a channel is faint: its weights are less than half a step of the others."""


def storable(scales: NDArray[np.float32], compute: str) -> NDArray[np.float32]:
    """The scales of one tensor, made positive, and numbers of the type that they will be stored in.

    1. A channel of zeros has the largest scale: every scale represents it, and this one is as good as the others'.
    2. In float16 a scale that is no normal number is exact to 2⁻²⁴ only. Faint channels get a larger one.
    3. A scale is rounded up, so that the largest weight is not clipped.

    Args:
        scales: ≥ 0, in float32.
        compute: Precision of what is not quantized, in which scales are stored: `fp32`, `fp16` or `bf16`.
    """
    largest = scales.max(initial=0.0)
    alive = np.where(scales > 0, scales, largest if largest > 0 else 1.0)
    floor = min(_NORMAL_HALF, max(largest * _FAINT, _SMALLEST_HALF)) if compute == "fp16" else SMALLEST_SCALE
    alive = np.maximum(alive, floor).astype(np.float32)
    if compute not in _HALF:
        return alive
    stored = alive.astype(_HALF[compute])
    above = np.nextafter(stored, _HALF[compute](np.inf))
    return np.where(stored.astype(np.float32) < alive, above, stored).astype(np.float32)
