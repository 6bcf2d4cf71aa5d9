"""Several targets for one device: each has a plan of its own, and all plans say which targets compete, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from compiler.artifact.schema import Decision, PlannedTarget
from compiler.errors import CompilerError
from compiler.plan.plan import Plan, facts_of

CLOSE = 0.10
"""Builds of a target are tried while its best precision may be expected to come within this share of another target's:
expected gains are round numbers, and a race of first builds is a short one."""


def competing(plans: Sequence[Plan], names: Sequence[str], failed: Mapping[str, CompilerError]) -> tuple[Plan, ...]:
    """The plans of one device class, each with all targets that were asked for and how one is chosen.

    Args:
        plans: A plan through each target that there can be one for, in order; at least one.
        names: All targets that were asked for.
        failed: Target → why there is no plan.
    """
    by_target = {plan.target: plan for plan in plans}
    targets = tuple(
        _planned(by_target[name]) if name in by_target else PlannedTarget(name, left_out=failed[name].brief)
        for name in names
    )
    return tuple(_among(plan, targets) for plan in plans)


def _planned(plan: Plan) -> PlannedTarget:
    return PlannedTarget(plan.target, facts_of(plan.candidates), plan.reason, plan.toolchain)


def _among(plan: Plan, targets: tuple[PlannedTarget, ...]) -> Plan:
    """The plan with the targets that compete, and how one of them is chosen."""
    entered = [target.target for target in targets if not target.left_out]
    left_out = "".join(f"; not {target.target}: {target.left_out}" for target in targets if target.left_out)
    decision = Decision(", ".join(entered), (_how(plan) if len(entered) > 1 else "the only one left") + left_out)
    return replace(plan, targets=targets, decisions={"target": decision, **plan.decisions})


def _how(plan: Plan) -> str:
    if not plan.constraints.any:
        return (
            "they compete: their builds are raced, and the fastest is delivered; where nothing can be raced here, the "
            "first that can be built"
        )
    return (
        "they compete: their float32 builds are raced first, and candidates of one whose best precision cannot be "
        f"expected within {100 * CLOSE:g} % of another's are tried last, and only where nothing that passes is as fast "
        "as its float32 build; where nothing can be raced here, a later one's only where nothing of those before passes"
    )
