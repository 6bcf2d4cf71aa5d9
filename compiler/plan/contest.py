"""Several targets for one device: each has a plan of its own, and all plans say which targets compete, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from compiler.artifact.schema import Decision, PlannedTarget
from compiler.errors import CompilerError
from compiler.plan.plan import Plan, facts_of

CLOSE = 0.10
"""A candidate is tried where it could be the best if it were this share faster than its target promises: expected gains
are round numbers, and a race of first builds is a short one."""


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
    promised = "; ".join(f"{plan.target} promises {_promises(plan)} its float32" for plan in plans)
    return tuple(_among(plan, targets, promised) for plan in plans)


def _planned(plan: Plan) -> PlannedTarget:
    sizes = plan.decisions.get("sizes")
    reason = f"{plan.reason}; {sizes.value}: {sizes.reason}" if sizes else plan.reason
    return PlannedTarget(plan.target, facts_of(plan.candidates), reason, plan.toolchain)


def _promises(plan: Plan) -> str:
    """What a target says of its candidates against its own float32 build."""
    return ", ".join(f"{rule.name} {rule.gain:g} ×" for rule in plan.candidates)


def _among(plan: Plan, targets: tuple[PlannedTarget, ...], promised: str) -> Plan:
    """The plan with the targets that compete, and how one of them is chosen."""
    entered = [target.target for target in targets if not target.left_out]
    left_out = "".join(f"; not {target.target}: {target.left_out}" for target in targets if target.left_out)
    how = f"{_how(plan)}; {promised}" if plan.constraints.any else _how(plan)
    decision = Decision(", ".join(entered), (how if len(entered) > 1 else "the only one left") + left_out)
    return replace(plan, targets=targets, decisions={"target": decision, **plan.decisions})


def _how(plan: Plan) -> str:
    if not plan.constraints.any:
        return (
            "they compete: their builds are raced, and the fastest is delivered; where nothing can be raced here, the "
            "first that can be built"
        )
    return (
        "they compete: their float32 builds are raced first; of a candidate is expected at most the upper end of the "
        f"race × what its target promises × {1 + CLOSE:g}, and it is left out only where what passes is measured to be "
        "faster than that, where other work disturbs the races by processor time and by the number of threads; where "
        "nothing can be raced here, a later target's are tried only where nothing of those before passes"
    )
