"""Augmentation of calibration data with mirrored images.

No label is needed: the original model's outputs are the targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from compiler.compress.prune.moments import Batches
from compiler.model.numerics import Array, Arrays


def with_mirrors(batches: Batches) -> Batches:
    """The data, with mirrored copies where all inputs are images (N, C, H, W).

    An image and its mirror image are in the same half (even or odd batches): cross-validation needs independent halves.
    """
    return lambda: _mirrored(batches())


def _mirrored(batches: Iterable[Arrays]) -> Iterator[Arrays]:
    held: list[Arrays] = []
    for batch in batches:
        yield batch
        held = [*held, batch] if _are_pictures(batch) else []
        if len(held) == 2:
            yield from ({name: _flip(array) for name, array in earlier.items()} for earlier in held)
            held = []


def _are_pictures(batch: Arrays) -> bool:
    return all(array.ndim == 4 and array.dtype.kind in "fui" and array.shape[3] > 1 for array in batch.values())


def _flip(array: Array) -> Array:
    return np.ascontiguousarray(array[..., ::-1])
