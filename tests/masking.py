"""The other way to take a channel out: at full width, with zeros where it is read. What a real cut is compared with."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from compiler.compress.prune.groups import Ties, positions
from compiler.passes.values import constant_of


def mask_channels(model: ir.Model, ties: Ties, removed: Collection[int]) -> ir.Model:
    """A copy of the model in which nobody reads these channels: the weights that read them are zero."""
    copy = model.clone()
    for cut in ties.cuts:
        if cut.role == "reads":
            value = copy.graph.initializers[cut.initializer]
            weights = np.moveaxis(np.array(constant_of(value)), cut.axis, 0)
            weights[~positions(cut.ids, removed)] = 0
            zeroed = np.ascontiguousarray(np.moveaxis(weights, 0, cut.axis))
            value.const_value = ir.tensor(zeroed, dtype=value.dtype, name=value.name)
    return copy
