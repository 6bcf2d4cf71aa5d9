"""Frozen classes written to JSON and read back: one adapter for manifests, measurements and `build.json`.

Files may have been edited by anybody: unknown keys are ignored, and what is missing or wrong is reported all at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BeforeValidator, FiniteFloat, PlainSerializer, TypeAdapter, ValidationError

T = TypeVar("T")

MAX_PROBLEMS = 5
"""Problems shown of a file that does not fit: more would say nothing new."""


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


Number: TypeAlias = Annotated[FiniteFloat | None, PlainSerializer(_finite)]
"""A figure; null where there is none. JSON has no infinity and no NaN: they are written as null, too."""

Detail: TypeAlias = Annotated[
    float, PlainSerializer(_finite), BeforeValidator(lambda value: math.nan if value is None else value)
]
"""A figure that is always there, and may be NaN: null in JSON."""


def to_json(value: Any) -> Any:
    """A frozen class as a JSON-ready value."""
    cls: Any = type(value)
    return _adapter(cls).dump_python(value, mode="json")


def parse(cls: type[T], value: Mapping[str, Any]) -> T:
    """A JSON value as a frozen class.

    Raises:
        ValueError: It does not fit; the message names the first few keys.
    """
    try:
        parsed: T = _adapter(cls).validate_python(value)  # type: ignore[arg-type]  # mypy: not every metaclass hashes
    except ValidationError as error:
        raise ValueError("; ".join(_problems(error))) from error
    return parsed


def _problems(error: ValidationError) -> list[str]:
    problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)]
    hidden = len(problems) - MAX_PROBLEMS
    return problems[:MAX_PROBLEMS] + ([f"and {hidden} more"] if hidden > 0 else [])


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)
