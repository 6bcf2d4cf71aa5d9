"""The interval of a ratio of paired times."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compiler.evaluate.paired import LEAST_PAIRS, _outside, centre_of, ratio_of


def test_a_hand_worked_example() -> None:
    """Walsh averages of 1, 2, 4: 1, 1.5, 2, 2.5, 3, 4; their median is 2.25."""
    assert centre_of([1.0, 2.0, 4.0]).value == 2.25


@pytest.mark.parametrize(("count", "outside"), [(6, 0), (7, 2), (10, 8), (15, 25), (20, 52), (25, 89)])
def test_critical_values_are_those_of_the_published_table_of_the_signed_rank_test(count: int, outside: int) -> None:
    """Two-sided, 5 %: Wilcoxon's T is 0, 2, 8, 25, 52, 89; as many averages are left out on each side."""
    assert _outside(count) == outside


def test_too_few_pairs_have_no_interval() -> None:
    found = ratio_of([2.0] * (LEAST_PAIRS - 1), [1.0] * (LEAST_PAIRS - 1))
    assert (found.value, found.low, found.high) == (2.0, 0.0, math.inf)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    held = 0
    for _ in range(400):
        differences = rng.normal(0.5, 1.0, 8)
        found = centre_of(list(differences))
        held += found.low <= 0.5 <= found.high
    assert 0.94 <= held / 400 <= 0.99


def test_a_ratio_survives_load_on_a_quarter_of_its_blocks() -> None:
    rng = np.random.default_rng(12)
    own, other = rng.normal(2.0, 0.02, 20), rng.normal(5.0, 0.05, 20)
    own[:2] *= 8
    other[5:7] *= 8
    found = ratio_of(list(other), list(own))
    assert found.value == pytest.approx(2.5, rel=0.03)
    assert found.low < 2.5 < found.high


def test_many_pairs_narrow_the_interval() -> None:
    rng = np.random.default_rng(13)
    few, many = (centre_of(list(rng.normal(0, 1, count))).half_width for count in (10, 160))
    assert many < few / 2
