"""Compensated rounding of weights (GPTQ): one input at a time, later weights compensate the errors of earlier ones.

A layer in few bits computes Ŵ·x̂, with x̂ (terms,) what it really reads there. Over samples X̂ (terms, samples) the sum
of squares ‖W·X̂ − Ŵ·X̂‖² = tr((W − Ŵ)·H·(W − Ŵ)ᵀ), H = X̂·X̂ᵀ, is to be least. Input j is rounded for all outputs at once,
and its error e = w − ŵ goes to the inputs after it: w_k −= e·U_jk / U_jj for k > j, with (H + λ·I)⁻¹ = Uᵀ·U and U upper
triangular. Inputs of the largest H_jj come first; λ keeps weights near where they were where the samples say nothing.
(E. Frantar et al., GPTQ, 2022, which solves B. Hassibi's and D. Stork's Optimal Brain Surgeon, 1993, for rounding.)

H is summed batch by batch, so memory is a few matrices of (terms, terms) for any number of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from compiler.compress.quant.plan import TensorQuant
from compiler.compress.quant.unfold import Layout
from compiler.compress.quant.weights import nearest, spread
from compiler.model.numerics import Array

Floats = NDArray[np.float32]

DAMPING = 0.01
"""λ as a share of the mean of H's diagonal; 1 % is GPTQ's own choice."""

MOST_TERMS = 4608
"""Largest number of terms of a product that is compensated: a matrix of (terms, terms) takes 81 MiB there."""

_BLOCK = 128
"""Inputs after which the error is handed to all later ones; before, only to those of the block."""


def compensate(weight: Floats, quant: TensorQuant, layout: Layout, read: Sequence[Array]) -> Floats:
    """The weight on its quantized lattice, rounded to the least squared error of the layer's results.

    Args:
        weight: In float.
        quant: Its format and scales.
        layout: Of the layer.
        read: What the layer reads in the quantized model, one array per batch; one at least.
    """
    matrix, scales = layout.matrix(weight), layout.matrix(np.broadcast_to(spread(quant, weight.shape), weight.shape))
    rounded = [_compensate_group(*one, quant) for one in zip(matrix, scales, _sum_grams(layout, read), strict=True)]
    return layout.weight(np.stack(rounded))


def _compensate_group(matrix: Floats, scales: Floats, gram: Floats, quant: TensorQuant) -> Floats:
    """One group's weights (outputs, terms)."""
    order = np.argsort(-np.diag(gram), kind="stable")
    upper = inverse_root(gram[np.ix_(order, order)])
    rounded = np.empty_like(matrix)
    rounded[:, order] = _round_in_turn(matrix[:, order], scales[:, order], upper, quant)
    return rounded


def inverse_root(gram: Floats) -> Floats:
    """U, upper triangular, with Uᵀ·U = (H + λ·I)⁻¹: the inverse of R, with R·Rᵀ = H + λ·I and R upper triangular."""
    mean = float(np.diag(gram).mean())
    damped = gram + np.float32(DAMPING * mean if mean > 0 else 1.0) * np.eye(len(gram), dtype=np.float32)
    root = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return _inverse_triangle(np.asarray(root, np.float32))


def _inverse_triangle(matrix: Floats) -> Floats:
    """The inverse of an upper triangular matrix [A B; 0 D]: [A⁻¹ −A⁻¹·B·D⁻¹; 0 D⁻¹]."""
    size = len(matrix)
    if size <= _BLOCK:
        return np.triu(np.asarray(np.linalg.inv(matrix), np.float32))
    half = size // 2
    inverse = np.zeros_like(matrix)
    inverse[:half, :half] = _inverse_triangle(matrix[:half, :half])
    inverse[half:, half:] = _inverse_triangle(matrix[half:, half:])
    inverse[:half, half:] = -inverse[:half, :half] @ matrix[:half, half:] @ inverse[half:, half:]
    return inverse


def _round_in_turn(wanted: Floats, scales: Floats, upper: Floats, quant: TensorQuant) -> Floats:
    left, rounded = wanted.copy(), np.empty_like(wanted)
    terms = wanted.shape[1]
    for first in range(0, terms, _BLOCK):
        last = min(first + _BLOCK, terms)
        errors = np.empty((len(wanted), last - first), np.float32)
        for j in range(first, last):
            rounded[:, j] = _on_lattice(left[:, j], scales[:, j], quant)
            errors[:, j - first] = (left[:, j] - rounded[:, j]) / upper[j, j]
            left[:, j + 1 : last] -= np.outer(errors[:, j - first], upper[j, j + 1 : last])
        left[:, last:] -= errors @ upper[first:last, last:]
    return rounded


def _on_lattice(column: Floats, scale: Floats, quant: TensorQuant) -> Floats:
    integers = nearest(column / scale, quant).astype(np.float32)
    return (integers - np.float32(quant.zero_point)) * scale


def _sum_grams(layout: Layout, read: Sequence[Array]) -> Floats:
    """X̂·X̂ᵀ of every group (groups, terms, terms)."""
    rows = (layout.rows(batch) for batch in read)
    return reduce(np.add, (np.swapaxes(batch, 1, 2) @ batch for batch in rows))
