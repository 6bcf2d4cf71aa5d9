"""Entry points: `find_order` ranks channels, `prune` removes some and repairs the layers behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from compiler.artifact.adapter import to_json
from compiler.artifact.schema import Pruning, Repaired
from compiler.compress.prune.choose import PrunePlan, choose_channels
from compiler.compress.prune.cut import cut_channels
from compiler.compress.prune.groups import find_ties
from compiler.compress.prune.importance import Measure, Removal, removal_orders
from compiler.compress.prune.moments import Batches
from compiler.compress.prune.prepare import prepare
from compiler.compress.prune.repair import repair
from compiler.compress.prune.views import with_mirrors
from compiler.compress.threads import one_blas_thread
from compiler.errors import UnsupportedModel
from compiler.passes.instrument import measure
from compiler.passes.macs import count_macs
from compiler.passes.quantized import is_quantized

Order = Mapping[str, Any]
"""Result of `find_order`, as a JSON-ready value."""

SHORTFALL = 0.02
"""Largest tolerated miss of a ratio: widths change in steps and never meet it exactly."""


FEW = 64
"""Samples, mirror images included, below which a warning is due: windows of one image are correlated."""


class Unprunable(UnsupportedModel):
    """The model has no channel that can be cut, or is in a form that is not pruned."""


@dataclass(frozen=True)
class Pruned:
    """A pruned model, and what was changed.

    Args:
        model: The model; inputs and outputs as they were.
        plan: The channels that were cut.
        repaired: The layers behind the cuts that were repaired.
        parameters: Elements of its constants, before and after.
        multiple: Widths are multiples of this.
        kept: Layer → why its channels cannot be cut.
        warnings: Warnings for the user.
    """

    model: ir.Model
    plan: PrunePlan
    repaired: tuple[Repaired, ...]
    parameters: tuple[int, int]
    multiple: int
    kept: Mapping[str, str]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All but the model, JSON-ready."""
        before, after = self.parameters
        facts = Pruning(
            ratio=self.plan.ratio,
            multiple=self.multiple,
            macs_before=self.plan.macs_before,
            macs_after=self.plan.macs_after,
            parameters_before=before,
            parameters_after=after,
            groups=self.plan.groups,
            repaired=self.repaired,
            kept=self.kept,
            warnings=self.warnings,
        )
        value: dict[str, Any] = to_json(facts)
        return value


def find_order(model: ir.Model, batches: Batches, *, measure: Measure = "redundancy") -> Order:
    """In which order every group's channels go, with the error each step costs.

    Args:
        model: A border model in float; left as it is.
        batches: Calibration data, at least two batches.
        measure: Measure of importance, see `removal_orders`.

    Raises:
        Unprunable: It is quantized already, has no shapes to count work by, or nothing in it can be cut.
    """
    _refuse(model)
    ready = prepare(model)
    ties = find_ties(ready)
    if not ties.groups:
        reasons = "; ".join(f"'{layer}': {reason}" for layer, reason in list(ties.kept.items())[:5])
        raise Unprunable(f"no channel of the model can be cut{': ' + reasons if reasons else ''}")
    with one_blas_thread():
        # sums in another order give other bytes, and BLAS splits them by its threads
        removals = removal_orders(ready, ties, ties.groups, with_mirrors(batches), measure=measure)
    return {"groups": [{"order": list(removal.order), "errors": list(removal.errors)} for removal in removals]}


def prune(
    model: ir.Model,
    order: Order,
    batches: Batches,
    *,
    ratio: float,
    multiple: int,
    prices: Mapping[str, float] | None = None,
) -> Pruned:
    """Cuts channels until the ratio is reached, and repairs the layers behind the cuts.

    Args:
        model: The model the order was found for; left as it is.
        order: Result of `find_order`.
        batches: Calibration data.
        ratio: Share of the multiply-accumulates to save, between 0 and 1.
        multiple: Remaining widths are multiples of this.
        prices: Layer → cost of one of its multiply-accumulates on the device; 1 where it is not named.
    """
    ready = prepare(model)
    ties = find_ties(ready)
    removals = [
        Removal(group, tuple(entry["order"]), tuple(entry["errors"]))
        for group, entry in zip(ties.groups, order["groups"], strict=True)
    ]
    plan = choose_channels(ready, ties, removals, ratio=ratio, multiple=multiple, prices=prices)
    small = cut_channels(ready, ties, plan.removed)
    with one_blas_thread():
        repaired = repair(ready, small, ties, plan.removed, with_mirrors(batches))
    sizes = measure(ready).parameters, measure(small).parameters
    return Pruned(small, plan, repaired, sizes, multiple, ties.kept, tuple(_warnings(plan, repaired, ratio)))


def _refuse(model: ir.Model) -> None:
    if is_quantized(model):
        raise Unprunable(
            "the model is quantized already", remedy="Prune the float model; fleetc quantizes it afterwards."
        )
    # ratios are shares of this work: without it none can be reached
    if not count_macs(model):
        raise Unprunable(
            "the model has no layer whose work can be counted: a shape is not known, or nothing multiplies"
        )


def _warnings(plan: PrunePlan, repaired: Sequence[Repaired], ratio: float) -> list[str]:
    warnings = []
    if plan.ratio < ratio - SHORTFALL:
        warnings.append(f"{plan.ratio:.0%} of the multiply-accumulates could be saved, {ratio:.0%} were asked for")
    thin = [result.layer for result in repaired if result.is_thin]
    few = [result.samples for result in repaired if result.samples < FEW]
    if thin or few:
        layers = f" for the least squares of {len(thin)} layers ({', '.join(thin[:3])})" if thin else ""
        seen = f"{repaired[0].samples} with mirror images"
        warnings.append(
            f"too few calibration samples ({seen}){layers}: weights stay near the old ones; give a hundred or more"
        )
    return warnings
