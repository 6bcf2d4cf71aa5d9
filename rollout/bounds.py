"""An interval, and the share of false alarms it is built for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from compiler.artifact.adapter import Detail
from compiler.errors import DataError

ALPHA = 0.05
"""The largest probability that an end of the bounds is ever on the wrong side of the true value."""


@dataclass(frozen=True)
class Bounds:
    """Two ends of an interval that holds now and would have held at every earlier moment.

    Args:
        low: The lower end, -inf when nothing is known.
        high: The upper end, inf when nothing is known.
    """

    low: Detail = -math.inf
    high: Detail = math.inf


def check_alpha(alpha: float) -> None:
    """Refuse a probability that is none.

    Raises:
        DataError: It is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise DataError(f"alpha is {alpha}", remedy="give a number between 0 and 1, such as 0.05")
