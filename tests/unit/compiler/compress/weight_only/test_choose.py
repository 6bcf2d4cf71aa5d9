"""Formats under a limit of bytes: what is chosen costs no more than any other choice that fits."""

import json
from dataclasses import astuple
from itertools import product

import numpy as np
import pytest

from compiler.compress.weight_only.choose import Budget, Option, choose_formats, choose_weights, lower_hull
from compiler.errors import GateFailed
from compiler.target.scheme import BlockFormat

FORMATS = [BlockFormat(4, 64), BlockFormat(4, 32), BlockFormat(6, 64), BlockFormat(8, 64)]


def curves(seed: int, count: int = 5) -> dict[str, list[Option]]:
    random = np.random.default_rng(seed)
    return {
        f"w{number}": [
            Option(format_, int(size * 100), float(price / 4**format_.bits))
            for format_, size in zip(FORMATS, (43, 46, 65, 84), strict=True)
        ]
        for number, price in enumerate(np.exp(random.normal(6, 2, count)))
    }


@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_the_best_for_the_bytes_it_takes(seed):
    options = curves(seed)
    chosen = choose_formats(options, Budget(30_000))
    used, cost = sum(o.bytes for o, _ in chosen.values()), sum(o.kl for o, _ in chosen.values())
    assert used <= 30_000
    best = min(sum(o.kl for o in row) for row in product(*options.values()) if sum(o.bytes for o in row) <= used)
    # greedy steps end at the hull; a last small step may leave it
    assert cost <= 1.25 * best


def test_a_format_that_is_never_best_is_on_no_hull():
    worse = Option(BlockFormat(5, 32), 5500, 1.0)
    assert worse not in lower_hull(
        [Option(BlockFormat(4, 32), 4600, 0.5), worse, Option(BlockFormat(8, 64), 8400, 0.1)], Budget(9000).cost
    )


def test_a_limit_below_the_smallest_formats_fails_and_says_what_they_take():
    with pytest.raises(GateFailed) as failed:
        choose_formats(curves(0), Budget(10_000))
    assert failed.value.exit_code == 5
    assert "may take 0.01 MB, and their smallest formats take 0.021 MB" in str(failed.value)
    assert "divergence of" in str(failed.value)


def test_the_least_bytes_of_a_plan_are_the_least_that_can_be_had(tmp_path):
    rows = [
        {
            "name": name,
            "node": name,
            "op": "MatMul",
            "elements": 100,
            "options": [[astuple(option.format), option.bytes, option.kl] for option in options],
        }
        for name, options in curves(0).items()
    ]
    measured = tmp_path / "weights.json"
    measured.write_text(json.dumps({"other_bytes": 77, "weights": rows}))

    def chosen(size: int | None):
        return choose_weights(measured, budget=Budget(size), times={}, scheme="int4")

    least = chosen(None).least_bytes
    assert chosen(least).bytes == least
    with pytest.raises(GateFailed):
        chosen(least - 1)


@pytest.mark.parametrize("seed", range(3))
def test_a_limit_of_time_leaves_formats_that_are_slow_and_bytes_still_hold(seed):
    """6 bits are two products, and take longer than 8 where those fit."""
    times = {4: 1.0, 6: 2.1, 8: 1.5}
    options = {
        name: [Option(o.format, o.bytes, o.kl, times[o.format.bits] / 5) for o in row]
        for name, row in curves(seed).items()
    }
    chosen = [option for option, _ in choose_formats(options, Budget(40_000, 1.3)).values()]
    assert sum(option.bytes for option in chosen) <= 40_000 and sum(option.time for option in chosen) <= 1.3
    assert {option.format.bits for option in chosen} == {4, 8}
    free = [option for option, _ in choose_formats(options, Budget(40_000)).values()]
    assert sum(option.time for option in free) > 1.3


def test_a_limit_of_time_below_the_fastest_formats_fails():
    options = {"w": [Option(BlockFormat(4, 64), 43, 1.0, 1.0), Option(BlockFormat(8, 64), 84, 0.1, 1.5)]}
    with pytest.raises(GateFailed, match=r"products may take 0\.9 of the time"):
        choose_formats(options, Budget(None, 0.9))
