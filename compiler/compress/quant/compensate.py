"""Compensated rounding of weights (GPTQ): one input at a time, later weights compensate the errors of earlier ones.

A layer in few bits computes Ŵ·x̂, with x̂ (terms,) what it really reads there. Over samples X̂ (terms, samples) the sum
of squares ‖W·X̂ − Ŵ·X̂‖² = tr((W − Ŵ)·H·(W − Ŵ)ᵀ), H = X̂·X̂ᵀ, is to be least. With H + λ·I = L·Lᵀ, L lower triangular, it
is the sum over j of ((w_j − ŵ_j)·L_jj + Σ_{k>j} (w_k − ŵ_k)·L_kj)². Inputs are rounded from the last to the first, each
for all outputs at once, and each term made as small as the lattice allows:

    ŵ_j = round(w_j + Σ_{k>j} (w_k − ŵ_k)·L_kj / L_jj)

Inputs of the largest H_jj are last, so they are rounded first; λ keeps weights near where they were where the samples
say nothing. (E. Frantar et al., GPTQ, 2022, which solves B. Hassibi's and D. Stork's Optimal Brain Surgeon, 1993, for
rounding. GPTQ hands each error on by the factor of H⁻¹; gathering errors by the factor of H is the same in exact
arithmetic (J. Chen et al., The Geometry of LLM Quantization, 2025), and needs no inverse.)

One sweep leaves a lattice point that a change of single weights may still improve, since a weight rounded early knew
nothing of those rounded later. `round_again` goes round once more: each input's weights anew, with all others held,

    ŵ_j = round(ŵ_j + Σ_k (w_k − ŵ_k)·H_kj / H_jj)

which never makes the sum larger (K. Behdin et al., QuantEase, 2023). It is the sum that AdaRound learns its roundings
for by gradient descent (M. Nagel et al., Up or Down?, 2020, equation 12), here without a learning rate.

H is summed batch by batch, so memory is a few matrices of (terms, terms) for any number of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.compress.quant.plan import TensorQuant
from compiler.compress.quant.unfold import Layout
from compiler.compress.quant.weights import nearest, spread
from compiler.compress.threads import in_parallel
from compiler.model.numerics import Array

Floats = NDArray[np.float32]

DAMPING = 0.01
"""λ as a share of the mean of H's diagonal; 1 % is GPTQ's own choice."""

MOST_TERMS = 4608
"""Largest number of terms of a product that is compensated: a matrix of (terms, terms) takes 81 MiB there."""

_COLUMNS = 512
"""Of a factor that are computed together where it is large."""

_BLOCK = 128
"""Inputs whose errors are gathered by one product of matrices; inside of a block it is one product for each input."""


@dataclass(frozen=True)
class Factor:
    """What a layer reads, as the roundings need it: H + λ·I = L·Lᵀ of every group. Layers with one input share it.

    Args:
        order: Position in the factor → input (groups, terms).
        lower: L with columns divided by their diagonal (groups, terms, terms); its diagonal is 1.
    """

    order: NDArray[np.int64]
    lower: Floats


def factorize(layout: Layout, read: Sequence[Array]) -> Factor:
    """The factor of a layer's inputs.

    Args:
        layout: Of the layer.
        read: What the layer reads in the quantized model, one array per batch; one at least.
    """
    return factor_of(_sum_grams(layout, read))


def factor_of(gram: Floats) -> Factor:
    """The factor of sums X̂·X̂ᵀ (groups, terms, terms)."""
    diagonal = np.diagonal(gram, axis1=1, axis2=2)
    order = np.argsort(-diagonal, axis=1, kind="stable")[:, ::-1]
    sorted_ = np.empty_like(gram)
    for own, places, place in zip(gram, order, sorted_, strict=True):
        place[...] = own[np.ix_(places, places)]
    mean = diagonal.mean(axis=1)
    places = np.arange(gram.shape[1])
    # an input that is always zero says nothing about its weights: any λ > 0 leaves them rounded to nearest
    sorted_[:, places, places] += np.where(mean > 0, DAMPING * mean, 1.0)[:, None].astype(np.float32)
    if gram.shape[1] > MOST_TERMS:
        for own in sorted_:
            factor_in_place(own)
        lower = sorted_
    else:
        lower = np.asarray(np.linalg.cholesky(sorted_), np.float32)
    lower /= np.diagonal(lower, axis1=1, axis2=2)[:, None, :].copy()
    return Factor(order, lower)


def factor_in_place(matrix: Floats) -> None:
    """A symmetric matrix (terms, terms) becomes its lower factor, some columns at a time, with sums in float64.

    numpy's own computes in float64 as a whole, and takes six times the matrix meanwhile.
    """
    for first in range(0, len(matrix), _COLUMNS):
        width = min(_COLUMNS, len(matrix) - first)
        some = matrix[first:, first : first + width].astype(np.float64)
        for start in range(0, first, _COLUMNS):
            done = matrix[first:, start : start + _COLUMNS].astype(np.float64)
            some -= done @ done[:width].T
        corner = np.linalg.cholesky(some[:width])
        some[width:] = np.linalg.solve(corner, some[width:].T).T
        some[:width] = corner
        matrix[first:, first : first + width] = some
        matrix[:first, first : first + width] = 0.0


def compensate(weight: Floats, quant: TensorQuant, layout: Layout, factor: Factor) -> Floats:
    """The weight on its quantized lattice, rounded to the least squared error of the layer's results.

    Args:
        weight: In float.
        quant: Its format and scales.
        layout: Of the layer.
        factor: Of what the layer reads.
    """
    order = factor.order[:, :, None]
    wanted, scales = (
        np.take_along_axis(np.swapaxes(layout.matrix(array), 1, 2), order, 1)  # (groups, terms, outputs)
        for array in (weight, np.broadcast_to(spread(quant, weight.shape), weight.shape))
    )
    rounded = np.empty_like(wanted)

    def on_lattice(row: Floats, place: slice) -> Floats:
        return _on_lattice(row, scales[:, place], quant)

    np.put_along_axis(rounded, order, round_in_turn(wanted, factor.lower, on_lattice), 1)
    return layout.weight(np.ascontiguousarray(np.swapaxes(rounded, 1, 2)))


def round_in_turn(wanted: Floats, lower: Floats, on_lattice: Callable[[Floats, slice], Floats]) -> Floats:
    """Weights (groups, terms, outputs) rounded from the last term to the first.

    Args:
        wanted: The weights, their terms in the order of the factor.
        lower: Of the factor.
        on_lattice: Rounds one term's weights (groups, 1, outputs); the slice says which term it is.
    """
    rounded, errors = np.empty_like(wanted), np.empty_like(wanted)
    terms = wanted.shape[1]
    for last in range(terms, 0, -_BLOCK):
        first = max(0, last - _BLOCK)
        target = wanted[:, first:last] + np.swapaxes(lower[:, last:, first:last], 1, 2) @ errors[:, last:]
        inside = np.ascontiguousarray(np.swapaxes(lower[:, first:last, first:last], 1, 2))  # row j: what j gathers
        for j in range(last - first - 1, -1, -1):
            row = target[:, j : j + 1] + inside[:, j : j + 1, j + 1 :] @ errors[:, first + j + 1 : last]
            place = slice(first + j, first + j + 1)
            rounded[:, place] = on_lattice(row, place)
            errors[:, place] = wanted[:, place] - rounded[:, place]
    return rounded


def round_again(
    wanted: Floats,
    rounded: Floats,
    gram: Floats,
    order: NDArray[np.int64],
    on_lattice: Callable[[Floats, slice], Floats],
) -> None:
    """Rounds each term's weights anew, all others held, those that matter most first; in place.

    Args:
        wanted: The weights (terms, outputs), their terms in an order.
        rounded: What they are rounded to, in that order.
        gram: H (terms, terms), its terms not in that order.
        order: Position of a weight → its term.
        on_lattice: Rounds one position's weights (1, outputs); the slice says which position it is.
    """
    diagonal = np.diagonal(gram)
    damping = np.float32(DAMPING * diagonal.mean() or 1.0)  # as in the factor
    errors = wanted - rounded
    for last in range(len(order), 0, -_BLOCK):
        place = slice(max(0, last - _BLOCK), last)
        terms = order[place]
        pulls = gram[terms][:, order] @ errors + damping * errors[place]
        inside = gram[np.ix_(terms, terms)]
        changes = np.zeros_like(pulls)
        for j in range(len(terms) - 1, -1, -1):
            pull = pulls[j] + inside[j, j + 1 :] @ changes[j + 1 :]
            at = slice(place.start + j, place.start + j + 1)
            new = on_lattice(rounded[at] + pull / (inside[j, j] + damping), at)
            changes[j] = rounded[at] - new
            rounded[at] = new
        errors[place] += changes


def _on_lattice(row: Floats, scale: Floats, quant: TensorQuant) -> Floats:
    integers = nearest(row / scale, quant).astype(np.float32)
    return (integers - np.float32(quant.zero_point)) * scale


def _sum_grams(layout: Layout, read: Sequence[Array]) -> Floats:
    """X̂·X̂ᵀ of every group (groups, terms, terms)."""

    def gram(batch: Array) -> Floats:
        rows = layout.rows(batch)
        # a product of a matrix with its own transpose: numpy computes one triangle only (BLAS syrk)
        return np.swapaxes(rows, 1, 2) @ rows

    total, *others = in_parallel(gram, read)
    for other in others:
        total += other
    return total
