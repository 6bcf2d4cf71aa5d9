"""The named lists of passes, read aloud."""

from __future__ import annotations

from compiler.graph import Pass
from compiler.passes.infer_shapes import INFER_SHAPES
from compiler.passes.remove_dead_nodes import REMOVE_DEAD_NODES

PORTABLE: tuple[Pass, ...] = (
    INFER_SHAPES,
    REMOVE_DEAD_NODES,
)
"""From the imported model to the border model, float32 throughout."""
