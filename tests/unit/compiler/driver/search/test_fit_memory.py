"""How many bytes the next build's weights may take after one was measured."""

from __future__ import annotations

import pytest

from compiler.driver.search.fit_memory import SPARE, next_payload, process_slope

LEAST, SIZE = 1_000, 10_000


def test_a_build_over_the_limit_is_followed_by_one_that_is_smaller_by_what_was_missing() -> None:
    assert next_payload(SIZE, 1_500, least=LEAST, over=None, is_last=False) == SIZE - 1_500


def test_a_payload_never_gets_less_than_the_target_can_make() -> None:
    assert next_payload(SIZE, SIZE, least=LEAST, over=None, is_last=False) == LEAST
    assert next_payload(LEAST, 1, least=LEAST, over=SIZE, is_last=False) is None


def test_a_first_build_within_the_limit_is_kept() -> None:
    assert next_payload(SIZE, -5_000, least=LEAST, over=None, is_last=False) is None


def test_bytes_that_are_spare_after_a_smaller_build_go_back_but_not_up_to_what_was_over() -> None:
    assert next_payload(SIZE, -500, least=LEAST, over=20_000, is_last=False) == SIZE + 500
    assert next_payload(SIZE, -5_000, least=LEAST, over=12_000, is_last=False) == 11_000


@pytest.mark.parametrize(("excess", "over"), [(-int(SPARE * SIZE) + 1, 20_000), (-5_000, SIZE + 2)])
def test_a_little_is_not_worth_a_build(excess: int, over: int) -> None:
    assert next_payload(SIZE, excess, least=LEAST, over=over, is_last=False) is None


def test_where_a_smaller_build_fits_one_that_is_over_is_the_last() -> None:
    assert next_payload(SIZE, 100, least=LEAST, over=20_000, is_last=True) is None


def test_where_a_runtime_copies_weights_fewer_bytes_of_them_bring_what_is_missing() -> None:
    slope = process_slope(SIZE, 15_000, 2_000)
    assert slope == 1.3
    assert next_payload(SIZE, 1_300, least=LEAST, over=None, is_last=False, slope=slope) == SIZE - 1_000
    assert process_slope(SIZE, 10_000, 2_000) == process_slope(SIZE, None, 2_000) == process_slope(SIZE, 9, None) == 1.0
