"""fold-shapes: sizes that a model computes of its own shapes become constants, since this target builds for one size.

A Reshape by a computed shape hides the shapes behind it until the computation is folded: inferring and folding take
turns until nothing changes. The portable passes fold once, as sizes may stay open for other targets.
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.target import PassResult, load_passes

MAX_ROUNDS = 16
"""Reshapes that follow each other, each by a shape computed of the one before: more than any model was seen to have."""
_STEPS = ("infer-shapes", "fold-constants")
_FINALLY = ("remove-identities", "remove-dead-nodes", "infer-shapes")
_OF_SHAPES = frozenset({"Shape", "Size"})


class FoldShapes:
    """The pass."""

    name = "fold-shapes"

    def __call__(self, model: ir.Model) -> PassResult:
        """Folds in the main graph while there are nodes that read a shape."""
        modified = False
        for _ in range(MAX_ROUNDS):
            if not any(node.op_type in _OF_SHAPES and node.domain == "" for node in model.graph):
                break
            if not any([step(model).modified for step in load_passes(_STEPS)]):
                break
            modified = True
        for step in load_passes(_FINALLY) if modified else ():
            step(model)
        return PassResult(modified)


FOLD_SHAPES = FoldShapes()
