"""What is recorded about each pass, measured from outside of it."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass

import onnx
import onnx_ir as ir

from compiler.errors import CompilerError, InternalError, UnsupportedModel
from compiler.model.graph import Pass, skeleton
from compiler.model.stats import GraphStats
from compiler.passes.macs import count_macs
from compiler.passes.probe import Probe
from compiler.passes.values import graphs_of

UNCHANGED = "the pass changed nothing"
NO_PROBE = "no probe was asked for"


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


def run_measured(number: int, step: Pass, model: ir.Model, *, before: GraphStats, probe: Probe | None) -> PassRecord:
    """Runs one pass and records what it did.

    Raises:
        InternalError: The pass raised something that is not an error of the user's.
    """
    started = time.perf_counter()
    try:
        result = step(model)
    except InternalError as error:
        raise _failed(number, step.name, error.what) from error
    except CompilerError:
        raise
    except Exception as error:  # whatever a pass raises is our bug, and must name the pass
        raise _failed(number, step.name, f"{type(error).__name__}: {error}") from error
    milliseconds = (time.perf_counter() - started) * 1000.0
    after = measure(model) if result.modified else before
    difference, sqnr_db, why = _difference(model, probe, modified=result.modified)
    return PassRecord(
        number, step.name, result.modified, result.notes, before, after, milliseconds, difference, sqnr_db, why
    )


def _failed(number: int, name: str, why: str) -> InternalError:
    return InternalError(
        f"pass {number} ({name}) failed: {why}",
        where=f"pass {number} {name}",
        remedy=f"`--stop-after {number - 1}` builds without it and what follows; please report it with the model.",
    )


def _difference(model: ir.Model, probe: Probe | None, *, modified: bool) -> tuple[float | None, float | None, str]:
    if probe is None or probe.expected is None or not modified:
        return None, None, UNCHANGED if not modified else (NO_PROBE if probe is None else probe.why)
    try:
        worst = probe.worst(model)
    except UnsupportedModel as error:
        return None, None, error.what
    return worst.worst_abs, worst.sqnr_db, ""


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
