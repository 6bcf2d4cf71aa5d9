"""Blocks of weights: exact on their own lattice, better where inputs are large, and of the bytes that are counted."""

import numpy as np
import pytest

from compiler.compress.quant.compensate import factor_of
from compiler.compress.weight_only.fit import fit_blocks, rounding_loss
from compiler.compress.weight_only.quantize import compensated
from compiler.target.scheme import BlockFormat


def drawn(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("format_", [BlockFormat(4, 32), BlockFormat(8, 64), BlockFormat(4, 32, symmetric=True)])
def test_weights_on_a_lattice_stay_as_they_are(format_):
    random = np.random.default_rng(0)
    top = 2**format_.bits - 1
    integers = random.integers(0, top + 1, (8, 128))
    integers[:, ::32], integers[:, 1::32] = 0, top  # every block has the whole range
    weight = ((integers - 2 ** (format_.bits - 1)) * np.float32(0.25)).astype(np.float32)
    scales = fit_blocks(weight, np.ones(128, np.float32), format_)
    assert np.array_equal(scales.rounded(weight), weight)


def test_a_range_is_fitted_to_the_inputs_that_are_large():
    weight, squares = drawn(64, 128), np.ones(128, np.float32)
    squares[::8] = 100.0
    flat, fitted = (fit_blocks(weight, heavy, BlockFormat(4, 32)) for heavy in (np.ones(128, np.float32), squares))
    assert rounding_loss(weight, squares, fitted) < 0.9 * rounding_loss(weight, squares, flat)


def test_a_block_that_is_no_part_of_the_width_is_filled_up():
    weight = drawn(4, 80)
    scales = fit_blocks(weight, np.ones(80, np.float32), BlockFormat(8, 64))
    assert scales.scale.shape == (4, 2)
    assert np.abs(scales.rounded(weight) - weight).max() < 0.02


def test_compensated_rounding_loses_less_than_rounding_to_nearest():
    random = np.random.default_rng(2)
    mixed = random.standard_normal((400, 16)).astype(np.float32) @ random.standard_normal((16, 64)).astype(np.float32)
    gram = (mixed.T @ mixed) / np.float32(len(mixed))
    weight = drawn(32, 64)
    scales = fit_blocks(weight, np.diagonal(gram).copy(), BlockFormat(4, 32))

    def loss(integers):
        error = weight - scales.values(integers)
        return float(np.einsum("ij,ij->", error @ gram, error))

    assert loss(compensated(weight, scales, factor_of(gram[None].copy()), gram, sweeps=1)) < 0.5 * loss(
        scales.integers(weight)
    )


@pytest.mark.parametrize(
    ("format_", "size"),
    [
        (BlockFormat(4, 32), 10 * (32 + 2 * (16 + 4) // 8)),
        (BlockFormat(8, 64, symmetric=True), 10 * (64 + 2)),
        (BlockFormat(5, 0), 10 * (40 + 3)),
    ],
)
def test_bytes_count_weights_scales_and_zero_points(format_, size):
    assert format_.bytes_of(10, 64) == size
