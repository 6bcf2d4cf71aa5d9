"""Channel pruning on the ONNX graph: what is tied together, what it is worth, how it is cut, how it is repaired.

find_ties → removal_order per group → choose_channels → cut_channels → repair
"""

from compiler.compress.prune.prune import SHORTFALL, Pruned, Unprunable, find_order, prune

__all__ = ["SHORTFALL", "Pruned", "Unprunable", "find_order", "prune"]
