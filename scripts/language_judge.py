"""A decoder judged on texts against its float form: perplexity, divergence, agreement, with intervals over windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.evaluate.bootstrap import Measured, Values, Weights, interval, resampled
from compiler.evaluate.generation import divergences, log_softmax
from compiler.evaluate.text import empty_cache, read_tokens, token_inputs
from compiler.model.decoder import find_decoder
from compiler.model.frontend import describe_inputs
from compiler.model.frontend.extract import extract_prefix
from compiler.model.numerics import Array, Arrays
from compiler.model.reference import Unoptimized

WINDOW = 256
PERPLEXITY, MORE = "perplexity", "more perplexity in %"
DIVERGENCE, AGREEMENT = "KL in nats a token", "same top token in %"

Figures = dict[str, Any]
Run = Callable[[Arrays], Arrays]
"""Inputs of the model → its outputs, by name."""


class Judge:
    """The float model's logits for every window of a text.

    Args:
        model: In float32.
        rows: Token ids (windows, tokens).
    """

    def __init__(self, model: ir.Model, rows: Array) -> None:
        self._rows, self._decoder = rows, find_decoder(model)
        self._inputs = describe_inputs(model)
        self._expected = [logits.astype(np.float16) for logits in self._logits(by_reference(model))]

    def figures(self, run: Run) -> Figures:
        """Of a model that takes the same inputs."""
        own, base, kl, same = [], [], [], []
        for ids, wanted, logits in zip(self._rows, self._expected, self._logits(run), strict=True):
            expected, places = wanted.astype(np.float32), np.arange(len(ids) - 1)
            own.append(-log_softmax(logits[:-1])[places, ids[1:]].mean())
            base.append(-log_softmax(expected[:-1])[places, ids[1:]].mean())
            kl.append(divergences(expected, logits).mean())
            same.append(100 * (expected.argmax(1) == logits.argmax(1)).mean())
        return {
            PERPLEXITY: round(float(np.exp(np.mean(own))), 4),
            MORE: round(float(100 * (np.exp(np.mean(own) - np.mean(base)) - 1)), 3),
            DIVERGENCE: with_interval(np.array(kl, np.float64), 5),
            AGREEMENT: with_interval(np.array(same, np.float64), 2),
        }

    def _logits(self, run: Run) -> Iterator[Array]:
        for feeds in feeds_of(self._rows, self._inputs, self._decoder):
            yield np.asarray(run(feeds)[self._decoder.logits][0])


def by_reference(model: ir.Model) -> Run:
    """A model by ONNX Runtime without optimizations."""
    return Unoptimized(extract_prefix(model, [find_decoder(model).logits])).run


def feeds_of(rows: Iterable[Array], inputs: Any, decoder: Any) -> Iterator[Arrays]:
    """Windows with an empty cache."""
    cache = empty_cache(inputs, decoder)
    return ({**token_inputs(row[None].astype(np.int64), 0, inputs, decoder), **cache} for row in rows)


def windows(path: Path, tokenizer: Path, count: int) -> Array:
    """Windows spread evenly over a text (windows, tokens)."""
    ids = read_tokens(path, tokenizer)
    starts = np.arange(count) * ((len(ids) - WINDOW) // count)
    return np.stack([ids[start : start + WINDOW] for start in starts])


def with_interval(values: Values, places: int) -> list[float]:
    """A mean with the ends of its 95 % interval."""

    def mean(weights: Weights) -> Values:
        means: Values = (weights @ values) / weights.sum(axis=1)
        return means

    low, high = interval(resampled([Measured(float(values.mean()), {}, len(values), len(values), mean)])[0])
    return [round(number, places) for number in (float(values.mean()), low, high)]
