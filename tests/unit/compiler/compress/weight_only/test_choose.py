"""Formats under a limit of bytes: what is chosen costs no more than any other choice that fits."""

from itertools import product

import numpy as np
import pytest

from compiler.compress.weight_only.choose import Option, choose_formats, lower_hull
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
    chosen = choose_formats(options, 30_000)
    used, cost = sum(o.bytes for o, _ in chosen.values()), sum(o.kl for o, _ in chosen.values())
    assert used <= 30_000
    best = min(sum(o.kl for o in row) for row in product(*options.values()) if sum(o.bytes for o in row) <= used)
    # greedy steps end at the hull; a last small step may leave it
    assert cost <= 1.25 * best


def test_a_format_that_is_never_best_is_on_no_hull():
    worse = Option(BlockFormat(5, 32), 5500, 1.0)
    assert worse not in lower_hull(
        [Option(BlockFormat(4, 32), 4600, 0.5), worse, Option(BlockFormat(8, 64), 8400, 0.1)]
    )


def test_a_limit_below_the_smallest_formats_fails_and_says_what_they_take():
    with pytest.raises(GateFailed) as failed:
        choose_formats(curves(0), 10_000)
    assert failed.value.exit_code == 5
    assert "may take 0.01 MB, and their smallest formats take 0.021 MB" in str(failed.value)
    assert "divergence of" in str(failed.value)
