"""Layer normalization written out, as exporters do it before opset 17, found in Relax.

    d = x − mean(x);   d / √(mean(d²) + ε) · scale + shift,   d² as a product or a power, means over the last axis

The portable passes fuse it into LayerNormalization from opset 17 on; here the model keeps its opset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.target import Array
from targets.arm_tvm.graph.reading import constant, number, operator_name, shape_of
from targets.arm_tvm.graph.regions import Users


@dataclass(frozen=True)
class WrittenOutNorm:
    """A layer normalization.

    Args:
        source: What is normalized, over its last axis.
        epsilon: Added to the variance.
        scale, shift: One number for each element of the last axis.
        last: The variable of its result.
        inner: The variables between; nothing else reads them.
    """

    source: Any
    epsilon: float
    scale: Array
    shift: Array
    last: Any
    inner: tuple[Any, ...]


def find_written_out_norm(binding: Any, users: Users) -> WrittenOutNorm | None:
    """The layer normalization that begins with a mean; None where it begins none.

    Args:
        binding: Of an operator `mean`.
        users: Variable → bindings that read it, in order; None stands for the function's result.
    """
    x = binding.value.args[0]
    centred = _only(binding.var, "relax.subtract", users) if _is_mean_of_rows(binding) else None
    if centred is None or not centred.value.args[0].same_as(x) or shape_of(centred.var) != shape_of(x):
        return None
    # Each is read by the next alone, but for what is centred: the square reads it, and the quotient.
    square: Any = next((user for user in users.get(centred.var, ()) if _is_square(user, centred.var)), None)
    behind = _chain(square, ("mean", "add", "sqrt", "divide", "multiply", "add"), users) if square is not None else None
    if behind is None:
        return None
    variance, above, root, quotient, scaled, shifted = behind
    if not _is_mean_of_rows(variance) or not quotient.value.args[0].same_as(centred.var):
        return None
    if set(users[centred.var]) != {square, quotient} or shape_of(shifted.var) != shape_of(x):
        return None
    size = shape_of(x)[-1]
    epsilon, scale, shift = _constant(above, 1), _constant(scaled, size), _constant(shifted, size)
    if epsilon is None or scale is None or shift is None:
        return None
    inner = tuple(part.var for part in (binding, centred, square, variance, above, root, quotient, scaled))
    return WrittenOutNorm(x, float(epsilon[0]), scale, shift, shifted.var, inner)


def _chain(first: Any, names: tuple[str, ...], users: Users) -> list[Any] | None:
    """The bindings behind one, each of its operator and alone in reading the one before; None where one is missing."""
    chain = [first]
    for name in names:
        reader = _only(chain[-1].var, f"relax.{name}", users)
        if reader is None:
            return None
        chain.append(reader)
    return chain[1:]


def _only(var: Any, name: str, users: Users) -> Any:
    """The binding that reads a variable where nothing else does and it is of that operator; None elsewhere."""
    readers = users.get(var, ())
    single = readers[0] if len(readers) == 1 else None
    return single if single is not None and operator_name(single.value) == name else None


def _is_mean_of_rows(binding: Any) -> bool:
    """Whether a mean is over the last axis, which stays as an axis of one."""
    shape, attrs = shape_of(binding.value.args[0]), binding.value.attrs
    if not shape or attrs.axis is None or not attrs.keepdims:
        return False
    return [int(axis) % len(shape) for axis in attrs.axis] == [len(shape) - 1]


def _is_square(binding: Any, var: Any) -> bool:
    if binding is None or operator_name(binding.value) not in ("relax.power", "relax.multiply"):
        return False
    base, other = binding.value.args
    if operator_name(binding.value) == "relax.multiply":
        return bool(base.same_as(var) and other.same_as(var))
    exponent = constant(other)
    exponent = np.asarray(number(other)) if exponent is None else exponent
    return bool(base.same_as(var)) and exponent.size == 1 and exponent.reshape(()) == 2


def _constant(binding: Any, size: int) -> Array | None:
    """The constant operand of so many elements, along no axis but the last."""
    arrays = [array for operand in binding.value.args if (array := constant(operand)) is not None]
    if len(arrays) != 1 or arrays[0].size != size or arrays[0].size != max(arrays[0].shape[-1:] or (1,)):
        return None
    return arrays[0].reshape(-1)
