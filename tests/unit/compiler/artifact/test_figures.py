"""Numbers as people write them."""

from __future__ import annotations

import math

import pytest

from compiler.artifact import Evidence
from compiler.artifact.figures import decimals_of, figure_text, rough_text
from compiler.artifact.schema import Speed, SpeedUnit


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (2.5837, 2.561, 2.607, "2.58 (2.56 to 2.61)"),
        (2.5837, 1.9, 3.3, "2.6 (1.9 to 3.3)"),
        (4.4, 1.0, 8.0, "4 (1 to 8)"),
        (0.0, -2.0, 2.0, "0 (-2 to 2)"),
        (1.0, 1.0, 1.0, "1.00"),
        (1.234567, None, None, "1.23"),
        (1.0, 0.0, math.inf, "1.00"),
    ],
    ids=["narrow", "wider", "wide", "none lost", "no width", "no interval", "no upper end"],
)
def test_a_figure_has_the_digits_that_its_interval_leaves(
    value: float, low: float | None, high: float | None, text: str
) -> None:
    assert figure_text(value, low, high) == text


def test_a_tiny_interval_is_not_written_in_full() -> None:
    assert decimals_of(1.0, 1.0 + 1e-12) == 4


@pytest.mark.parametrize(
    ("value", "text"), [(0.0378, "0.038"), (3.14159, "3.1"), (27.4, "27"), (1234.0, "1200"), (0.0, "0")]
)
def test_an_estimate_has_two_digits_and_no_exponent(value: float, text: str) -> None:
    assert rough_text(value) == text


def test_a_roofline_is_about_so_much_or_more_with_its_range() -> None:
    speed = Speed(2.345, 0.0378, 0.0887, SpeedUnit.ROOFLINE_MS, Evidence.ESTIMATED, value_high=0.052)
    assert speed.time_words == "about 0.038 ms or more (0.038 to 0.052 by the roofline)"
    assert speed.ratio_words == "about 2.3 × float32"


def test_a_disturbed_ratio_is_called_so_wherever_it_is_written() -> None:
    speed = Speed(4.4, 1.0, 4.4, SpeedUnit.MS, Evidence.HOST, low=3.8, high=5.0, disturbed="work waited")
    assert speed.ratio_words == "4.4 (3.8 to 5.0) × float32, disturbed"
    assert speed.short_words == "4.4 x, disturbed (measured-host)"
