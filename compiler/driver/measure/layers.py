"""Every layer of the chosen artifact: its precision and why, how much it errs, and its share of the time."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from compiler.artifact import Evidence
from compiler.artifact.schema import Layer
from compiler.driver.measure.child import measure_in_child
from compiler.driver.roofline import describe_machine, layer_seconds
from compiler.driver.stages.candidate import BuiltCandidate
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.quantize import read_plan
from compiler.driver.work import LayerWork, list_work
from compiler.errors import TargetUnavailable, ToolchainFailed
from compiler.passes.values import origins_of
from compiler.store import StageName
from compiler.target.request import LayerTimesAnswer, LayerTimesTask

_TYPES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp64"}


def list_layers(context: BuildContext, made: BuiltCandidate, *, sqnr_db: Mapping[str, float]) -> tuple[Layer, ...]:
    """The layers in graph order.

    Args:
        context: The device.
        made: What is delivered.
        sqnr_db: Layer → its measured error.
    """
    quantized = read_plan(made.border.entries)
    reasons = {layer.node: layer.reason for layer in quantized[0].layers} if quantized else {}
    model = made.border.load()
    works = list_work(model, batch=made.plan.dims["batch"].opt if "batch" in made.plan.dims else 1)
    nodes = {str(node.name): node for node in model.graph}
    shares, kernels, evidence = _shares(context, made, works)
    layers = []
    for work in works:
        precision = _precision(nodes[work.node], work, made)
        why = reasons.get(work.node) or _why(work, made, precision)
        layers.append(
            Layer(
                work.node,
                work.op,
                tuple(origins_of(nodes[work.node])),
                precision,
                why,
                sqnr_db.get(work.node),
                round(shares.get(work.node, 0.0), 6),
                evidence,
                kernels.get(work.node, ""),
            )
        )
    return tuple(layers)


def _precision(node: ir.Node, work: LayerWork, made: BuiltCandidate) -> str:
    rule = made.plan.rule
    if rule.scheme is not None and work.is_low:
        return rule.name
    if rule.scheme is None and not rule.converts_graph:
        return rule.name
    values = [value for value in (*node.outputs, *node.inputs) if value is not None and value.dtype is not None]
    return next((_TYPES[value.dtype.name] for value in values if value.dtype and value.dtype.name in _TYPES), "exact")


def _why(work: LayerWork, made: BuiltCandidate, precision: str) -> str:
    rule = made.plan.rule
    if precision == "exact":
        return "integers and booleans"
    if precision == rule.name:
        return rule.reason
    if rule.scheme is not None:
        fused = any(work.op in op_scheme.fuses for op_scheme in rule.scheme.ops.values())
        return "done on the sums of the operator before it" if fused else "the scheme has no such operator"
    return "the conversion keeps it: see the notes of its pass"


def _shares(
    context: BuildContext, made: BuiltCandidate, works: tuple[LayerWork, ...]
) -> tuple[dict[str, float], dict[str, str], Evidence]:
    """Node → share of the time, and node → kernel, by the best evidence there is."""
    timed = context.job.plan.constraints.any and made.verdict.evidence == Evidence.HOST
    if timed and (measured := _measured(context, made, works)):
        return *measured, Evidence.HOST
    machine = describe_machine(context.job.profile)
    times = {
        layer.node: layer_seconds(layer, machine, made.plan.precision if layer.is_low else "fp32")
        if machine
        else layer.macs
        for layer in works
    }
    total = sum(times.values()) or 1.0
    return {node: time / total for node, time in times.items()}, {}, Evidence.ESTIMATED


def _measured(
    context: BuildContext, made: BuiltCandidate, works: tuple[LayerWork, ...]
) -> tuple[dict[str, float], dict[str, str]] | None:
    """The toolchain's own times: a kernel's time is that of the layer in it with the most to compute.

    None where the toolchain has no such times: the shares are estimated then.
    """
    try:
        builds = [(made.built, made.typical.inputs)]
        (timed,) = measure_in_child(
            context,
            StageName.LAYERS,
            LayerTimesAnswer,
            builds,
            lambda inputs: LayerTimesTask(made.built.artifact, inputs[0]),
        )
    except (TargetUnavailable, ToolchainFailed):  # a full disk and a bug of ours are no reason to estimate
        return None
    known = {work.node: work for work in works}
    shares: dict[str, float] = {}
    kernels: dict[str, str] = {}
    for layer in timed.layers:
        inside = [node for node in layer.nodes if node in known]
        if inside:
            main = max(inside, key=lambda node: known[node].macs)
            shares[main] = shares.get(main, 0.0) + layer.us
            kernels |= dict.fromkeys(inside, layer.kernel)
    total = sum(layer.us for layer in timed.layers)
    return ({node: us / total for node, us in shares.items()}, kernels) if total and shares else None
