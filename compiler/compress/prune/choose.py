"""How much of every group goes: the least error for what the device saves first, in steps its kernels like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from compiler.compress.prune.costs import Costs
from compiler.compress.prune.groups import Ties
from compiler.compress.prune.importance import Removal


@dataclass(frozen=True)
class GroupChoice:
    """What becomes of one group.

    Args:
        name: The group's name.
        channels: Channels it has.
        kept: Channels it keeps.
        error: Expected squared error of the model's outputs, as a share of their energy.
        reason: Why so many.
    """

    name: str
    channels: int
    kept: int
    error: float
    reason: str


@dataclass(frozen=True)
class PrunePlan:
    """What is cut.

    Args:
        removed: Class numbers of the channels that go.
        groups: What becomes of every group.
        macs_before: Multiply-accumulates of the model as it was.
        macs_after: Of the model without these channels.
    """

    removed: tuple[int, ...]
    groups: tuple[GroupChoice, ...]
    macs_before: int
    macs_after: int

    @property
    def ratio(self) -> float:
        """Share of the multiply-accumulates that is gone, 0 to 1."""
        return 1 - self.macs_after / max(1, self.macs_before)

    def to_dict(self) -> dict[str, Any]:
        """The plan as a JSON-ready value."""
        return {**asdict(self), "ratio": self.ratio}


def choose_channels(
    model: ir.Model,
    ties: Ties,
    removals: Sequence[Removal],
    *,
    ratio: float,
    multiple: int,
    prices: Mapping[str, float] | None = None,
) -> PrunePlan:
    """Takes steps of `multiple` channels, always where the error is least for what the device saves.

    Args:
        model: The model the ties were found in.
        ties: Its ties.
        removals: The order in which each group's channels go.
        ratio: Share of the multiply-accumulates to save, 0 to 1; less is saved where nothing is left to cut.
        multiple: Widths that are left are multiples of this, where a group is at least that wide.
        prices: Layer → what a multiply-accumulate of it costs the device; 1 where it is not named.
    """
    costs = Costs(model, ties, prices or {})
    whole = costs.macs
    taken = [0] * len(removals)
    removed: list[int] = []
    while costs.macs > whole * (1 - ratio):
        steps = [_step(index, removal, taken[index], multiple, costs) for index, removal in enumerate(removals)]
        possible = [step for step in steps if step is not None]
        if not possible:
            break
        _, index, channels = min(possible)
        taken[index] += len(channels)
        removed.extend(channels)
        costs.take(channels)
    groups = tuple(_told(removal, taken[index], multiple) for index, removal in enumerate(removals))
    return PrunePlan(tuple(sorted(removed)), groups, round(whole), round(costs.macs))


def _step(
    index: int, removal: Removal, taken: int, multiple: int, costs: Costs
) -> tuple[float, int, tuple[int, ...]] | None:
    """Error per saved cost of the group's next step, the group, and the channels it takes; None if there is none."""
    left = len(removal.order) - taken
    size = left % multiple or multiple
    channels = removal.order[taken : taken + size]
    if left - size < 1 or costs.empties(channels):
        return None
    error = removal.errors[taken + size - 1] - (removal.errors[taken - 1] if taken else 0.0)
    saved = costs.saved(channels)
    return (error / saved, index, channels) if saved > 0 else None


def _told(removal: Removal, taken: int, multiple: int) -> GroupChoice:
    count = len(removal.order)
    if count <= multiple:
        reason = f"it has no more than {multiple} channels, the width its kernels work in"
    elif taken:
        reason = f"its least valuable channels cost least for what they save; widths are multiples of {multiple}"
    else:
        reason = "others cost less for what they save"
    return GroupChoice(removal.group.name, count, count - taken, removal.errors[taken - 1] if taken else 0.0, reason)
