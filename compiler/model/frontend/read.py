"""From a path to a checked `onnx_ir.Model` whose weights are still on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import TensorProto

from compiler.errors import InvalidModel, ModelError, UnsupportedModel, combine
from compiler.model.frontend.apart import check_apart
from compiler.model.frontend.check import is_sorted, model_problems, version_problems
from compiler.model.frontend.files import Parsed, map_file, parse
from compiler.model.frontend.infer import infer_shapes, same_sizes, shape_note
from compiler.model.frontend.normal import normalize
from compiler.model.frontend.tensors import each_graph, each_tensor, node_tensors, tensor_problems
from compiler.model.frontend.text import text_problems
from compiler.model.frontend.weights import DataFiles, inline_attribute_data, mapped_tensor, weight_notes
from compiler.model.graph import may_be_strict, skeleton

STALE_SHAPES = "shapes stated inside the graph contradicted its inputs; they were inferred anew"


@dataclass(frozen=True)
class Imported:
    """A model, and notes on what was changed or is unusual, for the report."""

    model: ir.Model
    notes: tuple[str, ...] = ()


def read_model(path: str | Path) -> Imported:
    """Reads and checks an ONNX file; dimensions are as the file has them.

    Args:
        path: An .onnx file of opset 11 or newer; external data lies in its folder or below.

    Returns:
        The model, its weights mapped from the files, every node with a name of its own; and notes.

    Raises:
        InvalidModel: The file cannot be read or is no well-formed model; every problem found is listed.
        UnsupportedModel: It is well-formed and outside what this version reads.
    """
    place = Path(path)
    parsed = parse(memoryview(map_file(place)), path=place)
    proto = parsed.proto
    _raise_all(text_problems(proto), place)
    _raise_all(version_problems(proto), place)
    _raise_all([*model_problems(proto), *_all_tensor_problems(parsed, place.parent)], place)
    return _interpreted(parsed, place)


def _interpreted(parsed: Parsed, place: Path) -> Imported:
    proto = parsed.proto
    try:
        notes = normalize(proto)
    except (ValueError, TypeError, MemoryError) as error:
        raise InvalidModel(f"a sparse tensor is not well formed: {error}", where=str(place)) from error
    notes += [] if _all_sorted(proto) else ["the nodes were out of order; they were sorted"]
    model = _to_ir(parsed, place)
    if notes and notes[-1].endswith("sorted"):
        model.graph.sort()
    notes += _check_types(model, place)
    return Imported(model, (*notes, *weight_notes(model)))


def _to_ir(parsed: Parsed, place: Path) -> ir.Model:
    proto, files = parsed.proto, DataFiles(place.parent)
    try:
        inline_attribute_data(proto, files)
        external = [_take_external(graph, files) for graph in each_graph(proto.graph)]
        stored = [(proto.graph.initializer[index], part) for index, part in parsed.parts.items()]
        external[0] |= {tensor.name: mapped_tensor(tensor, part) for tensor, part in stored}
        model = ir.from_proto(proto)
        for graph, tensors in zip((model.graph, *model.graph.subgraphs()), external, strict=True):
            for name, tensor in tensors.items():
                graph.initializers[name].const_value = tensor
        return model
    except (ir.serde.SerdeError, ValueError, TypeError, NotImplementedError, RecursionError, OSError) as error:
        cause = _root(error)
        kind = UnsupportedModel if isinstance(cause, NotImplementedError) else InvalidModel
        raise kind(f"the graph cannot be interpreted: {_first_lines(str(cause))}", where=str(place)) from error


def _take_external(graph: onnx.GraphProto, files: DataFiles) -> dict[str, ir.TensorProtocol]:
    external = (tensor for tensor in graph.initializer if tensor.data_location == TensorProto.EXTERNAL)
    return {tensor.name: mapped_tensor(tensor, files.part(tensor)) for tensor in external}


def _check_types(model: ir.Model, place: Path) -> list[str]:
    """Types and shapes by ONNX's own checker; shapes the file states wrongly inside the graph are inferred anew."""
    try:
        bare = skeleton(model)
    except (ir.serde.SerdeError, ValueError, TypeError, OverflowError) as error:
        raise InvalidModel(_first_lines(str(_root(error))), where=str(place)) from error
    verdict = check_apart(bare, strict=may_be_strict(bare))
    if verdict.failed == "":
        return []
    if verdict.failed in ("stale", "stale-outputs"):
        declared = {str(value.name): value.shape for value in model.graph.outputs}
        infer_shapes(model)
        return [STALE_SHAPES] if verdict.failed == "stale" else _corrected(model, declared)
    raise InvalidModel(_first_lines(verdict.said), where=str(place))


def _corrected(model: ir.Model, declared: Mapping[str, ir.Shape | None]) -> list[str]:
    """A note for each output whose declared shape was replaced by another one."""
    values = [(value, declared[str(value.name)]) for value in model.graph.outputs]
    return [
        shape_note(str(value.name), old, list(value.shape))
        for value, old in values
        if old is not None and value.shape is not None and not same_sizes(old, value.shape)
    ]


def _all_tensor_problems(parsed: Parsed, folder: Path) -> Iterator[ModelError]:
    proto = parsed.proto
    tensors = [*each_tensor(proto.graph)]
    tensors += [item for function in proto.functions for node in function.node for item in node_tensors(node)]
    for index, (words, tensor) in enumerate(tensors):  # the graph's own initializers come first
        part = parsed.parts.get(index)
        for problem in tensor_problems(tensor, folder=folder, mapped_bytes=None if part is None else len(part)):
            yield InvalidModel(problem, where=words)


def _all_sorted(proto: onnx.ModelProto) -> bool:
    return all(is_sorted(graph.node) for graph in each_graph(proto.graph))


def _raise_all(problems: Iterable[ModelError], place: Path) -> None:
    listed = list(problems)
    if len(listed) == 1:
        (problem,) = listed
        where = ": ".join(filter(None, (str(place), problem.where)))
        raise type(problem)(problem.what, where=where, remedy=problem.remedy)
    if listed:
        raise type(listed[0])(combine(listed).what, where=str(place))


def _root(error: BaseException) -> BaseException:
    """The innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_lines(text: str, *, lines: int = 3) -> str:
    return " ".join(line.strip() for line in text.strip().splitlines()[:lines])
