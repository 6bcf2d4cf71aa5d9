"""Embedding fidelity, for when there are no labels: the cosine between the float model's outputs and a candidate's."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from compiler.errors import DataError, InternalError
from compiler.evaluate.bootstrap import Decisions, Measured
from compiler.evaluate.classification import mean_of
from compiler.model.numerics import Array, Arrays

METRIC = "cosine"


def measure(outputs: Arrays, labels: Array | None, reference: Arrays | None, *, output: str | None) -> Measured:
    """The mean over samples of the cosine to the reference; over outputs too, where none is named."""
    if reference is None:
        raise InternalError("embedding fidelity is measured against the float model's outputs, and there are none")
    names = list(reference) if output is None else [output]
    if missing := [name for name in names if name not in outputs or name not in reference]:
        known = ", ".join(reference)
        raise DataError(f"the model has no output '{missing[0]}'; it has {known}", where="evaluation.output")
    cosines = np.mean([_cosines(reference[name], outputs[name], name) for name in names], axis=0)
    return Measured(
        value_pct=100 * float(cosines.mean()),
        details={"worst sample": 100 * float(cosines.min())},
        count=len(cosines),
        units=len(cosines),
        resample=partial(mean_of, 100 * cosines),
        decisions=Decisions(100 * cosines, np.arange(len(cosines))),
    )


def _cosines(reference: Array, actual: Array, name: str) -> NDArray[np.float64]:
    """The cosine of each sample, flattened; 1 where both are zero."""
    if reference.shape != actual.shape:
        raise DataError(
            f"output '{name}' is {actual.shape}, the float model's is {reference.shape}", where="evaluation"
        )
    want, got = (array.reshape(len(array), -1).astype(np.float64) for array in (reference, actual))
    norms = np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1)
    products = np.einsum("ij,ij->i", want, got)
    both_zero = ~want.any(axis=1) & ~got.any(axis=1)
    return np.where(both_zero, 1.0, np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0))
