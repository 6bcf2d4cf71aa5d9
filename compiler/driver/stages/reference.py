"""What artifacts are compared with: the imported model itself, before any pass, in ONNX Runtime without optimizations.

Of a candidate whose results are changed on purpose, by pruning or quantizing, it is the border model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx_ir as ir

from compiler.driver.stages.run import Stages
from compiler.model.numerics import Array, Arrays, arrays_digest, load_arrays, write_arrays
from compiler.model.reference import Unoptimized
from compiler.store import StageName

_OUTPUTS = "outputs.npz"


@dataclass(frozen=True)
class ParityCase:
    """One set of inputs and what the reference gives for them.

    Args:
        label: The sizes it stands for: `batch=8`, or `as the model has it`.
        inputs: Input name → array.
        expected: Output name → array.
    """

    label: str
    inputs: Arrays
    expected: Arrays


def reference_cases(
    model: ir.Model, digest: str, inputs: Mapping[str, Arrays], stages: Stages
) -> tuple[ParityCase, ...]:
    """The reference's outputs for every set of inputs, computed once and kept in the store.

    Args:
        model: The imported model, dimensions bound.
        digest: Its graph digest.
        inputs: Label → arrays.
        stages: Where it is run.

    Raises:
        UnsupportedModel: ONNX Runtime does not run the model.
    """
    reference = cache(lambda: Unoptimized(model))  # opened for the first of them that is not in the store
    return tuple(
        ParityCase(label, arrays, _expected(reference, digest, arrays, stages)) for label, arrays in inputs.items()
    )


def _expected(reference: Callable[[], Unoptimized], digest: str, inputs: Arrays, stages: Stages) -> dict[str, Array]:
    def make(folder: Path) -> None:
        write_arrays(folder / _OUTPUTS, reference().run(inputs))

    entry = stages.run(StageName.REFERENCE, make, model=digest, inputs=arrays_digest(inputs))
    return load_arrays(entry.files / _OUTPUTS)
