"""The pipelines: named lists of passes, in the order they run.

A list holds names, because a plan needs only names and importing the passes takes a second. `fuse-conv-bn` is
FUSE_CONV_BN of `fuse_conv_bn.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

from compiler.errors import InternalError

if TYPE_CHECKING:
    from compiler.model.graph import Pass

PORTABLE: tuple[str, ...] = (
    "inline-functions",  # first: no pass looks into functions
    "raise-opset",  # before all that is written for operators of opset 11 and newer
    "take-branches",  # before onnxsim, which fails on branches whose shapes contradict each other
    "simplify-onnxsim",  # early: it works on the graph as exported, and what it makes is compared with that graph
    "remove-dead-nodes",
    "infer-shapes",  # before everything that asks for types and shapes
    "remove-training-leftovers",
    "fold-constants",  # before the patterns, which want their constants as initializers
    "remove-identities",
    "merge-casts",
    "merge-reshapes",
    "merge-transposes",
    "merge-duplicates",  # before the patterns, which want to be a value's only reader
    "fuse-gelu",  # the patterns of many nodes come before those of two, which would take pieces out of them
    "fuse-layer-normalization",
    "fuse-attention",
    "fuse-activations",
    "fold-input-normalization",  # before fuse-pad: a convolution without padding takes Sub, one with padding cannot
    "fuse-conv-bn",
    "fuse-conv-affine",
    "fuse-pad",
    "trim-kernels",  # after fuse-pad, which gives layers the pads that decide what is read
    "fuse-matmul-add",
    "flatten-softmax",  # behind the fusions, which look for Softmax as it is exported
    "fold-constants",  # again: what rules left of weights and shapes
    "remove-identities",
    "merge-duplicates",
    "remove-dead-nodes",  # after every pass that leaves unread constants
    "infer-shapes",  # last: the border model has every type and shape in it
)
"""From the imported model to the border model, float32 throughout."""

BEFORE_RAISING: tuple[str, ...] = ("infer-shapes", "flatten-softmax")
"""Before the version converter, which does not know that Hardmax changed with opset 13."""

RAISED: tuple[str, ...] = ("infer-shapes", "fold-constants", "remove-dead-nodes", "infer-shapes")
"""After the version converter, which spells what an operator of the old opset did with Shape and Reshape."""

HALF: tuple[str, ...] = ("merge-casts", "remove-dead-nodes", "infer-shapes")
"""After the conversion to half precision: Casts of the model's own may now stand next to ours."""


def load_passes(names: Iterable[str]) -> tuple[Pass, ...]:
    """The passes of these names."""
    return tuple(map(_load, names))


def precision_passes(precision: str) -> tuple[Pass, ...]:
    """The passes that bring a float32 border model to a precision: `fp32`, `fp16` or `bf16`.

    Raises:
        InternalError: There is none for that precision; the plan offers only these.
    """
    if precision == "fp32":
        return ()
    from compiler.passes.convert_to_half import convert_precision

    return (convert_precision(precision), *load_passes(HALF))


def _load(name: str) -> Pass:
    snake = name.replace("-", "_")
    loaded: Pass = getattr(import_module(f"compiler.passes.{snake}"), snake.upper())
    if loaded.name != name:
        raise InternalError(f"the pass of {snake}.py calls itself '{loaded.name}'")
    return loaded
