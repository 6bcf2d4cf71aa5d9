"""Inputs of a bundle, compared with what it takes before its program is asked."""

from __future__ import annotations

import numpy as np

from compiler.target import Arrays, Artifact, DataError
from targets.arm_tvm.run.sizes import open_sizes


def check_inputs(artifact: Artifact, inputs: Arrays) -> None:
    """Raises DataError where an input is missing, unknown, or of another dtype or shape than the bundle takes."""
    names = [spec.name for spec in artifact.inputs]
    if sorted(names) != sorted(inputs):
        raise DataError(f"the bundle takes inputs {', '.join(names)}; given are {', '.join(inputs) or 'none'}")
    for spec in artifact.inputs:
        array = inputs[spec.name]
        if array.dtype != np.dtype(spec.dtype) or not _fits(array.shape, spec.shape):
            wanted = f"{spec.dtype} {_words(spec.shape)}"
            raise DataError(f"input '{spec.name}' is {array.dtype} {array.shape}; the bundle takes {wanted}")
    sizes = open_sizes(artifact)
    if sizes is not None:
        sizes.size_of(inputs)


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    """Whether a shape has the fixed sizes of another; open ones are looked at together."""
    return len(shape) == len(wanted) and all(isinstance(b, str) or a == b for a, b in zip(shape, wanted, strict=True))


def _words(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
