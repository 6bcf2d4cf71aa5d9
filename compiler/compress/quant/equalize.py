"""Cross-layer equalization: equal ranges of weights, for models that are quantized with one scale for many channels.

With r the largest absolute weight of a channel in the source and r′ in the readers, s = √(r / r′) makes both √(r·r′):
then no channel's range is wide in one layer because it is narrow in the next (M. Nagel et al., Data-Free Quantization
Through Weight Equalization and Bias Correction, 2019, section 4.1). Sites share layers, so it is repeated until factors
are near 1. The float model computes the same; see migrate.py for where it is possible.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.compress.quant.migrate import Floats, apply_factors, find_sites, reader_ranges, source_ranges
from compiler.passes.values import Names

# sites that share layers may work against each other, and never settle
ROUNDS = 20
NEAR = 0.01
"""Factors that differ from 1 by less than this end the iteration."""


def equalize(model: ir.Model) -> ir.Model:
    """A copy of the model with weight ranges equalized where that is possible."""
    copy = model.clone()
    names = Names(copy)
    # sites share layers, so one pass changes what another one balanced
    for _ in range(ROUNDS):
        moved = 0.0
        for site in find_sites(copy):
            factors = balance(source_ranges(site), reader_ranges(site))
            if np.abs(factors - 1.0).max() > NEAR:
                apply_factors(copy, site, factors, names)
            moved = max(moved, float(np.abs(factors - 1.0).max()))
        if moved <= NEAR:
            break
    return copy


def balance(source: Floats, readers: Floats) -> Floats:
    """The factors (C,) for ranges (C,) before and after; 1 where a channel is all zeros on one side."""
    good = (source > 0) & (readers > 0)
    ratio = np.where(good, source, 1.0) / np.where(good, readers, 1.0)
    return np.asarray(np.sqrt(ratio), np.float32)
