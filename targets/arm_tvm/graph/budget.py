"""How many bytes the weights of each kernel may take.

Winograd's transform multiplies the weights of a layer by n²/9: 1.8 to 7.1 times. Every kernel starts with its fastest
choice. While the weights are over the limit, one kernel takes a choice with fewer bytes: the one that frees most bytes
for each predicted instruction it adds. Where even the smallest choices are over the limit of a payload it cannot be
met by any, and nothing is given up for it. Where a payload has no limit, all weights together take at most
`MOST_GROWTH` times the bytes that they have in the model, unless the options prefer speed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compiler.target import Tunable
from targets.arm_tvm.graph.composites import Composite, find_composites
from targets.arm_tvm.graph.reading import array_digest, constant
from targets.arm_tvm.kernels.floating_point.families import all_choices
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload
from targets.arm_tvm.kernels.machine import Machine
from targets.arm_tvm.options import Options, Preference

MOST_GROWTH = 1.25
"""Bytes of all weights against those of the model: what is left to Winograd where nothing limits the payload."""
CODE_BYTES = 64 << 10
"""Of a payload: what is neither weights nor our kernels, about."""
KERNEL_BYTES = 16 << 10
"""Of a payload: code of one kernel, about; what is measured corrects it where it is too low."""


@dataclass(frozen=True)
class Budget:
    """What limits the bytes of weights.

    Args:
        payload_bytes: Most bytes of the bundle's payload, code included; None: no limit.
        growth: Most bytes of all weights, as a multiple of what they have in the model; None: no limit. It counts only
            where the payload has no limit.
        sizes: How often each kernel is compiled, for as many sizes of the model.
    """

    payload_bytes: int | None = None
    growth: float | None = None
    sizes: int = 1


UNLIMITED = Budget()


def budget_of(options: Options, payload_bytes: int | None, *, sizes: int = 1) -> Budget:
    """The limits of a build.

    Args:
        options: What to compile for.
        payload_bytes: Most bytes of the bundle's payload; None: no limit.
        sizes: As of `Budget`.
    """
    return Budget(payload_bytes, None if options.prefer is Preference.SPEED else MOST_GROWTH, sizes)


def allot_weights(
    main: Any, composites: Mapping[Any, Composite], machine: Machine, budget: Budget
) -> Mapping[ConvWorkload, int]:
    """Workload → most bytes of its packed weights; a workload that may take any choice is not in it.

    Args:
        main: The Relax function, weights as constants.
        composites: The parts of it that kernels of ours compute.
        machine: The machine they run on.
        budget: The limits.
    """
    if budget.payload_bytes is None and budget.growth is None:
        return {}
    weights = _Weights.of(main, composites)
    if budget.payload_bytes is not None:
        room = budget.payload_bytes - weights.code_bytes(budget.sizes) - weights.others
        return fit_weights(weights.counts, machine, room)
    limit = int((budget.growth or MOST_GROWTH) * weights.total) - weights.others
    return fit_weights(weights.counts, machine, max(limit, _least_bytes(weights.counts, machine)))


@dataclass(frozen=True)
class _Weights:
    """The constants of a model.

    Args:
        counts: How many kernels each workload has, each with weights of its own.
        total: Bytes of all constants in the model.
        others: Of them, those that no kernel of ours packs.
    """

    counts: Mapping[ConvWorkload, int]
    total: int
    others: int

    @classmethod
    def of(cls, main: Any, composites: Mapping[Any, Composite]) -> _Weights:
        # Equal weights of one workload are stored once, however many kernels read them.
        distinct = {(part.workload, array_digest(part.weights)): part.given_bytes for part in composites.values()}
        raw = {digest: size for (_, digest), size in distinct.items()}
        total = constant_bytes(main)
        return cls(Counter(workload for workload, _ in distinct), total, max(0, total - sum(raw.values())))

    def code_bytes(self, sizes: int) -> int:
        """What the payload holds beside weights, about: a build that is measured may show that it is more."""
        return CODE_BYTES + KERNEL_BYTES * len(self.counts) * sizes


def least_payload(module: Any, machine: Machine, *, sizes: int = 1) -> int | None:
    """The least limit of a payload for which kernels give up larger weights; None where none has a choice of them.

    Args:
        module: The model as Relax, its constants folded.
        machine: The machine it runs on.
        sizes: As of `Budget`.
    """
    main = module["main"]
    weights = _Weights.of(main, find_composites(main))
    if not weights.counts:
        return None
    return weights.code_bytes(sizes) + weights.others + _least_bytes(weights.counts, machine)


def _least_bytes(counts: Mapping[ConvWorkload, int], machine: Machine) -> int:
    """Bytes of all weights where each has its smallest choice."""
    ranked = ((count, all_choices(work, machine)) for work, count in counts.items())
    return sum(count * min(choice.weight_bytes for choice in choices) for count, choices in ranked if choices)


def within_budget(tunables: Sequence[Tunable], module: Any, machine: Machine, budget: Budget) -> tuple[Tunable, ...]:
    """The tunables with the choices that a budget has room for; the name says where some went.

    Args:
        tunables: Kernels of a model.
        module: The same model as Relax, its constants folded.
        machine: The machine they run on.
        budget: The limits.
    """
    main = module["main"]
    limits = allot_weights(main, find_composites(main), machine, budget)
    fitting = {work.digest: _fitting(work, machine, size) for work, size in limits.items()}
    return tuple(_restricted(tunable, fitting.get(tunable.workload)) for tunable in tunables)


def _fitting(work: ConvWorkload, machine: Machine, size: int) -> list[dict[str, Any]]:
    return [choice.to_dict() for choice in all_choices(work, machine) if choice.weight_bytes <= size]


def _restricted(tunable: Tunable, fitting: list[dict[str, Any]] | None) -> Tunable:
    if fitting is None:
        return tunable
    choices = tuple(choice for choice in tunable.choices if choice in fitting)
    name = f"{tunable.name}, weights as the limit of bytes allows"
    return replace(tunable, choices=choices, name=name) if choices else tunable


def constant_bytes(main: Any) -> int:
    """Bytes of all constants of a Relax function."""
    from tvm import relax

    sizes: dict[str, int] = {}

    def visit(part: Any) -> None:
        array = constant(part)
        if array is not None:
            # Equal constants are stored once.
            sizes[array_digest(array)] = array.nbytes

    relax.analysis.post_order_visit(main.body, visit)
    return sum(sizes.values())


@dataclass(frozen=True)
class _Step:
    """A change of one workload to a choice with fewer bytes.

    Args:
        workload: The workload.
        choice: Its new choice.
        freed: Bytes saved, all kernels of the workload together.
        added: Predicted instructions it adds.
    """

    workload: ConvWorkload
    choice: Choice
    freed: int
    added: float


def fit_weights(counts: Mapping[ConvWorkload, int], machine: Machine, limit: int) -> Mapping[ConvWorkload, int]:
    """Workload → most bytes of its weights, of those that must give up their fastest choice.

    Args:
        counts: How many kernels each workload has, each with weights of its own.
        machine: The machine they run on.
        limit: Most bytes of all their weights.
    """
    choices = {work: ranked for work in counts if (ranked := all_choices(work, machine))}
    selected = {work: ranked[0] for work, ranked in choices.items()}
    if sum(counts[work] * min(choice.weight_bytes for choice in ranked) for work, ranked in choices.items()) > limit:
        return {}
    limits: dict[ConvWorkload, int] = {}
    while sum(counts[work] * choice.weight_bytes for work, choice in selected.items()) > limit:
        steps = (
            step for work, choice in selected.items() for step in _steps(work, choice, choices[work], counts[work])
        )
        # At least 1: a step that adds no instruction must not divide by zero.
        best = max(steps, key=lambda step: step.freed / max(step.added, 1.0))
        selected[best.workload] = best.choice
        limits[best.workload] = best.choice.weight_bytes
    return limits


def _steps(work: ConvWorkload, selected: Choice, choices: Iterable[Choice], count: int) -> Iterator[_Step]:
    for choice in choices:
        if choice.weight_bytes < selected.weight_bytes:
            freed, added = selected.weight_bytes - choice.weight_bytes, choice.cost - selected.cost
            yield _Step(work, choice, count * freed, count * added)
