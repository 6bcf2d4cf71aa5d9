"""The cases that every target is judged by."""

from __future__ import annotations

from compiler.target.testing.blocks import blocks
from compiler.target.testing.case import Case
from compiler.target.testing.layers import activations, convolutions, pools, products
from compiler.target.testing.tensors import arithmetic, movement


def conformance_cases(*, essential: bool = False) -> list[Case]:
    """The cases every target is judged by, in a fixed order.

    Args:
        essential: Only the short list, for targets that take seconds per case.
    """
    groups = (convolutions, pools, products, activations, movement, arithmetic, blocks)
    return [case for group in groups for case in group() if case.essential or not essential]
