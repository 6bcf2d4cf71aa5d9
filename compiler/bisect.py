"""Where does an artifact go wrong? The border model is cut after one operator, built and run; halving finds which."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from compiler.build import build_loose
from compiler.capability import op_key
from compiler.errors import CompilerError
from compiler.frontend import extract_prefix
from compiler.isolate import ChildLimits
from compiler.numerics import Arrays
from compiler.passes.probe import run_unoptimized
from compiler.passes.values import origins_of
from compiler.plan import Plan
from compiler.profile import HardwareProfile
from compiler.save import save_model
from compiler.verify import Point, execute, failures


@dataclass(frozen=True)
class Cutter:
    """Builds and runs beginnings of one border model on one point's inputs."""

    model: ir.Model
    inputs: Arrays
    plan: Plan
    profile: HardwareProfile
    limits: ChildLimits

    def diverges(self, node: ir.Node) -> str:
        """How the built beginning up to this node differs from the reference run of the same; empty if it does not."""
        prefix = extract_prefix(self.model, [str(value.name) for value in node.outputs if value.name])
        inputs = {str(value.name): self.inputs[str(value.name)] for value in prefix.graph.inputs}
        with tempfile.TemporaryDirectory(prefix="fleetc-") as name:
            folder = Path(name)
            save_model(prefix, folder / "border.onnx")
            (folder / "artifact").mkdir()
            artifact = build_loose(
                folder / "border.onnx", self.plan, self.profile, folder=folder / "artifact", limits=self.limits
            )
            (outputs,) = execute(
                artifact, [inputs], repeat=0, instructions=False, where=self.plan.device, limits=self.limits
            ).outputs
        bad = failures(run_unoptimized(prefix, inputs), outputs, self.plan.tolerance)
        return "; ".join(f"'{name}' has an SQNR of {stats.sqnr_db:.1f} dB" for name, stats in bad.items())


def explain_divergence(
    model: ir.Model, point: Point, plan: Plan, profile: HardwareProfile, *, limits: ChildLimits
) -> str:
    """Names the first operator at which the built border model leaves the reference, as a sentence for the error.

    Args:
        model: The border model.
        point: Inputs for which the artifact failed, and what the imported model gives for them.
        plan: The device's plan.
        profile: Its profile.
        limits: What each child process may use.
    """
    if failures(point.expected, run_unoptimized(model, point.inputs), plan.tolerance):
        return (
            "The border model itself already differs from the imported one: a pass is at fault, not the target. "
            "The pass records in the report tell which; `--stop-after N` builds without it."
        )
    try:
        found = _first(Cutter(model, point.inputs, plan, profile, limits))
    except CompilerError as error:
        return f"The first diverging operator could not be found: {error.what}"
    if found is None:
        return "No operator diverges when the border model is cut after it: the fault shows only in the whole graph."
    node, how = found
    return f"The first operator that diverges is {op_key(node)} '{node.name}'{_origin(node)}: {how}."


def _first(cutter: Cutter) -> tuple[ir.Node, str] | None:
    nodes: Sequence[ir.Node] = [node for node in cutter.model.graph if node.op_type != "Constant"]
    low, high, found = 0, len(nodes) - 1, ""
    if high < 0 or not (found := cutter.diverges(nodes[high])):
        return None
    while low < high:  # nodes[high] diverges, everything before nodes[low] does not
        middle = (low + high) // 2
        how = cutter.diverges(nodes[middle])
        low, high, found = (low, middle, how) if how else (middle + 1, high, found)
    return nodes[high], found


def _origin(node: ir.Node) -> str:
    origins = origins_of(node)
    return f" (made of {', '.join(origins)})" if origins != (node.name,) else ""
