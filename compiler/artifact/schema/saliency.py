"""How similar saliency maps are to the float model's; sizes are bounded, as a manifest may come from anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from pydantic import Field, FiniteFloat

from compiler.artifact.adapter import Number
from compiler.artifact.artifact import Evidence
from compiler.artifact.schema.accuracy import MeasuredOn

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
    correlation: Number


@dataclass(frozen=True)
class Saliency:
    """How similar a candidate's saliency maps are to the float model's.

    Args:
        correlation: Mean rank correlation of the maps; None where nothing was compared.
        lowest_correlation: The lowest of them.
        compared: Pictures for which a correlation is defined.
        images: Pictures in all.
        score: What the maps are of, in words.
        measured_on: What was run.
        evidence: Where.
        note: Why nothing was compared, or what its reader should know.
        top_overlap: Mean share of the most important parts that are the same.
        insertion_change: Mean difference of the insertion areas.
        deletion_change: Mean difference of the deletion areas.
        shown: Some pictures with both maps; only of what is delivered.
    """

    correlation: Number
    lowest_correlation: Number
    compared: int
    images: int
    score: str
    measured_on: MeasuredOn
    evidence: Evidence
    note: str = ""
    top_overlap: Number = None
    insertion_change: Number = None
    deletion_change: Number = None
    shown: Annotated[tuple[Shown, ...], Field(max_length=16)] = ()

    def __post_init__(self) -> None:
        if (self.correlation is None) != (self.lowest_correlation is None):
            raise ValueError("one correlation is there without the other")
