"""Which inputs of a model count samples, and how many samples a batch has."""

from __future__ import annotations

import onnx_ir as ir

from compiler.model.numerics import Arrays


def sample_inputs(model: ir.Model) -> frozenset[str]:
    """Names of the inputs whose first axis counts samples: not a table that is the same for all of them.

    Args:
        model: Inputs with the first dimension that is symbolic are meant; where none is, all that have an axis.
    """
    inputs = [value for value in model.graph.inputs if value.shape is not None and len(value.shape)]
    batch = next((str(value.shape[0]) for value in inputs if not isinstance(value.shape[0], int)), None)  # type: ignore[index]
    return frozenset(str(value.name) for value in inputs if batch is None or str(value.shape[0]) == batch)  # type: ignore[index]


def count_samples(batch: Arrays, inputs: frozenset[str]) -> int:
    """Samples in a batch, by the inputs that count them."""
    return next((len(array) for name, array in batch.items() if name in inputs), 0)
