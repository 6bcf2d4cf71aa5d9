"""Where equal outputs prove little: they do not depend on the samples, or the samples were no real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from compiler.driver.stages.reference import ParityCase
from compiler.driver.stages.verify import batch_size
from compiler.model.numerics import Array


def weak_proofs(points: Sequence[ParityCase], *, is_random: bool) -> tuple[str, ...]:
    """Why comparing an output on these points says little, or nothing.

    Args:
        points: Inputs and expected outputs.
        is_random: Whether the inputs were made up, since the fleet file names no data.

    Returns:
        One sentence per output whose values do not depend on the samples, and per integer input that was made up.
    """
    return (*_constant_outputs(points), *(_random_integers(points) if is_random else ()))


def _constant_outputs(points: Sequence[ParityCase]) -> Iterator[str]:
    for name in points[0].expected:
        values = [point.expected[name] for point in points]
        if _is_uniform(values):
            yield f"output '{name}': every element has the same value on all samples; agreement is no proof"
        elif any(_is_same_for_all(point, name) for point in points):
            yield f"output '{name}': it is the same for different samples; agreement is no proof"


def _is_uniform(values: Sequence[Array]) -> bool:
    """Whether there are two elements or more, and all are equal; NaN is equal to NaN here."""
    elements = np.concatenate([np.asarray(value).reshape(-1) for value in values])
    if elements.size < 2:
        return False
    return bool(np.all((elements == elements[0]) | ((elements != elements) & (elements[0] != elements[0]))))


def _is_same_for_all(point: ParityCase, name: str) -> bool:
    """Whether the rows of a batch are equal in an output though no two rows of the inputs are."""
    count, output = batch_size(point.inputs), point.expected[name]
    if count < 2 or output.ndim == 0 or output.shape[0] != count:
        return False
    batched = [array for array in point.inputs.values() if array.ndim and array.shape[0] == count]
    differ = any(not np.array_equal(array[0], array[row]) for array in batched for row in range(1, count))
    return differ and all(np.array_equal(output[0], output[row]) for row in range(1, count))


def _random_integers(points: Sequence[ParityCase]) -> Iterator[str]:
    for name, array in points[0].inputs.items():
        if array.dtype.kind in "iu":
            yield (
                f"input '{name}': integers made up, since the fleet file names no `calibration`; "
                "what others give was not compared"
            )
