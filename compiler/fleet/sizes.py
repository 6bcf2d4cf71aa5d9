"""The sizes of a dimension, and those that are sums of others: `total: past + sequence`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True)
class Range:
    """The sizes one dimension may take on a device: all of min..max, fastest at opt."""

    min: Annotated[int, Field(ge=0, description="Smallest size; of a batch at least 1.")]
    opt: Annotated[int, Field(ge=0, description="Size to be fastest at.")]
    max: Annotated[int, Field(ge=0, description="Largest size.")]

    def __post_init__(self) -> None:
        if not self.min <= self.opt <= self.max:
            raise ValueError("must hold min <= opt <= max")

    def __str__(self) -> str:
        return str(self.min) if self.is_fixed else f"{self.min}..{self.max} (fastest at {self.opt})"

    def __add__(self, other: Self) -> Range:
        return Range(self.min + other.min, self.opt + other.opt, self.max + other.max)

    @property
    def is_fixed(self) -> bool:
        """Whether only one size is possible."""
        return self.min == self.max


ONE = Range(1, 1, 1)


def resolve_sums(written: Mapping[str, Range | str], *, batch: Range) -> dict[str, Range]:
    """Every size as a range, sums worked out; a sum may be of other sums.

    Args:
        written: Dimension → its sizes, or a sum of names and numbers.
        batch: What the name `batch` stands for.

    Raises:
        ValueError: A sum names a dimension that has no size, or is of itself.
    """
    known = {"batch": batch, **{name: size for name, size in written.items() if isinstance(size, Range)}}
    waiting = {name: text for name, text in written.items() if isinstance(text, str)}
    while waiting:
        solved = {name: size for name, text in waiting.items() if (size := sum_of(text, known)) is not None}
        if not solved:
            listed = ", ".join(f"'{name}: {text}'" for name, text in waiting.items())
            raise ValueError(
                f"{listed}: a sum is of numbers and of dimensions that have a size, such as past + sequence"
            )
        known |= solved
        waiting = {name: text for name, text in waiting.items() if name not in solved}
    return {name: known[name] for name in written}


def sum_of(text: str, known: Mapping[str, Range]) -> Range | None:
    """The sizes of a sum such as `past + sequence` or `past + 1`; None where a term has none."""
    total: Range | None = None
    offset = 0
    for term in (part.strip() for part in text.split("+")):
        if term.isdecimal():
            offset += int(term)
        elif term in known:
            total = known[term] if total is None else total + known[term]
        else:
            return None
    return None if total is None else Range(total.min + offset, total.opt + offset, total.max + offset)
