"""How far a model's answers are from the float model's: the Kullback-Leibler divergence of the next token.

KL = Σ_v p_v·(ln p_v − ln q_v), p of the float model, q of the other, the mean over all tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.compress.threads import in_parallel
from compiler.evaluate.generation import divergences
from compiler.model.frontend.extract import extract_prefix
from compiler.model.numerics import Arrays
from compiler.model.reference import Unoptimized

Floats = NDArray[np.float32]

_ROWS = 64
"""Tokens compared at a time: a vocabulary of 49,152 takes 13 MB then."""


def mean_divergence(reference: Floats, logits: Floats) -> float:
    """The mean divergence over tokens.

    Args:
        reference: Logits of the float model (…, vocabulary).
        logits: Of the other.
    """
    want, got = (array.reshape(-1, array.shape[-1]) for array in (reference, logits))
    total = 0.0
    for start in range(0, len(want), _ROWS):
        rows = slice(start, start + _ROWS)
        total += float(divergences(want[rows], got[rows]).sum(dtype=np.float64))
    return total / max(1, len(want))


class Trials:
    """Measures what other weights do to a model's answers.

    Args:
        model: In float32; left as it is.
        logits: Name of the output that is compared.
        batches: Inputs; the float model's logits for all of them are kept in float16.
    """

    def __init__(self, model: ir.Model, logits: str, batches: Sequence[Arrays]) -> None:
        self._model = extract_prefix(model, [logits])
        self._logits, self._batches = logits, batches
        session = Unoptimized(self._model)
        self._expected = [session.run(batch)[logits].astype(np.float16) for batch in batches]

    def measure(self, weights: Mapping[str, Floats]) -> float:
        """The mean divergence with other values of some initializers, in nats a token."""
        copy = self._model.clone()
        for name, array in weights.items():
            copy.graph.initializers[name].const_value = ir.tensor(array, name=name)
        session = Unoptimized(copy)

        def divergence(pair: tuple[Arrays, NDArray[np.float16]]) -> float:
            batch, expected = pair
            return mean_divergence(expected.astype(np.float32), session.run(batch)[self._logits].astype(np.float32))

        values = in_parallel(divergence, zip(self._batches, self._expected, strict=True))
        return max(0.0, float(np.mean(values)))
