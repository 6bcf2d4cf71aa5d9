"""Weights in the order in which the kernels read them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from targets.arm_tvm.kernels.integer.conv import chunks
from targets.arm_tvm.kernels.integer.gathered import gathered
from targets.arm_tvm.kernels.integer.int8_depthwise import FOUR
from targets.arm_tvm.kernels.integer.runs import as_multiplied, runs_of
from targets.arm_tvm.kernels.integer.specs import BLOCK, ConvSpec, Dot
from targets.arm_tvm.kernels.integer.tiles import Tile
from targets.arm_tvm.kernels.integer.vectors import OFFSET, vectors_of
from targets.arm_tvm.kernels.integer.ways import Way, WinogradTile
from targets.arm_tvm.kernels.runs import chunk_words

Int8 = NDArray[np.int8]
Int32 = NDArray[np.int32]


def pack_weights(weights: Int8, spec: ConvSpec, way: Way, dot: Dot) -> Int8:
    """Flat weights of a convolution.

    Args:
        weights: (output channels, input channels, rows, columns).
        spec: The convolution.
        way: How it is computed.
        dot: How it multiplies.
    """
    return _taps(weights, spec) if isinstance(way, WinogradTile) else _pack_direct(weights, spec, way, dot)


def _taps(weights: Int8, spec: ConvSpec) -> Int8:
    """For Winograd's algorithm: [block of output channels][input channel][tap][16], flat."""
    outputs, inputs = weights.shape[:2]
    full = np.zeros((spec.result.blocks * BLOCK, spec.source.blocks * BLOCK, weights[0, 0].size), np.int8)
    full[:outputs, :inputs] = weights.reshape(outputs, inputs, -1)
    return np.ascontiguousarray(full.reshape(-1, BLOCK, *full.shape[1:]).transpose(0, 2, 3, 1)).reshape(-1)


def _pack_direct(weights: Int8, spec: ConvSpec, tile: Tile, dot: Dot) -> Int8:
    own = gathered(spec, dot)
    if own != spec:
        spec, weights = own, weights.transpose(0, 2, 3, 1).reshape(len(weights), -1, 1, 1)
    outputs, inputs, height, width = weights.shape
    missing = spec.result.blocks * BLOCK - outputs
    if not vectors_of(dot).by_lane:
        return _by_runs(np.pad(weights, ((0, missing), (0, 0), (0, 0), (0, 0))), spec, tile, dot)
    if spec.source.layout == "pixels":
        # One row of a window is one run of bytes, filled up with zeros to the lanes that are multiplied.
        length = 4 * sum(chunks(spec, dot))
        rows = weights.transpose(0, 2, 3, 1).reshape(outputs, height, 1, width * inputs)
        reduced = np.pad(rows, ((0, missing), (0, 0), (0, 0), (0, length - width * inputs)))
        return _ordered(reduced.reshape(-1, 1, height, 1, length), tile, dot)
    grown = np.pad(weights, ((0, missing), (0, spec.source.blocks * BLOCK - inputs), (0, 0), (0, 0)))
    blocked = grown.reshape(-1, spec.source.blocks, BLOCK, height, width).transpose(0, 1, 3, 4, 2)
    return _ordered(blocked, tile, dot)


def _ordered(weights: Int8, tile: Tile, dot: Dot) -> Int8:
    """(outputs, blocks, rows, columns, inputs) → flat, tile of channels by tile."""
    _, blocks, height, width, inputs = weights.shape
    groups = tile.groups
    if dot == "sdot":
        parts = weights.reshape(-1, groups, 4, blocks, height, width, inputs // 4, 4)
        order = (0, 3, 4, 5, 6, 1, 2, 7)
    elif dot == "smmla":
        parts = weights.reshape(-1, 2 * groups, 2, blocks, height, width, inputs // 8, 8)
        order = (0, 3, 4, 5, 6, 1, 2, 7)
    else:
        parts = weights.reshape(-1, 4 * groups, 1, blocks, height, width, inputs // BLOCK, BLOCK)
        order = (0, 3, 4, 5, 6, 1, 2, 7)
    return np.ascontiguousarray(parts.transpose(order)).reshape(-1)


def _by_runs(weights: Int8, spec: ConvSpec, tile: Tile, dot: Dot) -> Int8:
    """For x86: words of four inputs of the runs that windows read, for as many output channels as a vector has."""
    outputs, inputs, height, width = weights.shape
    multiplied = as_multiplied(spec, dot)
    runs, lanes = runs_of(multiplied), vectors_of(dot).lanes
    if spec.source.layout == "pixels":
        rows = weights.transpose(0, 2, 3, 1).reshape(outputs, height, width * inputs)
        ordered = np.pad(rows, ((0, 0), (0, 0), (0, 4 * runs.words - width * inputs)))
    else:
        grown = np.pad(weights, ((0, 0), (0, multiplied.source.blocks * BLOCK - inputs), (0, 0), (0, 0)))
        ordered = grown.reshape(outputs, -1, BLOCK, height, width).transpose(0, 1, 3, 4, 2)
    # AMX takes all words of a row of its tile for 16 channels, then those of the next 16; vpdpbusd word by word.
    words = chunk_words(runs) if vectors_of(dot).tiled else 1
    parts = ordered.reshape(-1, 4 * tile.groups // lanes, lanes, runs.total_words // words, words, 4)
    return np.ascontiguousarray(parts.transpose(0, 3, 1, 4, 2, 5)).reshape(-1)


def start_of(weights: Int8) -> Int32:
    """What the sums of each output channel begin with where activations are stored 128 higher: −128 · Σ weights."""
    sums = weights.reshape(len(weights), -1).sum(axis=1, dtype=np.int32)
    return np.pad(-OFFSET * sums, (0, -len(weights) % BLOCK)).astype(np.int32)


def pack_depthwise(weights: Int8, dot: Dot) -> Int8:
    """Flat weights (channels, 1, rows, columns) → block of 16 channels by block, by taps, or by four taps of a row."""
    channels, _, height, width = weights.shape
    if not vectors_of(dot).by_lane:
        fours = np.pad(weights[:, 0], ((0, -channels % BLOCK), (0, 0), (0, -width % FOUR)))
        ordered = fours.reshape(-1, BLOCK, height, fours.shape[2] // FOUR, FOUR).transpose(0, 2, 3, 1, 4)
        return np.ascontiguousarray(ordered).reshape(-1)
    grown = np.pad(weights.reshape(channels, height * width), ((0, -channels % BLOCK), (0, 0)))
    return np.ascontiguousarray(grown.reshape(-1, BLOCK, height * width).transpose(0, 2, 1)).reshape(-1)
