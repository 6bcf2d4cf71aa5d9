"""The named lists of passes, read aloud."""

from __future__ import annotations

from compiler.graph import Pass
from compiler.passes.fold_constants import FOLD_CONSTANTS
from compiler.passes.infer_shapes import INFER_SHAPES
from compiler.passes.merge_casts import MERGE_CASTS
from compiler.passes.merge_duplicates import MERGE_DUPLICATES
from compiler.passes.merge_reshapes import MERGE_RESHAPES
from compiler.passes.merge_transposes import MERGE_TRANSPOSES
from compiler.passes.remove_dead_nodes import REMOVE_DEAD_NODES
from compiler.passes.remove_identities import REMOVE_IDENTITIES
from compiler.passes.simplify_onnxsim import SimplifyOnnxsim

PORTABLE: tuple[Pass, ...] = (
    SimplifyOnnxsim(),  # first: it works on the graph as exported, and what it makes is checked against that graph
    REMOVE_DEAD_NODES,
    INFER_SHAPES,  # before everything that asks for types and shapes
    FOLD_CONSTANTS,  # before the patterns that want their constants as initializers
    REMOVE_IDENTITIES,
    MERGE_DUPLICATES,
    MERGE_RESHAPES,
    MERGE_TRANSPOSES,
    MERGE_CASTS,
    REMOVE_DEAD_NODES,
    INFER_SHAPES,  # last: the border model has every type and shape in it
)
"""From the imported model to the border model, float32 throughout."""
