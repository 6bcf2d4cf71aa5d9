"""One tensor at a model's border, as a plain value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: name, numpy dtype name (`float32`), and shape, where a str is a symbolic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
