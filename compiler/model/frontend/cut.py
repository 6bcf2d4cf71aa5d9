"""The part of a model between chosen values: what stands before and behind it stays outside the build."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir

from compiler.errors import CompilerError, FleetError, InvalidModel, combine
from compiler.fleet.cut import Cut
from compiler.model.frontend.extract import extract_prefix, read_by
from compiler.model.frontend.infer import infer_shapes
from compiler.model.frontend.read import Imported

SHOWN = 8
"""Values that a message lists."""


def cut_model(model: ir.Model, cut: Cut | None, *, where: str = "") -> Imported:
    """A copy of the part of the model between the values of the cut, and a note; the model itself where there is none.

    Args:
        model: As it was read; it is left as it is.
        cut: Values that become inputs and outputs; an empty side keeps the model's own.
        where: What asked for it (file and key), for messages.

    Raises:
        FleetError: There is no such value, its type is not known, an output does not need an input of the cut, or the
            part also reads inputs of the model that the cut does not name; all at once.
        InvalidModel: The shapes of the part contradict each other.
    """
    if cut is None:
        return Imported(model)
    whole = model.clone()
    _infer(whole, where)
    _raise(_unknown(whole, (*cut.inputs, *cut.outputs), where))
    _raise(_untyped(whole, (*cut.inputs, *cut.outputs), where))
    outputs = cut.outputs or tuple(str(value.name) for value in whole.graph.outputs)
    given = {str(value.name) for value in whole.graph.inputs}
    if cut.inputs:
        _begin_at(whole, cut.inputs)
    part = extract_prefix(whole, outputs)
    _raise(_problems(part, cut, where))
    _drop_unread(part, cut)
    _infer(part, where)
    nodes = sum(1 for _ in model.graph.all_nodes()), sum(1 for _ in part.graph.all_nodes())
    inputs = ", ".join(cut.inputs) or "its inputs"
    note = f"the model was cut between {inputs} and {', '.join(outputs)}: {nodes[0]} nodes became {nodes[1]}"
    left_out = sorted(given - {str(value.name) for value in part.graph.inputs})
    return Imported(part, (note, *([f"inputs left outside: {', '.join(left_out)}"] if left_out else [])))


def _infer(model: ir.Model, where: str) -> None:
    try:
        infer_shapes(model)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise InvalidModel(f"the shapes of the model contradict each other: {error}", where=where) from error


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    values = {str(value.name): value for value in graph.inputs}
    return values | {str(value.name): value for node in graph for value in node.outputs if value.name}


def _unknown(model: ir.Model, names: Sequence[str], where: str) -> Iterator[CompilerError]:
    values = _values(model.graph)
    for name in names:
        if name not in values:
            near = difflib.get_close_matches(name, values, n=3, cutoff=0.4) or list(values)[:SHOWN]
            what = f"{name!r} is a weight" if name in model.graph.initializers else f"the model has no value {name!r}"
            yield FleetError(f"{what} to cut at", where=where, remedy=f"Nearest: {', '.join(near)}.")


def _untyped(model: ir.Model, names: Sequence[str], where: str) -> Iterator[CompilerError]:
    values = _values(model.graph)
    for name in names:
        if values[name].type is None or values[name].shape is None:
            yield FleetError(
                f"type and shape of value {name!r} are not known, so it cannot be cut at",
                where=where,
                remedy="Cut behind an operator of ONNX itself; those of other domains have no known results.",
            )


def _begin_at(model: ir.Model, names: Sequence[str]) -> None:
    """Puts an input in the place of each value; the inputs stand in the order of the names, then the model's others."""
    values = _values(model.graph)
    inputs = []
    for name in names:
        old = values[name]
        if old.producer() is None:
            inputs.append(old)
            continue
        new = ir.Value(name=name, type=old.type, shape=old.shape)
        old.name = f"{name}.before_cut"
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        inputs.append(new)
    others = [value for value in model.graph.inputs if value not in inputs]
    model.graph.inputs.clear()
    model.graph.inputs.extend([*inputs, *others])


def _problems(part: ir.Model, cut: Cut, where: str) -> Iterator[CompilerError]:
    if not cut.inputs:
        return
    read = {value for node in part.graph for value in read_by(node)} | set(part.graph.outputs)
    for value in part.graph.inputs:
        if value.name not in cut.inputs and value in read:
            yield FleetError(
                f"the part also reads the model's input {str(value.name)!r}",
                where=where,
                remedy="Name it among the inputs of the cut, fix it (`inputs:`), or cut at a later value.",
            )
        if value.name in cut.inputs and value not in read:
            yield FleetError(f"no output of the part depends on {str(value.name)!r}", where=where)


def _drop_unread(part: ir.Model, cut: Cut) -> None:
    """Inputs of the model that only the left out operators read."""
    read = {value for node in part.graph for value in read_by(node)} | set(part.graph.outputs)
    for value in [value for value in part.graph.inputs if value not in read and value.name not in cut.inputs]:
        part.graph.inputs.remove(value)


def _raise(problems: Iterator[CompilerError]) -> None:
    listed = list(problems)
    if listed:
        raise combine(listed)
