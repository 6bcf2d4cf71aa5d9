"""Where does an artifact go wrong? The border model is cut after one operator, built and run; halving finds which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from compiler.driver.stages.compile import build_loose
from compiler.driver.stages.execute import execute
from compiler.driver.stages.reference import ParityCase
from compiler.driver.stages.verify import failures
from compiler.errors import CompilerError
from compiler.fleet.profile import HardwareProfile
from compiler.model.frontend import extract_prefix
from compiler.model.numerics import Arrays
from compiler.model.save import save_model
from compiler.passes.probe import run_unoptimized
from compiler.passes.values import origins_of
from compiler.plan import Plan
from compiler.store.scratch import scratch_folder
from compiler.target.capability import op_key
from compiler.target.isolate import ChildLimits


@dataclass(frozen=True)
class Cutter:
    """Builds and runs beginnings of one border model on the inputs it was judged on.

    Args:
        model: The border model.
        nodes: Its operators in order, constants left out.
        inputs: What it was judged on.
        plan: The device's plan.
        profile: The device's profile.
        child_limits: What each child process may use.
    """

    model: ir.Model
    nodes: Sequence[ir.Node]
    inputs: Sequence[Arrays]
    plan: Plan
    profile: HardwareProfile
    child_limits: ChildLimits

    def diverges(self, count: int) -> str:
        """How the built first `count` operators differ from the reference run of the same; empty if they do not."""
        prefix = extract_prefix(self.model, self.frontier(count))
        names = [str(value.name) for value in prefix.graph.inputs]
        inputs = [{name: arrays[name] for name in names} for arrays in self.inputs]
        with scratch_folder() as folder:
            save_model(prefix, folder / "border.onnx")
            (folder / "artifact").mkdir()
            artifact = build_loose(
                folder / "border.onnx",
                self.plan,
                self.profile,
                folder=folder / "artifact",
                child_limits=self.child_limits,
            )
            outputs = execute(
                artifact, inputs, repeat=0, instructions=False, where=self.plan.device, child_limits=self.child_limits
            ).outputs
        bad = {
            name: f"'{name}' has an SQNR of {stats.sqnr_db:.1f} dB"
            for arrays, actual in zip(inputs, outputs, strict=True)
            for name, stats in failures(run_unoptimized(prefix, arrays), actual, self.plan.tolerance).items()
        }
        return "; ".join(bad.values())

    def frontier(self, count: int) -> list[str]:
        """What the first `count` operators leave to the others, or give out; all branches of the graph are in it."""
        inside = set(self.nodes[:count])
        return [
            str(value.name)
            for node in self.nodes[:count]
            for value in node.outputs
            if value.name and (value.is_graph_output() or any(user not in inside for user, _ in value.uses()))
        ]


def explain_divergence(
    model: ir.Model, points: Sequence[ParityCase], plan: Plan, profile: HardwareProfile, *, child_limits: ChildLimits
) -> str:
    """Names the first operator at which the built border model leaves the reference, as a sentence for the error.

    The border model itself was compared with the imported one before anything was built.

    Args:
        model: The border model.
        points: What the artifact was judged on, and what the imported model gives for it.
        plan: The device's plan.
        profile: Its profile.
        child_limits: What each child process may use.
    """
    nodes = [node for node in model.graph if node.op_type != "Constant"]
    inputs = [point.inputs for point in points]
    try:
        divergence = _first(Cutter(model, nodes, inputs, plan, profile, child_limits))
    except CompilerError as error:
        return f"The first diverging operator could not be found: {error.what}"
    if divergence is None:
        return "No operator diverges when the border model is cut after it: the fault shows only in the whole graph."
    node, how = divergence
    return f"The first operator that diverges is {op_key(node)} '{node.name}'{_origin(node)}: {how}."


def _first(cutter: Cutter) -> tuple[ir.Node, str] | None:
    low, high = 0, len(cutter.nodes)
    if not high or not (difference := cutter.diverges(high)):
        return None
    while high - low > 1:  # the first `high` operators diverge, the first `low` do not
        middle = (low + high) // 2
        how = cutter.diverges(middle)
        low, high, difference = (low, middle, how) if how else (middle, high, difference)
    return cutter.nodes[high - 1], difference


def _origin(node: ir.Node) -> str:
    origins = origins_of(node)
    return f" (made of {', '.join(origins)})" if origins != (node.name,) else ""
