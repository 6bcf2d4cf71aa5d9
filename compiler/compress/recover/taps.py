"""Feature taps: intermediate values of the pruned model that are compared with the original's, and their channels."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.compress.prune.groups import Ties, positions

FeatureTaps = Mapping[str, NDArray[np.int64]]
"""Value → the channels, along axis 1 of the original's value, that the pruned model still has."""

_MOST = 8
"""Feature taps of a model. More add computation and little information: neighbouring layers err alike."""


def choose_taps(pruned: ir.Model, ties: Ties, removed: Collection[int]) -> FeatureTaps:
    """Values spread evenly over the graph: results of additions, where a network has them, else of its layers.

    Args:
        pruned: What `cut_channels` made.
        ties: The ties of the model it was made of.
        removed: The classes that were cut.
    """
    for operators in (("Add", "Sum"), ("Conv", "Gemm", "MatMul")):
        names = [
            str(node.outputs[0].name)
            for node in pruned.graph
            if node.op_type in operators
            # outputs are in the loss already
            and not node.outputs[0].is_graph_output()
            and 1 in ties.labels.get(str(node.outputs[0].name), {})
        ]
        if names:
            chosen = [names[place] for place in sorted({*np.linspace(0, len(names) - 1, _MOST).round().astype(int)})]
            return {name: np.flatnonzero(positions(ties.labels[name][1], removed)) for name in chosen}
    return {}
