"""The fewest layers in float that hold the limit are found, and the search ends early where nothing helps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compiler.driver.search.float_layers import FAR_PLATEAU, PLATEAU, fewest_layers


@given(st.integers(1, 60), st.integers(1, 60))
def test_where_more_layers_never_hurt_the_least_count_that_holds_is_found(needed: int, most: int) -> None:
    calls: list[int] = []

    def drop_at(count: int) -> float:
        calls.append(count)
        return 10.0 - 9.0 * min(1.0, count / needed)

    found = fewest_layers(drop_at, most=most, limit=1.0, first=10.0, budget=100)
    if needed <= most and found.why not in ("plateau", "far"):
        assert found.count == needed and found.why == "held"
    else:
        assert found.count is None
    assert len(calls) <= 14 and len(set(calls)) == len(calls), "no count is tried twice"


def test_a_drop_that_stays_where_it_is_ends_the_search() -> None:
    calls: list[int] = []

    def drop_at(count: int) -> float:
        calls.append(count)
        return 6.0

    found = fewest_layers(drop_at, most=1000, limit=2.0, first=6.0, budget=100)
    assert (found.count, found.why) == (None, "plateau")
    assert len(calls) == PLATEAU


def test_an_exhausted_budget_ends_it_with_what_was_seen_to_hold() -> None:
    assert fewest_layers(lambda count: 9.0 / count, most=64, limit=0.5, first=9.0, budget=3).why == "budget"
    held = fewest_layers(lambda count: 9.0 / count, most=64, limit=1.0, first=9.0, budget=5)
    assert held.count == 16, "the fifth call was the first that held; nothing was left to halve with"


def test_no_more_layers_are_reverted_than_may_be() -> None:
    found = fewest_layers(lambda count: 9.0 - count, most=5, limit=1.0, first=9.0, budget=100)
    assert (found.count, found.why) == (None, "layers")


def test_a_drop_far_off_the_limit_that_nothing_moves_ends_the_search_sooner() -> None:
    calls: list[int] = []

    def drop_at(count: int) -> float:
        calls.append(count)
        return 60.0

    found = fewest_layers(drop_at, most=1000, limit=2.0, first=60.0, budget=100)
    assert (found.count, found.why) == (None, "far")
    assert len(calls) == FAR_PLATEAU < PLATEAU


def test_a_drop_far_off_the_limit_that_still_falls_is_searched_on() -> None:
    found = fewest_layers(lambda count: max(0.0, 60.0 - count), most=1000, limit=2.0, first=60.0, budget=100)
    assert (found.count, found.why) == (58, "held")
