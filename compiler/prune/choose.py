"""How much of every group goes: the cheapest error per multiply-accumulate first, in steps the kernels like."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from compiler.passes.macs import node_macs
from compiler.passes.values import display_name
from compiler.prune.cut import why_not
from compiler.prune.groups import Ties, positions
from compiler.prune.importance import Removal
from compiler.prune.walk import Cut


@dataclass(frozen=True)
class GroupChoice:
    """What becomes of one group.

    Args:
        name: The group's name.
        channels: Channels it has.
        kept: Channels it keeps.
        error: Expected squared error of its readers' outputs, as a share of their energy.
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
    model: ir.Model, ties: Ties, removals: Sequence[Removal], *, ratio: float, multiple: int
) -> PrunePlan:
    """Takes steps of `multiple` channels, always where the error per saved multiply-accumulate is least.

    Args:
        model: The model the ties were found in.
        ties: Its ties.
        removals: The order in which each group's channels go.
        ratio: Share of the multiply-accumulates to save, 0 to 1; less is saved where nothing is left to cut.
        multiple: Widths that are left are multiples of this, where a group is at least that wide.
    """
    costs = Costs(model, ties)
    whole = costs.macs(())
    taken = dict.fromkeys(range(len(removals)), 0)
    removed: set[int] = set()
    while costs.macs(removed) > whole * (1 - ratio):
        steps = [_step(index, removals[index], taken[index], multiple, removed, costs) for index in taken]
        possible = [step for step in steps if step is not None and not why_not(ties, removed | {*step[2]})]
        if not possible:
            break
        _, index, channels = min(possible)
        taken[index] += len(channels)
        removed |= {*channels}
    groups = tuple(_told(removal, taken[index], multiple) for index, removal in enumerate(removals))
    return PrunePlan(tuple(sorted(removed)), groups, whole, costs.macs(removed))


def _step(
    index: int, removal: Removal, taken: int, multiple: int, removed: Collection[int], costs: Costs
) -> tuple[float, int, tuple[int, ...]] | None:
    """Error per saved multiply-accumulate of the group's next step, and the channels it takes."""
    left = len(removal.order) - taken
    size = left % multiple or multiple
    if left - size < 1:
        return None
    channels = removal.order[taken : taken + size]
    error = removal.errors[taken + size - 1] - (removal.errors[taken - 1] if taken else 0.0)
    saved = costs.macs(removed) - costs.macs({*removed, *channels})
    return (error / saved, index, channels) if saved > 0 else None


def _told(removal: Removal, taken: int, multiple: int) -> GroupChoice:
    count = len(removal.order)
    if count <= multiple:
        reason = f"it has no more than {multiple} channels, the width its kernels work in"
    elif taken:
        reason = (
            f"its least valuable channels cost least per multiply-accumulate saved; widths are multiples of {multiple}"
        )
    else:
        reason = "others cost less per multiply-accumulate saved"
    return GroupChoice(removal.group.name, count, count - taken, removal.errors[taken - 1] if taken else 0.0, reason)


class Costs:
    """Multiply-accumulates of a model without some of its channels, found without cutting them."""

    def __init__(self, model: ir.Model, ties: Ties) -> None:
        cuts: dict[str, list[Cut]] = {}
        for cut in ties.cuts:
            if cut.role != "follows" or cut.axis == 0:
                cuts.setdefault(cut.node, []).append(cut)
        self._nodes = [
            (macs, [cut.ids for cut in cuts.get(display_name(node), []) if cut.initializer == str(node.inputs[1].name)])
            for node in model.graph
            if len(node.inputs) > 1 and node.inputs[1] is not None and (macs := node_macs(node))
        ]

    def macs(self, removed: Collection[int]) -> int:
        """The count without these channels."""
        total = 0.0
        for macs, axes in self._nodes:
            share = 1.0
            for ids in axes:
                share *= float(positions(ids, removed).mean()) if removed else 1.0
            total += macs * share
        return round(total)
