"""What will be done for a device, and why: which precisions may be tried, pruning, threads; nothing is built yet."""

from __future__ import annotations

from compiler.artifact.schema import Decision
from compiler.plan.plan import (
    EMULATE_S,
    BuildOptions,
    Plan,
    SearchEffort,
    at_optimal_sizes,
    make_plan,
    options_to_dict,
    plan_passes,
    settle,
    settle_pruning,
    settle_target,
    settle_tolerance,
)

__all__ = [
    "EMULATE_S",
    "BuildOptions",
    "Decision",
    "Plan",
    "SearchEffort",
    "at_optimal_sizes",
    "make_plan",
    "options_to_dict",
    "plan_passes",
    "settle",
    "settle_pruning",
    "settle_target",
    "settle_tolerance",
]
