"""What a report reads of a manifest's saliency; sizes are bounded, because a manifest may come from anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from pydantic import Field, FiniteFloat

MAX_SIDE = 64
"""Rows or columns of a map, and pixels of a picture's side."""

Map: TypeAlias = Annotated[
    tuple[Annotated[tuple[FiniteFloat, ...], Field(min_length=1, max_length=MAX_SIDE)], ...],
    Field(min_length=1, max_length=MAX_SIDE),
]
"""Values by rows; the largest magnitude is 1."""


@dataclass(frozen=True)
class Shown:
    """One picture (base64 of a PNG) with the float model's map and the build's."""

    png: Annotated[str, Field(max_length=1 << 16)]
    original: Map
    build: Map
    correlation: FiniteFloat | None


@dataclass(frozen=True)
class Saliency:
    """How alike a build's saliency maps are to the float model's; `correlation` is None where nothing was compared."""

    correlation: FiniteFloat | None
    evidence: str
    images: int = 0
    score: str = ""
    note: str = ""
    lowest_correlation: FiniteFloat | None = None
    top_overlap: FiniteFloat | None = None
    insertion_change: FiniteFloat | None = None
    deletion_change: FiniteFloat | None = None
    shown: Annotated[tuple[Shown, ...], Field(max_length=16)] = ()

    def __post_init__(self) -> None:
        if (self.correlation is None) != (self.lowest_correlation is None):
            raise ValueError("one correlation is there without the other")
