"""How many channels each group loses: greedily, by least error per saved cost, in steps of the kernels' width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from compiler.artifact.schema import Group
from compiler.compress.prune.costs import Costs
from compiler.compress.prune.groups import Ties
from compiler.compress.prune.importance import Removal


@dataclass(frozen=True)
class PrunePlan:
    """The choice for all groups.

    Args:
        removed: Class numbers of the removed channels.
        groups: The choice for each group.
        macs_before: Multiply-accumulates of the original model.
        macs_after: Of the model without these channels.
    """

    removed: tuple[int, ...]
    groups: tuple[Group, ...]
    macs_before: int
    macs_after: int

    @property
    def ratio(self) -> float:
        """Share of the multiply-accumulates that is saved, 0 to 1."""
        return 1 - self.macs_after / max(1, self.macs_before)


def choose_channels(
    model: ir.Model,
    ties: Ties,
    removals: Sequence[Removal],
    *,
    ratio: float,
    multiple: int,
    prices: Mapping[str, float] | None = None,
) -> PrunePlan:
    """Removes steps of `multiple` channels, each where the error per saved cost is least.

    Args:
        model: The model the ties were found in.
        ties: Its ties.
        removals: The order of removal within each group.
        ratio: Share of the multiply-accumulates to save, 0 to 1; less is saved where nothing is left to cut.
        multiple: Remaining widths are multiples of this, where a group is at least that wide.
        prices: Layer → cost of one of its multiply-accumulates on the device; 1 where it is not named.
    """
    costs = Costs(model, ties, prices or {})
    macs_before = costs.macs
    counts = [0] * len(removals)
    removed: list[int] = []
    while costs.macs > macs_before * (1 - ratio):
        steps = [_step(index, removal, counts[index], multiple, costs) for index, removal in enumerate(removals)]
        possible = [step for step in steps if step is not None]
        if not possible:
            break
        _, index, channels = min(possible)
        counts[index] += len(channels)
        removed.extend(channels)
        costs.take(channels)
    groups = tuple(_describe(removal, counts[index], multiple) for index, removal in enumerate(removals))
    return PrunePlan(tuple(sorted(removed)), groups, round(macs_before), round(costs.macs))


def _step(
    index: int, removal: Removal, taken: int, multiple: int, costs: Costs
) -> tuple[float, int, tuple[int, ...]] | None:
    """Error per saved cost of the group's next step, the group, and the channels it takes; None if there is none."""
    left = len(removal.order) - taken
    # the first step makes the width a multiple; kernels compute a partial block as slowly as a whole one
    size = left % multiple or multiple
    channels = removal.order[taken : taken + size]
    if left - size < 1 or costs.empties(channels):
        return None
    error = removal.errors[taken + size - 1] - (removal.errors[taken - 1] if taken else 0.0)
    saved = costs.saved(channels)
    return (error / saved, index, channels) if saved > 0 else None


def _describe(removal: Removal, taken: int, multiple: int) -> Group:
    count = len(removal.order)
    if count <= multiple:
        reason = f"it has no more than {multiple} channels, the least width of the kernels"
    elif taken:
        reason = f"its error per saved cost is among the least; widths are multiples of {multiple}"
    else:
        reason = "other groups have less error per saved cost"
    return Group(removal.group.name, count, count - taken, removal.errors[taken - 1] if taken else 0.0, reason)
