"""Tiles along one axis of an image, sorted by how they lie on its borders: each kind becomes code of its own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Span:
    """Consecutive tiles along one axis that cross the border of the image in the same way.

    Args:
        first: Number of the first tile.
        count: Tiles.
        inside: Half-open range of the source lines under a tile that are not padding.
        lines: Result lines of a tile; the last tile of an axis may have fewer than the others.
    """

    first: int
    count: int
    inside: tuple[int, int]
    lines: int


def find_spans(result: int, tile: int, *, source: int, padding: int, stride: int, reach: int) -> tuple[Span, ...]:
    """The tiles along an axis, in order.

    Args:
        result: Lines of the result.
        tile: Of them in one tile.
        source: Lines of the source.
        padding: Lines before it.
        stride: Source lines from one line of the result to the next.
        reach: Source lines under one tile.
    """
    kinds = []
    for first in range(0, result, tile):
        origin = first * stride - padding
        kinds.append((max(0, -origin), min(reach, source - origin), min(tile, result - first)))
    spans, number = [], 0
    for (low, high, lines), same in groupby(kinds):
        count = len(list(same))
        spans.append(Span(number, count, (low, high), lines))
        number += count
    return tuple(spans)
