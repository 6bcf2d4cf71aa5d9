"""Perplexity of a text, and how far the next token's probabilities are from the float model's.

    perplexity = exp(mean −ln q(token)),   KL = mean Σ_v p_v·(ln p_v − ln q_v),   p of the float model

The metric is 100 less the increase of the perplexity in percent, so that what is lost of it is that increase. Windows
are drawn again for its interval. Divergence and agreement stand beside it: perplexity alone flatters, since errors of
both signs cancel in it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compiler.errors import DataError, InternalError
from compiler.evaluate.bootstrap import Measured, Weights, interval, resampled
from compiler.evaluate.dataset import Dataset
from compiler.model.numerics import Array, Arrays

METRIC = "perplexity, 100 less its increase"

_LEAST_WINDOWS = 8
"""Fewer give an interval that says little."""

Floats = NDArray[np.float64]


def measure(outputs: Arrays, labels: Array | None, reference: Arrays | None) -> Measured:
    """The perplexity against the float model's.

    Args:
        outputs: Logits of the judged tokens and of the one before them (windows, tokens + 1, vocabulary).
        labels: Their ids, in the field `ids` (windows, tokens).
        reference: The float model's outputs.
    """
    if labels is None or reference is None:
        raise InternalError("perplexity needs the tokens and the float model's logits")
    ids: Array = labels["ids"]  # type: ignore[call-overload]  # a record for each window
    rows = [_window(*three) for three in zip(_only(outputs), _only(reference), ids, strict=True)]
    own, base, divergence, agreement = np.array(rows, np.float64).T

    def increase(weights: Weights) -> Floats:
        counts = weights.sum(axis=1)
        values: Floats = 200.0 - 100.0 * np.exp((weights @ own - weights @ base) / counts)
        return values

    return Measured(
        value_pct=200.0 - 100.0 * float(np.exp(own.mean() - base.mean())),
        details={
            "perplexity": float(np.exp(own.mean())),
            **_with_interval("KL in nats a token", divergence),
            **_with_interval("same top token in %", 100.0 * agreement),
        },
        count=ids.size,
        units=len(rows),
        resample=increase,
    )


def check(dataset: Dataset) -> tuple[str, ...]:
    """What is odd about the windows."""
    if dataset.count < _LEAST_WINDOWS:
        return (f"{dataset.count} windows of text: the interval of the perplexity says little; give {_LEAST_WINDOWS}",)
    return ()


def log_softmax(logits: Array) -> NDArray[np.float32]:
    """Logarithms of the probabilities along the last axis."""
    moved = logits.astype(np.float32) - logits.max(axis=-1, keepdims=True).astype(np.float32)
    return np.asarray(moved - np.log(np.exp(moved).sum(axis=-1, keepdims=True)), np.float32)


def divergences(reference: Array, logits: Array) -> NDArray[np.float32]:
    """Kullback-Leibler divergence of each row of logits from the float model's (tokens,)."""
    return log_divergences(log_softmax(reference), log_softmax(logits))


def log_divergences(want: NDArray[np.float32], got: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same, of logarithms of probabilities (tokens, vocabulary): the float model's and the other's."""
    return np.asarray(np.einsum("ij,ij->i", np.exp(want), want - got), np.float32)


def _only(outputs: Arrays) -> Array:
    if len(outputs) != 1:
        raise DataError(f"one output is judged, not {', '.join(outputs)}", where="evaluation")
    return next(iter(outputs.values()))


def _window(logits: Array, reference: Array, ids: Array) -> tuple[float, float, float, float]:
    """Of one window: mean −ln q, mean −ln p, mean divergence, share of equal top tokens."""
    rows = np.arange(len(ids))
    own, base = log_softmax(logits[:-1]), log_softmax(reference[:-1])
    divergence = float(log_divergences(base, own).mean())
    agreement = float((logits[:-1].argmax(axis=1) == reference[:-1].argmax(axis=1)).mean())
    return -float(own[rows, ids].mean()), -float(base[rows, ids].mean()), divergence, agreement


def _with_interval(name: str, values: Floats) -> dict[str, float]:
    """A mean over windows with the ends of its 95 % interval."""

    def mean(weights: Weights) -> Floats:
        result: Floats = (weights @ values) / weights.sum(axis=1)
        return result

    low, high = interval(resampled([Measured(float(values.mean()), {}, len(values), len(values), mean)])[0])
    return {name: float(values.mean()), f"{name}, low": low, f"{name}, high": high}
