"""The border model of one kind of device: the precision of the graph itself, and the target's own passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compiler.driver.stages.files import load_stage
from compiler.driver.stages.rewrite import rewrite
from compiler.driver.stages.run import Stages
from compiler.model.graph import Pass
from compiler.model.numerics import Arrays, arrays_digest
from compiler.passes.convert_to_half import refuse_undefined
from compiler.passes.pipelines import precision_passes
from compiler.passes.probe import make_probe
from compiler.plan import Plan
from compiler.store import Entry, StageName
from compiler.store.digests import closure_digest


def specialized_entry(
    before: Entry, plan: Plan, target_passes: Sequence[Pass], inputs: Arrays, stages: Stages
) -> Entry:
    """What is left of the portable half's work for one target; the model itself where nothing is.

    Args:
        before: The rewritten model, or what pruning and quantizing made of it.
        plan: The precision of the graph.
        target_passes: The target's own passes.
        inputs: What the probe is run on.
        stages: Where it is run.
    """
    steps = own_steps(plan, target_passes)
    if not steps:
        return before

    def make(folder: Path) -> None:
        model = load_stage(before)
        if plan.converts_graph:
            refuse_undefined(model, plan.converts_graph)
        stages.clock.note(rewrite(model, steps, make_probe(model, inputs), folder, first=len(plan.passes) + 1))

    return stages.run(
        StageName.SPECIALIZE,
        make,
        before=before.digest,
        passes=[step.name for step in steps],
        probe=arrays_digest(inputs),
        plugin=[closure_digest(type(step).__module__) for step in target_passes],
    )


def own_steps(plan: Plan, target_passes: Sequence[Pass]) -> list[Pass]:
    """The conversion of the graph's precision, and the target's own passes behind it."""
    return [*precision_passes(plan.converts_graph or "fp32"), *target_passes]
