"""Reading a Relax function: operators, shapes, constants, and who reads what."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from compiler.target import Array


def shape_of(expression: Any) -> tuple[int, ...]:
    """The shape of a tensor; empty where it is not known in numbers."""
    sizes = getattr(getattr(expression.ty, "shape", None), "values", None) or ()
    return tuple(int(size) for size in sizes) if all(hasattr(size, "value") for size in sizes) else ()


def operator_name(value: Any) -> str:
    """Relax's name of the operator called; empty for anything else."""
    from tvm import relax

    op = value.op if isinstance(value, relax.Call) else None
    return str(getattr(op, "name", ""))


def constant(expression: Any) -> Array | None:
    """The array of a tensor constant."""
    value: Any = getattr(expression, "value", None)
    return value.numpy() if hasattr(value, "numpy") else None


def array_digest(array: Array) -> str:
    """Names an array by its type, shape and elements."""
    digest = hashlib.blake2b(f"{array.dtype} {array.shape}".encode(), digest_size=20)
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def number(expression: Any) -> float | None:
    """The number that an argument is."""
    value = getattr(expression, "value", None)
    scalar = getattr(value, "value", value)
    return float(scalar) if isinstance(scalar, int | float) else None


def readers_of(block: Any, result: Any) -> dict[Any, list[Any]]:
    """Variable → bindings of a block that read it, in order; None stands for the function's result."""
    from tvm import relax

    users: dict[Any, list[Any]] = {}

    def note(expression: Any, user: Any) -> None:
        def visit(part: Any) -> None:
            if isinstance(part, relax.Var):
                users.setdefault(part, []).append(user)

        relax.analysis.post_order_visit(expression, visit)

    for binding in block.bindings:
        note(binding.value, binding)
    note(result, None)
    return users
