"""Random numbers of each kind of input, the same for the same seed on every machine."""

from __future__ import annotations

import numpy as np

from compiler.model.frontend.kinds import InputKind, Kind
from compiler.model.numerics import Array

ZEROS, LARGE = 0.02, 0.02
"""Shares of a normal input that are 0, and that are LARGE_FACTOR times as large as drawn."""
# outliers, as activations of trained networks have them, and a normal distribution has not
LARGE_FACTOR = 4.0


def draw(kind: InputKind, shape: tuple[int, ...], random: np.random.Generator, *, row: int) -> Array:
    """Numbers of a kind.

    Args:
        kind: What they are.
        shape: Of the array.
        random: Where they are from.
        row: Number of the sample: every fourth mask is whole.
    """
    match kind.kind:
        case Kind.NORMAL:
            return _normal(shape, random)
        case Kind.MASK:
            return _mask(shape, random, is_whole=row % 4 == 0)
        case Kind.BOOLEANS:
            return np.asarray(random.integers(0, 2, shape)).astype(bool)
    return np.asarray(random.integers(kind.low, kind.high, shape, endpoint=True))


def _normal(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    numbers = random.standard_normal(shape, dtype=np.float32)
    chance = random.random(shape, dtype=np.float32)
    numbers = np.where(chance < ZEROS, np.float32(0), numbers)
    return np.asarray(np.where(chance > 1 - LARGE, numbers * np.float32(LARGE_FACTOR), numbers))


def _mask(shape: tuple[int, ...], random: np.random.Generator, *, is_whole: bool) -> Array:
    """Ones up to a length of at least 1 along the last dimension, as sequences are padded."""
    if is_whole or not shape:
        return np.ones(shape, np.int64)
    lengths = random.integers(1, shape[-1], (*shape[:-1], 1), endpoint=True)
    return np.asarray(np.arange(shape[-1]) < lengths).astype(np.int64)
