"""What a tensor looks like over many samples, and the figures of a sample that tell when others look different."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from compiler.artifact.schema.ladder import Histogram, TensorFigures
from compiler.model.numerics import Array

BINS = 10
"""Equally full bins of a histogram: the usual number for a population stability index."""

ELEMENTS = 4096
"""Elements of a sample that its statistics are made of, evenly spread: a server looks at every request."""

Figures = NDArray[np.float64]


def spread_elements(samples: Array) -> Array:
    """At most `ELEMENTS` elements of each sample, evenly spread.

    Args:
        samples: (N, ...) numbers.

    Returns:
        (N, M) of them.
    """
    flat = samples.reshape(len(samples), -1)
    return flat[:, :: max(1, -(-flat.shape[1] // ELEMENTS))]


def input_statistics(samples: Array) -> dict[str, Figures]:
    """Of each sample of an input: the mean of its elements and their standard deviation, of elements spread evenly.

    Args:
        samples: (N, ...) numbers.

    Returns:
        `mean` and `deviation`, each (N,).
    """
    flat = spread_elements(samples).astype(np.float64)
    return {"mean": flat.mean(axis=1), "deviation": flat.std(axis=1)}


def output_statistics(samples: Array) -> dict[str, Figures]:
    """Of each sample of an output: its Euclidean norm, its largest element, and how far that is above the next.

    Args:
        samples: (N, ...) numbers.

    Returns:
        `norm`, `top` and, where there are two elements, `margin`, each (N,).
    """
    flat = samples.reshape(len(samples), -1).astype(np.float64)
    found = {"norm": np.linalg.norm(flat, axis=1), "top": flat.max(axis=1)}
    if flat.shape[1] > 1:
        two = np.partition(flat, -2, axis=1)[:, -2:]
        found["margin"] = two[:, 1] - two[:, 0]
    return found


def describe(samples: Array, statistics: Mapping[str, Figures]) -> TensorFigures:
    """What a tensor looks like.

    Args:
        samples: (N, ...) finite numbers.
        statistics: Of the same samples.
    """
    return TensorFigures(
        minimum=float(samples.min()),
        maximum=float(samples.max()),
        mean=float(samples.mean(dtype=np.float64)),
        histograms={name: _histogram(values) for name, values in statistics.items()},
    )


def shares_of(values: Figures, edges: Figures) -> Figures:
    """Shares of figures below the first edge, between edges, and from the last on."""
    places = np.searchsorted(edges, values, side="right")
    found: Figures = np.bincount(places, minlength=len(edges) + 1) / max(1, len(values))
    return found


def _histogram(values: Figures) -> Histogram:
    edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
    return Histogram(tuple(map(float, edges)), tuple(map(float, shares_of(values, edges))))
