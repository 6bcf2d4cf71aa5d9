"""The size of a graph, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GraphStats:
    """Size of a graph, subgraphs included.

    Args:
        nodes: Operators.
        parameters: Elements in initializers and Constant nodes.
        bytes: Bytes of those.
        macs: Multiply-accumulates with symbolic dimensions as 1; None if a shape is not known.
    """

    nodes: int
    parameters: int
    bytes: int
    macs: int | None
