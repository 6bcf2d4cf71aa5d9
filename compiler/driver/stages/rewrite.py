"""The imported model, rewritten by the numbered passes; devices of the same sizes share the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from compiler.driver.stages.files import save_stage
from compiler.driver.stages.run import Stages
from compiler.model.graph import Pass
from compiler.model.numerics import Arrays, arrays_digest
from compiler.passes.instrument import measure
from compiler.passes.pipelines import load_passes
from compiler.passes.probe import Probe, make_probe
from compiler.passes.run import run_passes
from compiler.plan import Plan
from compiler.store import Entry, StageName


def rewritten_entry(model: ir.Model, digest: str, plan: Plan, inputs: Arrays, stages: Stages) -> Entry:
    """The model after the plan's passes.

    Args:
        model: The imported model, dimensions bound; left as it is.
        digest: Its graph digest.
        plan: Which passes run.
        inputs: What the probe is run on.
        stages: Where it is run.
    """
    names = portable_names(plan)

    def make(folder: Path) -> None:
        probe = make_probe(model, inputs)
        stages.clock.note(rewrite(model, load_passes(names), probe, folder, first=1, strict=True))

    return stages.run(StageName.REWRITE, make, model=digest, passes=names, probe=arrays_digest(inputs))


def rewrite(
    model: ir.Model, steps: Sequence[Pass], probe: Probe, folder: Path, *, first: int, strict: bool = False
) -> str:
    """Runs passes on a copy of a model and writes it with their records. Returns how many nodes there were and are."""
    copy = model.clone()
    records = [
        record.to_dict() for record in run_passes(copy, steps, probe=probe, first=first, undo=True, strict=strict)
    ]
    save_stage(copy, folder, records)
    return f"{len(steps)} passes: {measure(model).nodes} nodes become {measure(copy).nodes}"


def portable_names(plan: Plan) -> list[str]:
    """The passes that run, in order; a pass may stand in the pipeline more than once."""
    return [step.name for step in plan.passes if step.runs]
