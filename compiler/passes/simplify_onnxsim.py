"""simplify-onnxsim: runs onnxsim and adopts its result only if checks show that it is the same model.

onnxsim is native code that can crash, hang or eat the memory, and it has frozen dynamic dimensions before. So it runs
in a child process with a time and a memory limit, on the model without its weights, and its result is adopted only if
1. it parses and passes the checker, and has no operators of other domains that the model had not,
2. inputs, outputs and functions are what they were: names, types, shapes, symbolic dimensions,
3. the outputs on a probe with a batch of two are what they were.
Otherwise the model stays as it was and a note names what happened.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from compiler.errors import ToolchainFailed, UnsupportedModel
from compiler.model.forks import shared_server
from compiler.model.frontend.tensors import each_graph
from compiler.model.graph import SMALL_TENSOR_BYTES, PassResult, check_model, skeleton
from compiler.model.numerics import TOLERANCES
from compiler.model.process import LOG, Child, fork_child, kill_child, start_program
from compiler.passes.onnxsim_child import RESULT, SOURCE
from compiler.passes.probe import make_probe
from compiler.passes.values import record_origin
from compiler.store.scratch import scratch_folder

MODES = ("all", "fold")
"""All that onnxsim does; or constant folding and shape inference alone."""

ONNX_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})


@dataclass(frozen=True)
class SimplifyOnnxsim:
    """The pass.

    Args:
        command: Program that is called in onnxsim's place, with the folder and the mode; empty: onnxsim.
        timeout_s: Limit on the time of the child process, in seconds.
    """

    command: Sequence[str] = ()
    timeout_s: float = 120.0
    name: str = "simplify-onnxsim"

    def __call__(self, model: ir.Model) -> PassResult:
        """Adopts onnxsim's result, or says why not."""
        try:
            bare = skeleton(model)
            proto = self._simplified(bare)
            candidate = _with_weights(proto, model)
            _must_keep_interface(candidate, model)
            if _computation(proto) == _computation(bare):
                return PassResult(False)
            _must_be_valid(candidate)
            _must_compute_the_same(candidate, model)
        except _Refused as reason:
            return PassResult(False, (f"onnxsim's result is left out: {reason}",))
        _keep_metadata(candidate, model)
        model.graph = candidate.graph
        return PassResult(True)

    def _simplified(self, bare: onnx.ModelProto) -> onnx.ModelProto:
        """onnxsim's result; without its graph optimizations where they make operators that no target has."""
        for mode in MODES:
            proto = _run(bare, self.command, mode, timeout_s=self.timeout_s)
            foreign = _foreign(proto) - _foreign(bare)
            if not foreign:
                return proto
        raise _Refused(f"it made operators of other domains than ONNX's: {', '.join(sorted(foreign))}")


class _Refused(Exception):
    """Why the result is not adopted."""


def _run(bare: onnx.ModelProto, command: Sequence[str], mode: str, *, timeout_s: float) -> onnx.ModelProto:
    with scratch_folder() as folder:
        (folder / SOURCE).write_bytes(bare.SerializeToString())
        child = _start(command, folder, mode)
        try:
            code = child.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise _Refused(f"it did not finish within {timeout_s:g} s") from error
        finally:
            kill_child(child)
        if code != 0:
            raise _Refused(_ending(code, (folder / LOG).read_text(encoding="utf-8", errors="replace")))
        return _parse(folder / RESULT)


def _start(command: Sequence[str], folder: Path, mode: str) -> Child:
    try:
        if command:
            return start_program([*command, str(folder), mode], folder)
        # importing what onnxsim needs takes longer than simplifying most models
        forks = shared_server("compiler.passes.onnxsim_child:prepare", name="fleetc-onnxsim")
        return fork_child(forks, "compiler.passes.onnxsim_child:simplify", folder, mode)
    except (OSError, ToolchainFailed) as error:
        raise _Refused(f"it could not be started: {error}") from error


def _ending(code: int, log: str) -> str:
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "no message")
    return f"it crashed with signal {-code}: {last[:200]}" if code < 0 else f"it failed ({code}): {last[:200]}"


def _parse(path: Path) -> onnx.ModelProto:
    try:
        proto = onnx.ModelProto()
        proto.ParseFromString(path.read_bytes())
        onnx.checker.check_model(proto)
    except Exception as error:  # DecodeError's class depends on the protobuf build; a child's output may be anything
        raise _Refused(f"what it wrote is no valid model: {type(error).__name__}: {str(error)[:200]}") from error
    return proto


def _foreign(proto: onnx.ModelProto) -> set[str]:
    """Operators of other domains than ONNX's own, subgraphs included."""
    nodes = (node for graph in each_graph(proto.graph) for node in graph.node)
    return {f"{node.domain}::{node.op_type}" for node in nodes if node.domain not in ONNX_DOMAINS}


def _computation(proto: onnx.ModelProto) -> list[bytes]:
    """The nodes and small constants, without names of nodes and other decoration."""
    nodes = []
    for node in proto.graph.node:
        bare = onnx.NodeProto()
        bare.CopyFrom(node)
        # names and documentation do not change the result
        for decoration in ("name", "doc_string", "metadata_props"):
            bare.ClearField(decoration)
        nodes.append(bare.SerializeToString(deterministic=True))
    return nodes


def _with_weights(proto: onnx.ModelProto, model: ir.Model) -> ir.Model:
    """onnxsim's graph with the weights, which it saw as inputs, as initializers again; unread ones are dropped."""
    candidate = ir.from_proto(proto)
    weights = _removed(model)
    inputs = [value.name for value in candidate.graph.inputs if value.name not in weights]
    for value in [value for value in candidate.graph.inputs if value.name in weights]:
        candidate.graph.inputs.remove(value)
        if value.uses() or value.is_graph_output():
            value.const_value = weights[str(value.name)]
            candidate.graph.register_initializer(value)
    if inputs != [value.name for value in model.graph.inputs]:
        raise _Refused("it changed the inputs")
    return candidate


def _removed(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The weights `skeleton` turns into inputs."""
    held = model.graph.initializers.items()
    pairs = ((name, value.const_value) for name, value in held if not value.is_graph_input())
    return {name: tensor for name, tensor in pairs if tensor is not None and tensor.nbytes > SMALL_TENSOR_BYTES}


def _must_keep_interface(candidate: ir.Model, model: ir.Model) -> None:
    for what, ours, theirs in (
        ("input", model.graph.inputs, candidate.graph.inputs),
        ("output", model.graph.outputs, candidate.graph.outputs),
    ):
        if len(ours) != len(theirs):
            raise _Refused(f"it changed the number of {what}s from {len(ours)} to {len(theirs)}")
        for old, new in zip(ours, theirs, strict=True):
            if _interface(old) != _interface(new):
                raise _Refused(f"it changed the {what} {_interface(old)} into {_interface(new)}")
    if set(candidate.functions) != set(model.functions):
        raise _Refused("it changed the model's functions")
    if candidate.graph.opset_imports.get("") != model.graph.opset_imports.get(""):
        raise _Refused("it changed the opset")


def _must_be_valid(candidate: ir.Model) -> None:
    try:
        check_model(candidate)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise _Refused(f"what it made is not valid: {str(error)[:200]}") from error


def _interface(value: ir.Value) -> str:
    return f"{value.name}: {value.type}{value.shape if value.shape is not None else ''}"


def _must_compute_the_same(candidate: ir.Model, model: ir.Model) -> None:
    probe = make_probe(model)
    if probe.expected is None:
        raise _Refused(f"its result cannot be compared: {probe.why}")
    try:
        worst = probe.worst(candidate)
    except UnsupportedModel as error:
        raise _Refused(f"its result does not run: {error.what}") from error
    if not TOLERANCES["fp32"].accepts(worst):
        raise _Refused(f"it changed an output by up to {worst.worst_abs:.3g} ({worst.sqnr_db:.1f} dB)")


def _keep_metadata(candidate: ir.Model, model: ir.Model) -> None:
    """Copies metadata to onnxsim's nodes, matched by output name, then by node name: onnxsim drops and renames."""
    by_output = {value.name: node for node in model.graph for value in node.outputs if value.name}
    by_name = {node.name: node for node in model.graph if node.name}
    for node in candidate.graph:
        source = next((by_output[value.name] for value in node.outputs if value.name in by_output), None)
        source = source or by_name.get(node.name or "")
        if source is not None:
            node.name = source.name if source.op_type == node.op_type else node.name
            for key, text in source.metadata_props.items():
                node.metadata_props.setdefault(key, text)
            if node.name != source.name:
                record_origin(node, [source])
    _keep_value_metadata(candidate.graph, model.graph)


def _keep_value_metadata(graph: ir.Graph, source: ir.Graph) -> None:
    known = {value.name: value for node in source for value in node.outputs if value.name}
    known |= {value.name: value for value in (*source.inputs, *source.initializers.values()) if value.name}
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.name in known:
            value.metadata_props.update(known[value.name].metadata_props)
    graph.metadata_props.update(source.metadata_props)


SIMPLIFY_ONNXSIM = SimplifyOnnxsim()
