"""The file of weights: the device maps it into memory instead of copying it when the model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compiler.target import Array, TensorSpec

ALIGNMENT_BYTES = 64
"""Compiled code may assume it of every tensor; native/tensor.h says the same."""


def write_weights(path: Path, weights: Sequence[Array]) -> tuple[TensorSpec, ...]:
    """Writes the weights one after another, each padded to `ALIGNMENT_BYTES`; gives name, type and shape of each."""
    with path.open("wb") as file:
        for array in weights:
            data = array.tobytes()
            file.write(data + bytes(-len(data) % ALIGNMENT_BYTES))
    return tuple(TensorSpec(f"weight{i}", array.dtype.name, array.shape) for i, array in enumerate(weights))
