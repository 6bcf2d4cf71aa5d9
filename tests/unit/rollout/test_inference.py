"""Bounds that hold at every moment: coverage on A/A runs read after each request, equality with direct formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.errors import DataError
from rollout.bounds import Bounds
from rollout.means import FEWEST, Moments, half_width, mean_bounds
from rollout.quantiles import quantile_bounds
from rollout.sample_ratio import is_mismatched, log_evidence
from rollout.shares import BETS, WEIGHTS, Count, exceeds, log_capital, share_bounds

RUNS, LENGTH, SEED = 400, 1000, 16
COUNTS = np.arange(FEWEST, LENGTH + 1)


def running(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each run after each value from the fiftieth on."""
    counts = np.arange(1, LENGTH + 1)
    means, squares = np.cumsum(values, axis=1) / counts, np.cumsum(values**2, axis=1) / counts
    deviations = np.sqrt(np.maximum(squares - means**2, 0))
    return means[:, FEWEST - 1 :], deviations[:, FEWEST - 1 :]


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_mean_stays_in_its_bounds_when_read_after_every_pair(draw: str) -> None:
    first, second = getattr(np.random.default_rng(SEED), draw)(size=(2, RUNS, LENGTH))
    means, deviations = running(first - second)
    outside = (np.abs(means) > deviations * half_width(COUNTS)).any(axis=1).mean()
    naive = (np.abs(means) > 1.96 * deviations / np.sqrt(COUNTS)).any(axis=1).mean()
    assert outside <= 0.05
    assert naive > 0.2, "the runs are long enough that reading a fixed interval often goes wrong"


def test_mean_bounds_equal_the_papers_formula() -> None:
    values = np.random.default_rng(SEED).normal(3, 2, 200)
    weight = -2 * math.log(0.05)
    r2 = (weight + math.log(weight + 1)) / 500
    n = len(values)
    half = values.std() * math.sqrt(2 * (n * r2 + 1) / (n**2 * r2) * math.log(math.sqrt(n * r2 + 1) / 0.05))
    bounds = mean_bounds(Moments().add(values))
    assert (bounds.low, bounds.high) == pytest.approx((values.mean() - half, values.mean() + half))


@given(st.lists(st.floats(-1e6, 1e6), max_size=80), st.lists(st.floats(-1e6, 1e6), max_size=80))
@settings(max_examples=50, deadline=None)
def test_moments_of_two_parts_are_those_of_the_whole(first: list[float], second: list[float]) -> None:
    moments = Moments().add(first).add(second)
    whole = np.array([*first, *second])
    assert moments.count == whole.size
    if whole.size:
        assert moments.mean == pytest.approx(whole.mean(), rel=1e-6, abs=1e-6)
        assert moments.deviation == pytest.approx(whole.std(), rel=1e-6, abs=1e-3)


def test_few_pairs_say_nothing_and_nan_is_refused() -> None:
    assert mean_bounds(Moments().add([1.0] * (FEWEST - 1))) == Bounds()
    with pytest.raises(DataError, match="nan"):
        Moments().add([math.nan])


def test_evidence_against_a_share_equals_the_product_of_the_bets() -> None:
    requests = np.random.default_rng(SEED).random(300) < 0.1
    limit, total = 0.05, 0.0
    for odds, weight in BETS:
        best = odds * limit / (1 + (odds - 1) * limit)
        bet = (best - limit) / (limit * (1 - limit))
        total += weight * math.prod(1 + bet * (float(request) - limit) for request in requests)
    assert log_capital(Count(300, int(requests.sum())), limit) == pytest.approx(math.log(total / WEIGHTS))


@pytest.mark.parametrize("limit", [0.01, 0.2])
def test_a_share_at_its_limit_is_seldom_called_above_it(limit: float) -> None:
    hits = (np.random.default_rng(SEED).random((RUNS, 2000)) < limit).cumsum(axis=1)
    # Evidence rises with hits: after each number of requests there is a smallest number of hits that decides.
    deciding, hit = np.empty(2000, int), 0
    for index in range(2000):
        while not (hit <= index + 1 and exceeds(Count(index + 1, hit), limit)) and hit <= index + 1:
            hit += 1
        deciding[index] = hit
    assert (hits >= deciding).any(axis=1).mean() <= 0.05


@given(st.integers(1, 500), st.data())
@settings(max_examples=40, deadline=None)
def test_share_bounds_hold_the_observed_share_and_a_smaller_alpha_widens_them(total: int, data: st.DataObject) -> None:
    count = Count(total, data.draw(st.integers(0, total)))
    narrow, wide = share_bounds(count, alpha=0.1), share_bounds(count, alpha=0.01)
    assert 0 <= wide.low <= narrow.low <= count.share <= narrow.high <= wide.high <= 1


@given(st.integers(1, 300), st.data(), st.floats(0.001, 0.9))
@settings(max_examples=60, deadline=None)
def test_more_hits_are_more_evidence(total: int, data: st.DataObject, limit: float) -> None:
    hits = data.draw(st.integers(0, total - 1))
    assert log_capital(Count(total, hits + 1), limit) > log_capital(Count(total, hits), limit)
    assert log_capital(Count(total, hits), limit * 1.01) < log_capital(Count(total, hits), limit) or not hits


def test_bounds_narrow_around_a_share() -> None:
    widths = [(lambda b: b.high - b.low)(share_bounds(Count(count, count // 10))) for count in (50, 500, 5000, 50000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.02


@pytest.mark.parametrize("quantile", [0.5, 0.95])
def test_a_quantile_stays_in_its_bounds_when_read_often(quantile: float) -> None:
    generator, outside = np.random.default_rng(SEED), 0
    true = -math.log(1 - quantile)
    for _ in range(100):
        values = generator.exponential(size=600)
        read = (quantile_bounds(values[:count], quantile) for count in range(10, 601, 15))
        outside += any(not bounds.low <= true <= bounds.high for bounds in read)
    assert outside <= 5


def test_quantile_bounds_are_order_statistics_and_open_where_too_little_was_seen() -> None:
    values = np.random.default_rng(SEED).permutation(np.arange(1.0, 10_001.0))
    bounds = quantile_bounds(values, 0.5)
    assert bounds.low < 5000 < bounds.high
    assert bounds.high - bounds.low < 1200
    assert quantile_bounds(values[:100], 0.99).high == math.inf
    assert quantile_bounds(np.array([]), 0.5) == Bounds()


def test_traffic_that_is_divided_as_asked_is_seldom_called_otherwise() -> None:
    draws = np.random.default_rng(SEED).random((200, 500)) < 0.1
    counts = draws.cumsum(axis=1)[:, ::5]
    totals = np.arange(1, 501, 5)
    alarms = [
        any(is_mismatched((int(n - k), int(k)), (0.9, 0.1), alpha=0.05) for n, k in zip(totals, run, strict=True))
        for run in counts
    ]
    assert np.mean(alarms) <= 0.05


def test_traffic_divided_otherwise_is_called() -> None:
    assert is_mismatched((9300, 700), (0.9, 0.1))
    assert not is_mismatched((9000, 1000), (0.9, 0.1))
    with pytest.raises(DataError, match="sum to 1"):
        log_evidence((1, 1), (0.5, 0.4))


def test_sample_ratio_equals_the_product_of_predictions() -> None:
    shares, counts, direct = (0.9, 0.1), [0, 0], 0.0
    for index in np.random.default_rng(SEED).integers(0, 2, 60):
        predicted = (100 * shares[index] + counts[index]) / (100 + sum(counts))
        direct += math.log(predicted / shares[index])
        counts[index] += 1
    assert log_evidence(counts, shares) == pytest.approx(direct)


def test_mean_bounds_agree_with_confseq() -> None:
    boundaries = pytest.importorskip("confseq.boundaries", reason="confseq builds from source, with Boost's headers")
    bound = boundaries.normal_mixture_bound(COUNTS.astype(float), 0.05, 500.0, 0.05, is_one_sided=False)
    assert bound / COUNTS == pytest.approx(half_width(COUNTS), rel=1e-9)
