"""Structured (channel) pruning of ONNX graphs: dependency groups, importance, cut, repair by least squares.

find_ties → removal_order per group → choose_channels → cut_channels → repair
"""

from compiler.compress.prune.prune import SHORTFALL, Pruned, Unprunable, find_order, prune

__all__ = ["SHORTFALL", "Pruned", "Unprunable", "find_order", "prune"]
