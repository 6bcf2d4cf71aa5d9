"""All kernel families, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType

from targets.arm_tvm.kernels.floating_point import bordered, depthwise, direct, strided, winograd
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload
from targets.arm_tvm.kernels.machine import Machine

FAMILIES: Mapping[str, ModuleType] = {
    "direct": direct,
    "winograd": winograd,
    "depthwise": depthwise,
    "bordered": bordered,
    "strided": strided,
}


@lru_cache(maxsize=1024)
def all_choices(workload: ConvWorkload, machine: Machine) -> tuple[Choice, ...]:
    """Every family's ways to compute a workload, best predicted first; none where all decline.

    A build asks several times for each of its workloads: for the least payload, for the budget, and for the kernel.
    """
    candidates = (choice for family in FAMILIES.values() for choice in family.choices(workload, machine))
    # The sort is stable: of equal costs the family that stands first in FAMILIES wins.
    return tuple(sorted(candidates, key=lambda choice: choice.cost))


def choose(
    workload: ConvWorkload,
    machine: Machine,
    schedule: Mapping[str, Mapping[str, object]],
    *,
    most_bytes: int | None = None,
) -> Choice | None:
    """The plan's choice for the workload where it has one that still exists, else the analytic default.

    Args:
        workload: The convolution or product.
        machine: The machine it is computed on.
        schedule: Digest of a workload → a choice, as `Choice.to_dict` gives it.
        most_bytes: Most bytes of its packed weights; None: no limit.
    """
    candidates = [
        candidate
        for candidate in all_choices(workload, machine)
        if most_bytes is None or candidate.weight_bytes <= most_bytes
    ]
    wanted = dict(schedule.get(workload.digest, {}))
    return next((choice for choice in candidates if choice.to_dict() == wanted), next(iter(candidates), None))
