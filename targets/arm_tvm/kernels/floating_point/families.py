"""All kernel families, and the choice among them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from types import ModuleType

from targets.arm_tvm.kernels.floating_point import amx_bf16, avx512_bf16, bordered, depthwise, direct, strided, winograd
from targets.arm_tvm.kernels.floating_point.bfloat16 import BFLOAT16
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload
from targets.arm_tvm.kernels.machine import Machine

FAMILIES: Mapping[str, ModuleType] = {
    "direct": direct,
    "winograd": winograd,
    "depthwise": depthwise,
    "bordered": bordered,
    "strided": strided,
    "amx_bf16": amx_bf16,
    "avx512_bf16": avx512_bf16,
}
_BFLOAT16 = (amx_bf16, avx512_bf16)
_FLOATS = tuple(family for family in FAMILIES.values() if family not in _BFLOAT16)


@lru_cache(maxsize=1024)
def all_choices(workload: ConvWorkload, machine: Machine) -> tuple[Choice, ...]:
    """Every family's ways to compute a workload, best predicted first; none where all decline.

    A build asks several times for each of its workloads: for the least payload, for the budget, and for the kernel.
    """
    # Families of floats take weights of bfloat16 for those of int8, which they widen.
    families = _BFLOAT16 if workload.weights == BFLOAT16 else _FLOATS
    candidates = (choice for family in families for choice in family.choices(workload, machine))
    # The sort is stable: of equal costs the family that stands first in FAMILIES wins.
    return tuple(sorted(candidates, key=lambda choice: choice.cost))


def alike(workload: ConvWorkload, machine: Machine, like: Choice) -> tuple[Choice, ...]:
    """Ways to compute a workload with weights that are packed for another choice, best predicted first.

    Args:
        workload: A workload of the same weights, at another size of its source.
        machine: The machine it is computed on.
        like: What the weights are packed for.
    """
    pack = FAMILIES[like.family].pack
    # Two families may pack in the same way.
    families = [family for family in FAMILIES.values() if family.pack is pack]
    ways = (choice for family in families for choice in family.choices(workload, machine, like=like))
    return tuple(sorted(ways, key=lambda choice: choice.cost))


def choose(
    workload: ConvWorkload,
    machine: Machine,
    schedule: Mapping[str, Mapping[str, object]],
    *,
    most_bytes: int | None = None,
    others: Collection[ConvWorkload] = (),
) -> Choice | None:
    """The plan's choice for the workload where it has one that still exists, else the analytic default.

    Args:
        workload: The convolution or product.
        machine: The machine it is computed on.
        schedule: Digest of a workload → a choice, as `Choice.to_dict` gives it.
        most_bytes: Most bytes of its packed weights; None: no limit.
        others: Workloads that are to read the same packed weights.
    """
    candidates = [
        candidate
        for candidate in all_choices(workload, machine)
        if (most_bytes is None or candidate.weight_bytes <= most_bytes)
        and all(alike(other, machine, candidate) for other in others)
    ]
    wanted = dict(schedule.get(workload.digest, {}))
    return next((choice for choice in candidates if choice.to_dict() == wanted), next(iter(candidates), None))
