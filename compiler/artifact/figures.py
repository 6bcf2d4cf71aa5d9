"""Numbers as people write them: as many digits as the interval of a figure leaves certain."""

from __future__ import annotations

import math

# an interval of almost no width must not fill a table with digits
MOST_DECIMALS = 4
SIGNIFICANT = 2
"""Digits of a figure that has no interval, where an estimate is all there is."""


def decimals_of(low: float | None, high: float | None) -> int | None:
    """Decimals down to the first digit that the interval leaves in doubt; None where it has no width."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return None
    return max(0, min(MOST_DECIMALS, -math.floor(math.log10((high - low) / 2))))


def figure_text(value: float, low: float | None, high: float | None, *, decimals: int = 2) -> str:
    """A figure with its interval, `2.58 (2.55 to 2.61)`; with so many decimals where it has none."""
    places = decimals_of(low, high)
    if places is None or low is None or high is None:
        return f"{value:.{decimals}f}"
    return f"{value:.{places}f} ({low:.{places}f} to {high:.{places}f})"


def short_ratio(ratio: float, low: float | None, high: float | None, *, is_estimate: bool) -> str:
    """A speed-up with as many digits as its interval leaves certain, and without the interval."""
    places = decimals_of(low, high)
    return f"about {rough_text(ratio)}" if is_estimate else f"{ratio:.{2 if places is None else places}f}"


def ratio_figure(ratio: float, low: float | None, high: float | None, *, is_estimate: bool) -> str:
    """A speed-up: measured with its interval, or about so much where it was estimated."""
    return f"about {rough_text(ratio)}" if is_estimate else figure_text(ratio, low, high)


def time_text(value_ms: float, high_ms: float | None, *, is_estimate: bool) -> str:
    """A time: an estimate is the least it can be, up to what it is where arithmetic and memory do not overlap."""
    if not is_estimate:
        return f"{value_ms:.2f} ms"
    spread = "" if high_ms is None else f" ({rough_text(value_ms)} to {rough_text(high_ms)} by the roofline)"
    return f"about {rough_text(value_ms)} ms or more{spread}"


def rough_text(value: float) -> str:
    """A figure that was estimated: two significant digits and no exponent."""
    if not value:
        return "0"
    places = SIGNIFICANT - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):.{max(0, places)}f}"
