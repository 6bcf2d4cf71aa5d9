"""Inputs that a fleet file fixes: they become constants of the model, which the passes then fold."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from compiler.errors import CompilerError, FleetError, combine
from compiler.model.frontend.read import Imported
from compiler.model.numerics import Array


def fix_inputs(model: ir.Model, values: Mapping[str, object], *, where: str = "") -> Imported:
    """A copy of the model with some inputs fixed, and a note on each.

    Args:
        model: Dimensions may be symbolic; it is left as it is.
        values: Input name → a number, a truth, or a list of them (lists of lists for more dimensions). One number fills
            an input whose sizes are known.
        where: What asked for it (file and key), for messages.

    Raises:
        FleetError: The model has no such input, or the value does not fit its type or shape; all at once.
    """
    if not values:
        return Imported(model)
    copy = model.clone()
    inputs = {str(value.name): value for value in copy.graph.inputs}
    problems = list(_problems(inputs, values, where))
    if problems:
        raise combine(problems)
    for name, value in values.items():
        _fix(copy, inputs[name], _array(inputs[name], value))
    return Imported(copy, tuple(f"input '{name}' is fixed at {value}" for name, value in values.items()))


def _problems(inputs: Mapping[str, ir.Value], values: Mapping[str, object], where: str) -> Iterator[CompilerError]:
    for name, value in values.items():
        if name not in inputs:
            near = difflib.get_close_matches(name, inputs, n=1)
            remedy = (f"Did you mean '{near[0]}'? " if near else "") + f"Its inputs: {', '.join(inputs)}."
            yield FleetError(f"the model has no input '{name}' to fix", where=where, remedy=remedy)
            continue
        try:
            _array(inputs[name], value)
        except (ValueError, TypeError, OverflowError) as error:
            yield FleetError(f"input '{name}' cannot be fixed at {value}: {error}", where=where)
    if set(values) >= set(inputs):
        yield FleetError("every input is fixed, and nothing is left to run the model on", where=where)


def _array(target: ir.Value, value: object) -> Array:
    """The value in the input's type and shape; raises ValueError where it does not fit."""
    if target.dtype is None or not isinstance(target.type, ir.TensorType) or target.dtype == ir.DataType.STRING:
        raise ValueError("it is no tensor of numbers")
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "biuf":
        raise ValueError("numbers are wanted, or lists of equal length")
    array = numbers.astype(target.dtype.numpy())
    if (
        not np.array_equal(array.astype(np.float64), numbers.astype(np.float64))
        and not target.dtype.is_floating_point()
    ):
        raise ValueError(f"its type is {target.dtype.name}")
    return _shaped(array, target.shape)


def _shaped(array: Array, shape: ir.Shape | None) -> Array:
    if shape is None:
        return array
    sizes = [size if isinstance(size, int) else 1 for size in shape]
    if array.ndim == 0:
        return np.full(sizes, array)
    fits = array.ndim == len(shape) and all(
        size == dim for size, dim in zip(array.shape, shape, strict=True) if isinstance(dim, int)
    )
    if not fits:
        raise ValueError(f"its shape is {shape}, not {list(array.shape)}")
    return array


def _fix(model: ir.Model, value: ir.Value, array: Array) -> None:
    model.graph.inputs.remove(value)
    value.const_value = ir.tensor(array, name=value.name)
    value.shape = ir.Shape(array.shape)
    model.graph.register_initializer(value)
