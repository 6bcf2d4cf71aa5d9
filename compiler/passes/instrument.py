"""The record of each pass: size of the graph, time, and difference of the outputs, all measured outside the pass."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace

import onnx
import onnx_ir as ir

from compiler.errors import CompilerError, InternalError
from compiler.model.graph import Pass, PassResult, skeleton
from compiler.model.stats import GraphStats
from compiler.passes.judge import UNCHANGED, Finding, Judge
from compiler.passes.macs import count_macs
from compiler.passes.values import graphs_of


@dataclass(frozen=True)
class PassRecord:
    """What one pass did.

    Args:
        number: Its number in the build, from 1; `--stop-after` takes it.
        name: The pass's name.
        modified: Whether it changed the model.
        notes: What it left alone and why, or what a guard detected.
        before: The graph before.
        after: The graph after.
        milliseconds: Time inside the pass, without measuring and checking.
        largest_difference: Largest absolute difference of any output element from the model before the first pass.
        sqnr_db: The worst output's signal-to-noise ratio in dB; inf if equal.
        not_measured: Why the two are None; empty otherwise.
        left_out: Why the pass was undone: it changed the results, which is a bug of fleetc; empty where it was not.
            The two figures are then those of the result that was discarded.
    """

    number: int
    name: str
    modified: bool
    notes: tuple[str, ...]
    before: GraphStats
    after: GraphStats
    milliseconds: float
    largest_difference: float | None
    sqnr_db: float | None
    not_measured: str = ""
    left_out: str = ""

    def to_dict(self) -> dict[str, object]:
        """The record as JSON-ready values; what JSON has no number for is its text (`inf`)."""
        data = asdict(self)
        for key in ("largest_difference", "sqnr_db"):
            if data[key] is not None and not math.isfinite(data[key]):
                data[key] = str(data[key])
        return data | {"notes": list(self.notes), "milliseconds": round(self.milliseconds, 3)}


def measure(model: ir.Model) -> GraphStats:
    """Counts nodes, parameters, bytes and multiply-accumulates; the model is left as it is."""
    nodes = parameters = size = 0
    for graph in graphs_of(model):
        nodes += len(graph)
        for tensor in _tensors(graph):
            parameters += tensor.size
            size += tensor.nbytes
    return GraphStats(nodes, parameters, size, _macs(model))


def run_measured(number: int, step: Pass, model: ir.Model, *, before: GraphStats, judge: Judge) -> PassRecord:
    """Runs one pass and records what it did; a pass that changed the results is undone, and the record says so.

    Raises:
        InternalError: The pass raised something that is not an error of the user's.
    """
    copy = judge.copy_of(model)
    started = time.perf_counter()
    result = _run(number, step, model)
    milliseconds = (time.perf_counter() - started) * 1000.0
    finding = judge.look(step, model) if result.modified else Finding(None, UNCHANGED)
    worst = finding.worst
    record = PassRecord(
        number,
        step.name,
        result.modified,
        result.notes,
        before,
        measure(model) if result.modified else before,
        milliseconds,
        None if worst is None else worst.worst_abs,
        None if worst is None else worst.sqnr_db,
        finding.not_measured,
    )
    if not finding.fault or copy is None:
        return record
    _restore(model, copy)
    left_out = f"pass {number} ({step.name}) is left out: {finding.fault}; this is a bug of fleetc"
    return replace(record, modified=False, notes=(left_out, *result.notes), after=before, left_out=left_out)


def _run(number: int, step: Pass, model: ir.Model) -> PassResult:
    try:
        return step(model)
    except InternalError as error:
        raise _failed(number, step.name, error.what) from error
    except CompilerError:
        raise
    except Exception as error:  # whatever a pass raises is our bug, and must name the pass
        raise _failed(number, step.name, f"{type(error).__name__}: {error}") from error


def _restore(model: ir.Model, copy: ir.Model) -> None:
    model.graph = copy.graph
    model.functions.clear()
    model.functions.update(copy.functions)


def _failed(number: int, name: str, why: str) -> InternalError:
    return InternalError(
        f"pass {number} ({name}) failed: {why}",
        where=f"pass {number} {name}",
        remedy=f"`--stop-after {number - 1}` builds without it and what follows; please report it with the model.",
    )


def _tensors(graph: ir.Graph) -> list[ir.TensorProtocol]:
    held = [value.const_value for value in graph.initializers.values()]
    held += [node.outputs[0].const_value or _constant(node) for node in graph if node.op_type == "Constant"]
    return [tensor for tensor in held if tensor is not None]


def _constant(node: ir.Node) -> ir.TensorProtocol | None:
    return ir.convenience.get_const_tensor(node.outputs[0])


def _macs(model: ir.Model) -> int | None:
    """Counts on the model's own shapes, or on inferred ones where they are missing."""
    count = count_macs(model)
    if count is not None:
        return count
    try:
        return count_macs(ir.from_proto(onnx.shape_inference.infer_shapes(skeleton(model), data_prop=True)))
    except onnx.shape_inference.InferenceError:
        return None
