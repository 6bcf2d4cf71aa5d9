from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from compiler.model.numerics import TOLERANCES, coarser, compare, compare_all, is_floating

_WANT = np.array([[3.0, 4.0], [0.0, -5.0]], dtype=np.float32)


def test_equal_tensors_are_infinitely_close() -> None:
    stats = compare(_WANT, _WANT.copy())
    assert (stats.sqnr_db, stats.cosine, stats.worst_abs, stats.elements) == (math.inf, 1.0, 0.0, 4)


def test_sqnr_is_signal_over_noise_in_decibels() -> None:
    got = _WANT.copy()
    got[0, 1] += 0.5
    stats = compare(_WANT, got)
    assert stats.sqnr_db == pytest.approx(10 * math.log10(50 / 0.25))
    assert stats.worst_abs == pytest.approx(0.5)
    assert stats.worst_index == (0, 1)


def test_cosine_ignores_scale_and_sqnr_does_not() -> None:
    stats = compare(_WANT, _WANT * 2)
    assert stats.cosine == pytest.approx(1.0)
    assert stats.sqnr_db == pytest.approx(0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_number_that_became_none_is_wholly_wrong_and_named(bad: float) -> None:
    got = _WANT.copy()
    got[1, 0] = bad
    stats = compare(_WANT, got)
    assert stats.sqnr_db == -math.inf
    assert stats.worst_index == (1, 0)


def test_nan_and_infinity_where_they_are_expected_are_equal() -> None:
    special = np.array([math.nan, math.inf, -math.inf, 1.0], dtype=np.float32)
    assert compare(special, special.copy()).sqnr_db == math.inf


@pytest.mark.parametrize("level", [name for name in TOLERANCES if name != "pruned"])
def test_no_tolerance_accepts_another_shape_nan_or_zeros(level: str) -> None:
    tolerance = TOLERANCES[level]
    assert not tolerance.accepts(compare(_WANT, _WANT.reshape(4)))
    assert not tolerance.accepts(compare(_WANT, np.full_like(_WANT, math.nan)))
    assert not tolerance.accepts(compare(_WANT, np.zeros_like(_WANT)))


@pytest.mark.parametrize(("level", "db"), [("fp32", 60.0), ("fp16", 35.0), ("bf16", 20.0)])
def test_tolerance_draws_the_line_at_its_sqnr(level: str, db: float) -> None:
    want = np.random.default_rng(0).standard_normal(1000)
    noise = np.random.default_rng(1).standard_normal(1000)
    noise *= np.sqrt(np.square(want).sum() / np.square(noise).sum())
    inside, outside = (compare(want, want + noise * 10 ** (-(db + margin) / 20)) for margin in (0.5, -0.5))
    assert TOLERANCES[level].accepts(inside)
    assert not TOLERANCES[level].accepts(outside)


def test_exact_accepts_no_difference_at_all() -> None:
    want = np.array([1, 2, 1 << 20])
    assert TOLERANCES["exact"].accepts(compare(want, want.copy()))
    assert not TOLERANCES["exact"].accepts(compare(want, want + np.array([0, 0, 1])))


def test_booleans_and_strings_are_compared_for_equality() -> None:
    assert compare(np.array([True, False]), np.array([True, False])).sqnr_db == math.inf
    assert compare(np.array([True, False]), np.array([True, True])).worst_abs == 1.0
    assert compare(np.array(["a"]), np.array(["a"])).sqnr_db == math.inf
    assert compare(np.array(["a"]), np.array(["b"])).sqnr_db == -math.inf


def test_tensors_without_elements_are_equal() -> None:
    assert compare(np.zeros((0, 3)), np.zeros((0, 3))).sqnr_db == math.inf


def test_missing_output_is_wholly_wrong() -> None:
    found = compare_all({"y": _WANT, "z": _WANT}, {"y": _WANT})
    assert found["y"].sqnr_db == math.inf
    assert found["z"].sqnr_db == -math.inf


def test_equal_infinities_do_not_spoil_the_angle_of_the_rest() -> None:
    """A masked row holds −∞ on both sides; the finite elements decide."""
    expected = np.array([-np.inf, 1.0, 2.0, np.inf, np.nan], np.float32)
    actual = expected + np.array([0, 1e-6, -1e-6, 0, 0], np.float32)
    stats = compare(expected, actual)
    assert TOLERANCES["fp32"].accepts(stats), stats
    assert compare(expected, np.array([np.inf, 1, 2, np.inf, np.nan], np.float32)).sqnr_db == -math.inf


@pytest.mark.parametrize("level", ["quantized", "pruned"])
def test_no_level_for_another_network_accepts_what_is_no_number(level: str) -> None:
    assert not TOLERANCES[level].accepts(compare(_WANT, np.full_like(_WANT, math.nan)))
    assert not TOLERANCES[level].accepts(compare(_WANT, _WANT.reshape(4)))


def test_pruned_level_takes_another_function() -> None:
    assert TOLERANCES["pruned"].accepts(compare(_WANT, -3 * _WANT))


def test_quantized_level_refuses_more_noise_than_half_the_signal() -> None:
    assert TOLERANCES["quantized"].accepts(compare(_WANT, 0.5 * _WANT))
    assert not TOLERANCES["quantized"].accepts(compare(_WANT, 0.2 * _WANT))
    assert not TOLERANCES["quantized"].accepts(compare(_WANT, 3 * _WANT))


def test_other_shape_is_told_by_both_shapes() -> None:
    """It read "SQNR -inf dB, worst element [] off by inf"."""
    assert str(compare(np.zeros((4, 5)), np.zeros((1, 5)))) == "it has the shape (1, 5) instead of (4, 5)"


def test_missing_output_and_lost_number_are_told_in_words() -> None:
    assert str(compare_all({"y": _WANT}, {})["y"]) == "it is missing"
    lost = np.where(_WANT == 4.0, np.float32(np.nan), _WANT)
    assert str(compare(_WANT, lost)) == "NaN or an infinity on one side alone, first at [0, 1]"


@pytest.mark.parametrize("factor", [1e-250, 1e-30, 1.0, 1e30, 1e250])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (1000,)])
@pytest.mark.parametrize("noise", [1e-2, 1e-4, 1e-6])
def test_statistics_do_not_depend_on_the_scale(factor: float, shape: tuple[int, ...], noise: float) -> None:
    """Squares left the range of float64: an output near 1e-200 had a cosine of 0, and any noise was none."""
    random = np.random.default_rng(len(shape))
    want = np.asarray(random.standard_normal(shape)) + 2.0
    got = want * (1.0 + noise)
    plain, scaled = compare(want, got), compare(want * factor, got * factor)
    assert scaled.sqnr_db == pytest.approx(plain.sqnr_db, abs=1e-3)
    assert scaled.sqnr_db == pytest.approx(-20 * math.log10(noise), abs=1e-2)
    assert scaled.cosine == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(8))
def test_a_ratio_inside_a_level_bounds_the_angle(seed: int) -> None:
    """Why the levels have no bound for the cosine: cos ≥ √(1 − r²) for noise of r times the signal."""
    random = np.random.default_rng(seed)
    want = random.standard_normal(random.integers(1, 50))
    noise = random.standard_normal(want.shape)
    for ratio in (0.1, 0.0178, 0.001):
        stats = compare(want, want + noise * ratio * np.linalg.norm(want) / np.linalg.norm(noise))
        assert stats.cosine >= math.sqrt(1 - ratio**2) - 1e-12


@pytest.mark.parametrize("seed", range(8))
def test_equal_infinities_and_nan_change_no_figure(seed: int) -> None:
    random = np.random.default_rng(seed)
    want = random.standard_normal(20)
    got = want + 1e-5 * random.standard_normal(20)
    special = np.array([np.inf, -np.inf, np.nan])
    stats, bare = compare(np.append(want, special), np.append(got, special)), compare(want, got)
    assert (stats.sqnr_db, stats.cosine) == pytest.approx((bare.sqnr_db, bare.cosine))


def test_coarser_level_allows_more() -> None:
    assert coarser(TOLERANCES["fp16"], TOLERANCES["fp32"]).name == "fp16"
    assert coarser(TOLERANCES["int8"], TOLERANCES["fp16"]).name == "int8"


def test_bfloat16_is_a_floating_point_number() -> None:
    """NumPy gives it the kind of a structure, so outputs in it had to be equal to the bit."""
    assert is_floating(np.zeros(2, ir.DataType.BFLOAT16.numpy()))
    assert not is_floating(np.zeros(2, ir.DataType.INT4.numpy()))


@pytest.mark.parametrize("tiny", [1e-200, 5e-324])
def test_a_difference_whose_square_is_zero_is_very_small_and_no_crash(tiny: float) -> None:
    """Beside 1e200 the noise is 0 in float64, and the logarithm of 0 ended the build."""
    stats = compare(np.array([1e200, tiny]), np.array([1e200, 0.0]))
    assert 1000.0 < stats.sqnr_db < np.inf
    assert TOLERANCES["fp32"].accepts(stats) and not TOLERANCES["exact"].accepts(stats)
