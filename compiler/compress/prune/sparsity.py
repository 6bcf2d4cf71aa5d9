"""2:4 sparsity: two of every four weights along a layer's inputs are zero, for sparse tensor cores.

One shot: weights are masked by size, then layer after layer is solved by least squares as behind a cut (`repair`). The
solution is projected to the pattern four by four: the two of least cost are dropped, and later weights compensate for
them (SparseGPT, Frantar and Alistarh, 2023, whose measure is Optimal Brain Surgeon's:
w² / [H⁻¹]ⱼⱼ). Inputs of a convolution are its channels, at every place of the filter by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.compress.prune.importance import shrunk
from compiler.compress.prune.moments import Batches
from compiler.compress.prune.prepare import prepare
from compiler.compress.prune.repair import Repaired, solve_layers
from compiler.compress.prune.rows import Layer, Matrix, as_matrix, layer_of
from compiler.compress.prune.sums import Sums
from compiler.model.numerics import Array
from compiler.passes.values import constant_of, display_name

GROUP, KEPT = 4, 2


@dataclass(frozen=True)
class Sparse:
    """A model whose layers have the pattern.

    Args:
        model: The model; names, types and shapes as they were.
        repaired: Its layers; `before` is with weights masked by size.
        kept: Layer → why it stayed dense.
    """

    model: ir.Model
    repaired: tuple[Repaired, ...]
    kept: Mapping[str, str]


def sparsify(model: ir.Model, batches: Batches) -> Sparse:
    """Sparsifies every layer that can have the pattern.

    Args:
        model: A border model in float; left as it is.
        batches: Calibration data, at least two batches.
    """
    whole = prepare(model)
    small = whole.clone()
    layers, kept = dict[str, Layer](), dict[str, str]()
    for node in small.graph:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            layer = layer_of(node)
            reason = _why_dense(layer, node.inputs[1])
            if reason or layer is None:
                kept[display_name(node)] = reason
            else:
                layers[layer.weights] = layer
    for name, layer in layers.items():
        value = small.graph.initializers[name]
        old = np.asarray(constant_of(value))
        masked = layer.weights_of(mask_by_size(layer, layer.matrix(old)), old)
        value.const_value = ir.tensor(masked, name=name)
    return Sparse(small, solve_layers(whole, small, layers.keys(), batches, fit=fit_pattern), kept)


def has_pattern(layer: Layer, weights: Array) -> bool:
    """Whether at most two of every four weights along the inputs differ from zero."""
    rows = layer.matrix(weights)[_order(layer, len(layer.matrix(weights)))]
    return bool((np.count_nonzero(rows.reshape(-1, GROUP, rows.shape[1]), axis=1) <= KEPT).all())


def mask_by_size(layer: Layer, matrix: Matrix) -> Matrix:
    """The weights (K, N) with the two smaller of every four set to zero."""
    order, masked = _order(layer, len(matrix)), matrix.copy()
    groups = matrix[order].reshape(-1, GROUP, matrix.shape[1])
    masked[order] = np.where(_largest(np.abs(groups)), groups, 0.0).reshape(len(matrix), -1)
    return masked


def fit_pattern(layer: Layer, matrix: Matrix, sums: Sums) -> Matrix:
    """Weights (K, N) in the pattern with nearly the same outputs on the equations' inputs."""
    order = _order(layer, len(matrix))
    inverse = np.linalg.inv(shrunk(sums.xx, sums.rows)[np.ix_(order, order)])
    factor = as_matrix(np.linalg.cholesky(inverse)).T  # row j: how inputs from j on make up for input j
    rest = matrix[order].copy()
    for start in range(0, len(rest), GROUP):
        block = slice(start, start + GROUP)
        costs = (rest[block] / np.diag(factor)[block, None]) ** 2
        keeps = _largest(costs[None])[0]
        for place, row in enumerate(range(start, start + GROUP)):
            dropped = np.where(keeps[place], 0.0, rest[row]) / factor[row, row]
            rest[row:] -= np.outer(factor[row, row:], dropped)
            rest[row] = np.where(keeps[place], rest[row], 0.0)
    fitted = np.empty_like(matrix)
    fitted[order] = rest
    return fitted


def _largest(groups: Matrix) -> Array:
    """Which two of the four along the middle axis are the largest; the first of equal ones."""
    ranks = np.argsort(np.argsort(-groups, axis=1, kind="stable"), axis=1, kind="stable")
    return np.asarray(ranks < KEPT)


def _order(layer: Layer, rows: int) -> Array:
    """Order of the matrix's rows in which the channels at one position of the filter are adjacent."""
    places = int(np.prod(layer.kernel)) if layer.kernel else 1
    return np.arange(rows).reshape(-1, places).T.reshape(-1)


def _why_dense(layer: Layer | None, weights: ir.Value | None) -> str:
    if layer is None or weights is None:
        return "its weights are not constant, or it is a grouped convolution"
    if len(weights.uses()) > 1:
        return "its weights have another reader"
    shape = np.asarray(constant_of(weights)).shape
    channels = shape[1] if layer.kernel or layer.flipped else shape[0]
    return "" if channels % GROUP == 0 else f"it reads {channels} channels, which is no multiple of {GROUP}"
