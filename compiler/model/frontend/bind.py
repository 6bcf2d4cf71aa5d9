"""Sizes from the fleet file put into the model: one size makes a dimension static, a range leaves it symbolic."""

from __future__ import annotations

import difflib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import onnx
import onnx_ir as ir

from compiler.errors import CompilerError, FleetError, UnsupportedModel, combine
from compiler.model.frontend.batch import mend_batch
from compiler.model.frontend.infer import infer_shapes
from compiler.model.frontend.read import Imported

BATCH = "batch"
"""The key of the batch in `ranges`, and the name a batch left symbolic has afterwards."""


class SizeRange(Protocol):
    """The sizes one dimension may take: all of min..max, fastest at opt."""

    @property
    def min(self) -> int:
        """Smallest size, at least 1; 0 where no batch."""

    @property
    def opt(self) -> int:
        """Size to be fastest at."""

    @property
    def max(self) -> int:
        """Largest size."""


def bind_shapes(model: ir.Model, ranges: Mapping[str, SizeRange], *, where: str = "") -> Imported:
    """A copy of the model with every input dimension bound; weights are shared, shapes inferred anew.

    Args:
        model: A checked model.
        ranges: Dimension name → sizes. `batch` is the first dimension of every input where it is free; an unnamed
            dimension goes by input and axis, `image.2`.
        where: What asked for these sizes (file and key), for messages.

    Returns:
        The bound model, and notes. A true range stays symbolic, as `batch` or under its own name.

    Raises:
        FleetError: A name the model does not have, a size it contradicts, or a dimension without a size; all at once.
    """
    bound = model.clone()
    inputs = list(bound.graph.inputs)
    _raise_all(_rank_problems(inputs, where))
    _name_free_dims(inputs)
    batch_names = _batch_names(inputs, ranges)
    _raise_all(_problems(inputs, ranges, batch_names, where))
    sizes = {name: ranges[BATCH if name in batch_names else name] for name in _free_names(inputs)}
    mended = _mend(bound, sizes, batch_names, where)
    _replace_dims(bound, sizes, batch_names)
    _infer(bound, ranges, where)
    return Imported(bound, (*_notes(inputs, batch_names, model), *mended))


def _mend(model: ir.Model, sizes: Mapping[str, SizeRange], batch_names: frozenset[str], where: str) -> tuple[str, ...]:
    """Mends Reshapes that were traced at batch 1 where another batch is asked for."""
    if all(sizes[name].max == 1 for name in batch_names):
        return ()
    try:
        return mend_batch(model, batch_names, {name: size.min for name, size in sizes.items()})
    except UnsupportedModel as error:
        raise FleetError(error.what, where=where, remedy=error.remedy) from error
    except onnx.shape_inference.InferenceError:
        return ()  # the sizes are put in next, and the message then names them


def free_dims(model: ir.Model) -> tuple[str, ...]:
    """Names of the input dimensions that need a size, unnamed ones by input and axis, in order of appearance."""
    copy = model.clone()
    _name_free_dims(list(copy.graph.inputs))
    return tuple(_free_names(list(copy.graph.inputs)))


def first_dims(model: ir.Model) -> tuple[str, ...]:
    """Names of the free dimensions that are the first of some input: what `batch` can stand for."""
    copy = model.clone()
    inputs = list(copy.graph.inputs)
    _name_free_dims(inputs)
    return tuple(name for name, places in _free_names(inputs).items() if any(axis == 0 for _, axis in places))


def _rank_problems(inputs: Sequence[ir.Value], where: str) -> Iterator[CompilerError]:
    for value in inputs:
        if value.shape is None and isinstance(value.type, ir.TensorType):
            yield FleetError(
                f"input '{value.name}' does not even say how many dimensions it has, so no size can be bound to it",
                where=where,
                remedy="Export the model with a shape for this input; its dimensions may be symbolic.",
            )


def _name_free_dims(inputs: Sequence[ir.Value]) -> None:
    """Gives every unnamed dimension of an input the name `input.axis`."""
    for value in inputs:
        if value.shape is not None:
            value.shape = ir.Shape([_named(dim, f"{value.name}.{axis}") for axis, dim in enumerate(value.shape)])


def _named(dim: int | ir.SymbolicDim, name: str) -> int | str:
    return dim if isinstance(dim, int) else dim.value or name


def _free_names(inputs: Sequence[ir.Value]) -> dict[str, list[tuple[str, int]]]:
    """Symbolic name → where it stands, as (input, axis)."""
    places: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for value in inputs:
        for axis, dim in enumerate(value.shape or ()):
            if not isinstance(dim, int):
                places[str(dim.value)].append((str(value.name), axis))
    return places


def _batch_names(inputs: Sequence[ir.Value], ranges: Mapping[str, SizeRange]) -> frozenset[str]:
    """Names that `batch` stands for: free first dimensions without a range of their own.

    A name that also stands at a later axis is a length rather than a batch, unless no other is free.
    """
    places = _free_names(inputs)
    first = {name for name, at in places.items() if any(axis == 0 for _, axis in at) and name not in ranges}
    first |= {BATCH} & set(places)
    only_first = {name for name in first if all(axis == 0 for _, axis in places[name])}
    return frozenset(only_first or first)


def _problems(
    inputs: Sequence[ir.Value], ranges: Mapping[str, SizeRange], batch_names: frozenset[str], where: str
) -> Iterator[CompilerError]:
    free = _free_names(inputs)
    unbound = [name for name in free if (BATCH if name in batch_names else name) not in ranges]
    if unbound:
        yield _unbound_error(unbound, free, batch_names, where)
    for name, size in ranges.items():
        if name == BATCH:
            yield from _batch_problems(inputs, size, batch_names, where)
        elif name not in free:
            yield from _name_problems(name, size, inputs, where)
        least = 1 if name == BATCH else 0
        if not least <= size.min <= size.opt <= size.max:
            what = f"dimension '{name}' must hold {least} <= min <= opt <= max, got {size.min}, {size.opt}, {size.max}"
            yield FleetError(what, where=where)


def _unbound_error(
    unbound: Sequence[str],
    free: Mapping[str, Sequence[tuple[str, int]]],
    batch_names: frozenset[str],
    where: str,
) -> FleetError:
    listed = ", ".join(f"'{name}' (axis {free[name][0][1]} of '{free[name][0][0]}')" for name in unbound)
    batch = ["    batch: 1"] if any(name in batch_names for name in unbound) else []
    named = [f"      {json.dumps(name)}: 1" for name in unbound if name not in batch_names]  # JSON is YAML
    snippet = "\n".join([*batch, *(["    dims:", *named] if named else [])])
    return FleetError(
        f"dimension {listed} has no size" if len(unbound) == 1 else f"dimensions {listed} have no size",
        where=where,
        remedy=f"Give each a size, or a range {{min: 1, opt: 8, max: 32}}, under the device:\n{snippet}",
    )


def _batch_problems(
    inputs: Sequence[ir.Value], size: SizeRange, batch_names: frozenset[str], where: str
) -> Iterator[CompilerError]:
    first = {str(value.name): value.shape[0] for value in inputs if value.shape}
    fixed = {name: dim for name, dim in first.items() if isinstance(dim, int)}
    if batch_names or not first or (size.min == size.max and size.min in fixed.values()):
        return
    asked = f"{size.min}" if size.min == size.max else f"{size.min}..{size.max}"
    if not fixed:
        names = ", ".join(f"'{dim}'" for dim in dict.fromkeys(str(dim) for dim in first.values()))
        yield FleetError(
            f"batch {asked} is asked for, but the first dimension of every input has a size of its own: {names}",
            where=where,
            remedy="Leave `batch` out, or leave the first dimension out of `dims`.",
        )
        return
    sizes = ", ".join(f"{dim} ('{name}')" for name, dim in fixed.items())
    yield FleetError(
        f"batch {asked} is asked for, but the first dimension of every input is fixed in the model: {sizes}",
        where=where,
        remedy=f"Write `batch: {next(iter(fixed.values()))}`, or export the model with a symbolic first dimension.",
    )


def _name_problems(name: str, size: SizeRange, inputs: Sequence[ir.Value], where: str) -> Iterator[CompilerError]:
    fixed = {f"{value.name}.{axis}": dim for value in inputs for axis, dim in enumerate(value.shape or ())}
    if isinstance(fixed.get(name), int):
        if not size.min == size.max == fixed[name]:
            yield FleetError(f"dimension '{name}' is fixed at {fixed[name]} in the model", where=where)
        return
    known = list(_free_names(inputs))
    near = difflib.get_close_matches(name, known, n=1)
    yield FleetError(
        f"the model has no dimension '{name}'",
        where=where,
        remedy=(f"Did you mean '{near[0]}'? " if near else "") + f"Its free dimensions: {', '.join(known) or 'none'}.",
    )


def _replace_dims(model: ir.Model, sizes: Mapping[str, SizeRange], batch_names: frozenset[str]) -> None:
    """Puts sizes and final names into every shape of the graph and its subgraphs."""
    final: dict[str, int | str] = {
        name: size.min if size.min == size.max else BATCH if name in batch_names else name
        for name, size in sizes.items()
    }
    for value in _all_values(model):
        if value.shape is not None and value.const_value is None:
            value.shape = ir.Shape([_final(dim, final) for dim in value.shape])


def _final(dim: int | ir.SymbolicDim, final: Mapping[str, int | str]) -> int | str | None:
    return dim if isinstance(dim, int) else final.get(str(dim.value), dim.value)


def _all_values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from graph.inputs
        for node in graph:
            yield from node.outputs


def _infer(model: ir.Model, ranges: Mapping[str, SizeRange], where: str) -> None:
    try:
        infer_shapes(model)
        _check_reshapes(model)
    except (onnx.shape_inference.InferenceError, ValueError, MemoryError) as error:
        asked = ", ".join(f"{name}: {size.min}..{size.max}" for name, size in ranges.items())
        raise FleetError(
            f"with {asked} the model's shapes contradict each other: {' '.join(str(error).split())[:400]}",
            where=where,
            remedy="A size may be fixed inside the model (a Reshape to a constant): ask for that, or export again.",
        ) from error


def _check_reshapes(model: ir.Model) -> None:
    """Raises ValueError for a Reshape that would change how many elements there are; ONNX's inference lets it pass."""
    for node in model.graph.all_nodes():
        if node.op_type == "Reshape" and node.domain == "" and node.inputs[0] is not None:
            before, after = node.inputs[0].shape, node.outputs[0].shape
            if before is None or after is None or not before.is_static() or not after.is_static():
                continue
            if math.prod(before.numpy()) != math.prod(after.numpy()):
                raise ValueError(f"Reshape '{node.name}' makes {after} of {before}")


def _notes(inputs: Sequence[ir.Value], batch_names: frozenset[str], model: ir.Model) -> Iterator[str]:
    if len(batch_names) > 1:
        names = ", ".join(sorted(batch_names))
        yield (
            f"first dimensions of different names ({names}) are all taken as the batch; "
            "give one of them its own size under `dims` to separate it"
        )


def _raise_all(problems: Iterator[CompilerError]) -> None:
    listed = list(problems)
    if listed:
        raise combine(listed)
