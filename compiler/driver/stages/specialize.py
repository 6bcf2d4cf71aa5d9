"""The border model of one kind of device: precision of the graph, operators written out, the target's own passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir

from compiler.driver.stages.files import load_stage
from compiler.driver.stages.rewrite import rewrite
from compiler.driver.stages.run import Stages
from compiler.fleet import Range
from compiler.model.frontend import bind_shapes
from compiler.model.graph import Pass
from compiler.model.numerics import Arrays, arrays_digest
from compiler.passes.convert_to_half import refuse_undefined
from compiler.passes.decompose_operators import DecomposeOperators
from compiler.passes.pipelines import precision_passes
from compiler.passes.probe import make_probe
from compiler.passes.select_branches import SelectBranches
from compiler.passes.unroll_loops import UnrollLoops
from compiler.passes.use_float32 import UseFloat32
from compiler.plan import Plan
from compiler.store import Entry, StageName
from compiler.store.digests import closure_digest
from compiler.target.capability import Capability, is_refused


def specialized_entry(
    before: Entry,
    plan: Plan,
    target_passes: Sequence[Pass],
    capability: Capability | None,
    *,
    inputs: Arrays,
    stages: Stages,
    batch: int | None = None,
) -> Entry:
    """What is left of the portable half's work for one target; the model itself where nothing is.

    Args:
        before: The rewritten model, or what pruning and quantizing made of it.
        plan: The precision of the graph.
        target_passes: The target's own passes.
        capability: What the target takes: operators that it lacks are written out in others; None writes out nothing.
        inputs: What the probe is run on.
        stages: Where it is run.
        batch: The size that is put in where the model before has an open batch and the device has none; else None.
    """
    writes_out = () if capability is None else decomposition(load_stage(before), plan, capability)
    steps = own_steps(plan, target_passes, writes_out)
    if not steps and batch is None:
        return before

    def make(folder: Path) -> None:
        model = load_stage(before)
        if batch is not None:
            model = bind_shapes(model, {"batch": Range(batch, batch, batch)}, where=plan.device).model
        if plan.converts_graph:
            refuse_undefined(model, plan.converts_graph)
        stages.clock.note(rewrite(model, steps, make_probe(model, inputs), folder, first=len(plan.passes) + 1))

    return stages.run(
        StageName.SPECIALIZE,
        make,
        before=before.digest,
        batch=batch,
        passes=[step.name for step in steps],
        probe=arrays_digest(inputs),
        capability=_rules(capability) if capability and writes_out else None,
        plugin=[closure_digest(type(step).__module__) for step in target_passes],
    )


def decomposition(model: ir.Model, plan: Plan, capability: Capability) -> tuple[Pass, ...]:
    """The passes that write out what a target lacks, for models of this one's opset; none where it lacks nothing."""
    opset = model.graph.opset_imports.get("", 1)
    writes_out = DecomposeOperators(lambda node: is_refused(node, capability, opset))
    # a conversion may make what the target takes in float32 alone, so the passes are needed behind it in any case
    is_needed = bool(plan.converts_graph) or any(writes_out.refuses(node) for node in model.graph.all_nodes())
    refuses = writes_out.refuses
    return (UseFloat32(refuses), SelectBranches(refuses), UnrollLoops(refuses), writes_out) if is_needed else ()


def own_steps(plan: Plan, target_passes: Sequence[Pass], writes_out: Sequence[Pass]) -> list[Pass]:
    """After the precision, since bodies are written for the types there are; before passes made for the target."""
    return [*precision_passes(plan.converts_graph or "fp32"), *writes_out, *target_passes]


def _rules(capability: Capability) -> str:
    """What a capability says of operators, in an order that does not depend on the process."""
    rules = [
        (name, asdict(rule) | {"dtypes": sorted(rule.dtypes), "attributes": sorted(rule.attributes.items())})
        for name, rule in sorted(capability.ops.items())
    ]
    return repr(rules)
