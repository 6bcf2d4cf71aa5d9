"""How many bytes the weights of each kernel may take.

Winograd's transform multiplies the weights of a layer by n²/9: 1.8 to 7.1 times. Each layer has one choice among those
of its workload, and the sum of predicted instructions is the least that the limit on the sum of bytes allows: a
multiple-choice knapsack, solved by dynamic programming over bytes (Kellerer, Pferschy and Pisinger, Knapsack Problems,
2004). Two layers of one workload may differ. Where even the smallest choices are over the limit of a payload it cannot
be met by any, and nothing is given up for it. Where a payload has no limit, all weights together take at most
`MOST_GROWTH` times the bytes that they have in the model, unless the options prefer speed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

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
STEPS = 8192
"""Into which the bytes above the smallest choices are cut: each layer loses less than one to rounding."""

Layer: TypeAlias = tuple[ConvWorkload, str]
"""A workload and the digest of its weights: equal weights of one workload are stored once, however many kernels read
them."""


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


def layer_of(composite: Composite) -> Layer:
    """The layer that a composite's weights are of."""
    return composite.workload, array_digest(composite.weights)


def allot_weights(
    main: Any, composites: Mapping[Any, Composite], machine: Machine, budget: Budget
) -> Mapping[Layer, int]:
    """Layer → most bytes of its packed weights; a layer that may take any choice is not in it.

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
        return fit_weights(weights.layers, machine, room)
    limit = int((budget.growth or MOST_GROWTH) * weights.total) - weights.others
    return fit_weights(weights.layers, machine, max(limit, _least_bytes(weights.layers, machine)))


@dataclass(frozen=True)
class _Weights:
    """The constants of a model.

    Args:
        layers: Those that kernels of ours pack.
        total: Bytes of all constants in the model.
        others: Of them, those that no kernel of ours packs.
    """

    layers: tuple[Layer, ...]
    total: int
    others: int

    @classmethod
    def of(cls, main: Any, composites: Mapping[Any, Composite]) -> _Weights:
        distinct = {layer_of(part): part.given_bytes for part in composites.values()}
        raw = {digest: size for (_, digest), size in distinct.items()}
        total = constant_bytes(main)
        return cls(tuple(distinct), total, max(0, total - sum(raw.values())))

    def code_bytes(self, sizes: int) -> int:
        """What the payload holds beside weights, about: a build that is measured may show that it is more."""
        return CODE_BYTES + KERNEL_BYTES * len({work for work, _ in self.layers}) * sizes


def least_payload(module: Any, machine: Machine, *, sizes: int = 1) -> int | None:
    """The least limit of a payload for which kernels give up larger weights; None where none has a choice of them.

    Args:
        module: The model as Relax, its constants folded.
        machine: The machine it runs on.
        sizes: As of `Budget`.
    """
    main = module["main"]
    weights = _Weights.of(main, find_composites(main))
    if not weights.layers:
        return None
    return weights.code_bytes(sizes) + weights.others + _least_bytes(weights.layers, machine)


def _least_bytes(layers: Iterable[Layer], machine: Machine) -> int:
    """Bytes of all weights where each layer has its smallest choice."""
    ranked = (all_choices(work, machine) for work, _ in layers)
    return sum(min(choice.weight_bytes for choice in choices) for choices in ranked if choices)


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
    bound: dict[ConvWorkload, int] = {}
    # One record serves all layers of a workload: it may be what any of them has room for.
    for (work, _), size in limits.items():
        bound[work] = max(size, bound.get(work, 0))
    fitting = {work.digest: _fitting(work, machine, size) for work, size in bound.items()}
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


def fit_weights(layers: Sequence[Layer], machine: Machine, limit: int) -> Mapping[Layer, int]:
    """Layer → most bytes of its weights, of all layers where one must give up its fastest choice; else of none.

    Args:
        layers: The layers; those without a choice are left out.
        machine: The machine they run on.
        limit: Most bytes of all their weights.
    """
    steps = {layer: useful for layer in layers if (useful := _useful_choices(all_choices(layer[0], machine)))}
    room = limit - sum(choices[0].weight_bytes for choices in steps.values())
    fastest = sum(choices[-1].weight_bytes for choices in steps.values())
    if room < 0 or fastest <= limit:
        return {}
    selected = _knapsack(list(steps.values()), room)
    return {layer: choice.weight_bytes for layer, choice in zip(steps, selected, strict=True)}


def _useful_choices(choices: Sequence[Choice]) -> list[Choice]:
    """The smallest choice, and each larger one that is faster than all before it."""
    useful: list[Choice] = []
    for choice in sorted(choices, key=lambda choice: (choice.weight_bytes, choice.cost)):
        if not useful or choice.cost < useful[-1].cost:
            useful.append(choice)
    return useful


def _knapsack(layers: Sequence[Sequence[Choice]], room: int) -> list[Choice]:
    """A choice for each layer, the fastest together.

    Args:
        layers: The choices of each, the smallest first.
        room: Bytes that all may take beyond the smallest ones.
    """
    unit = max(1, -(-room // STEPS))
    least = np.zeros(room // unit + 1)
    picks: list[NDArray[np.intp]] = []
    sizes = [[-(-(choice.weight_bytes - choices[0].weight_bytes) // unit) for choice in choices] for choices in layers]
    for choices, own in zip(layers, sizes, strict=True):
        costs = np.full((len(choices), least.size), np.inf)
        for row, choice, size in zip(costs, choices, own, strict=True):
            row[size:] = least[: max(0, least.size - size)] + choice.cost
        picks.append(costs.argmin(axis=0))
        least = costs.min(axis=0)
    selected, place = [], least.size - 1
    for choices, own, pick in reversed(list(zip(layers, sizes, picks, strict=True))):
        selected.append(choices[pick[place]])
        place -= own[pick[place]]
    return selected[::-1]
