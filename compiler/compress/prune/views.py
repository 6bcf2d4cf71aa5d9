"""More calibration data out of what there is: a layer must give what it gave on mirrored pictures too.

No label is needed, since the original model says what is right for whatever it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from compiler.compress.prune.moments import Batches
from compiler.model.numerics import Array, Arrays


def with_mirrors(batches: Batches) -> Batches:
    """The data, and where all inputs are pictures (N, C, H, W) each of them mirrored.

    A picture and its mirror image stay in the same half, of every other batch: one half judges what the other says,
    and must not know it already.
    """
    return lambda: _mirrored(batches())


def _mirrored(batches: Iterable[Arrays]) -> Iterator[Arrays]:
    held: list[Arrays] = []
    for batch in batches:
        yield batch
        held = [*held, batch] if _are_pictures(batch) else []
        if len(held) == 2:
            yield from ({name: _flip(array) for name, array in one.items()} for one in held)
            held = []


def _are_pictures(batch: Arrays) -> bool:
    return all(array.ndim == 4 and array.dtype.kind in "fui" and array.shape[3] > 1 for array in batch.values())


def _flip(array: Array) -> Array:
    return np.ascontiguousarray(array[..., ::-1])
