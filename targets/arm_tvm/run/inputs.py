"""Inputs of a bundle, compared with what it takes before its program is asked."""

from __future__ import annotations

import numpy as np

from compiler.target import Arrays, Artifact, DataError


def check_inputs(artifact: Artifact, inputs: Arrays) -> None:
    """Raises DataError where an input is missing, unknown, or of another dtype or shape than the bundle takes."""
    names = [spec.name for spec in artifact.inputs]
    if sorted(names) != sorted(inputs):
        raise DataError(f"the bundle takes inputs {', '.join(names)}; given are {', '.join(inputs) or 'none'}")
    for spec in artifact.inputs:
        array = inputs[spec.name]
        if array.dtype != np.dtype(spec.dtype) or array.shape != spec.shape:
            raise DataError(
                f"input '{spec.name}' is {array.dtype} {array.shape}; the bundle takes {spec.dtype} {spec.shape}"
            )
