"""The channels of one ratio cut out of a rewritten model, in widths that suit one device, and the layers behind them
solved anew. `importance` says in which order they go.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.compress.prune import SHORTFALL, Unprunable, prune
from compiler.driver.roofline import describe_machine, layer_seconds
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.files import load_stage, save_stage
from compiler.driver.stages.importance import batches_of, calibration_of, order_entry, read_order
from compiler.driver.work import list_work
from compiler.plan import Plan
from compiler.store import Entry, StageName, read_result, write_result

_PRUNED, _REMOVED = "pruned.json", "removed.json"


def pruned_entry(context: BuildContext, plan: Plan, rewritten: Entry) -> Entry:
    """The rewritten model without as much of its work as the plan says, with what was done beside it.

    Raises:
        Unprunable: Nothing of it can be cut, or less than a ratio that was asked for.
    """
    data = calibration_of(context)
    order = order_entry(context, rewritten)
    prices = _prices(context, plan, rewritten)

    def make(folder: Path) -> None:
        pruned = prune(
            load_stage(rewritten),
            read_order(order),
            batches_of(data),
            ratio=plan.pruning.ratio,
            multiple=plan.rule.width_multiple,
            prices=prices,
        )
        save_stage(pruned.model, folder)
        write_result(folder, _PRUNED, pruned.to_dict())
        write_result(folder, _REMOVED, [int(atom) for atom in pruned.plan.removed])

    entry = context.stages.run(
        StageName.PRUNE,
        make,
        importance=order.digest,
        ratio=f"{plan.pruning.ratio:g}",
        multiple=plan.rule.width_multiple,
        prices=dict(prices),
    )
    _refuse_shortfall(context, plan, entry)
    return entry


def read_pruned(entry: Entry) -> dict[str, Any]:
    """What was pruned and repaired, of an entry of `prune`."""
    value: dict[str, Any] = read_result(entry, _PRUNED)
    return value


def read_removed(entry: Entry) -> tuple[int, ...]:
    """The classes of channels that went, of an entry of `prune`."""
    return tuple(read_result(entry, _REMOVED))


def _prices(context: BuildContext, plan: Plan, rewritten: Entry) -> Mapping[str, float]:
    """Layer → what one of its multiply-accumulates costs this device against the cheapest, by the roofline; rounded,
    so that devices of one kind share what is pruned. Nothing where the profile says too little."""
    machine = describe_machine(context.job.profile)
    if machine is None:
        return {}
    layers = list_work(load_stage(rewritten), batch=context.job.device.batch.opt)
    seconds = {layer.node: layer_seconds(layer, machine, plan.precision) / layer.macs for layer in layers if layer.macs}
    least = min(seconds.values(), default=1.0)
    return {node: float(f"{cost / least:.2g}") for node, cost in seconds.items()}


def _refuse_shortfall(context: BuildContext, plan: Plan, entry: Entry) -> None:
    """A ratio that was asked for is kept or refused; a search takes what there is, if there is anything."""
    reached = float(read_pruned(entry)["ratio"])
    if not reached:
        raise Unprunable(
            f"no group of channels is wider than the {plan.rule.width_multiple} that the kernels of {plan.precision} "
            "take at once on this device: nothing narrower would be faster",
            where=context.name,
        )
    if not plan.pruning.is_searched and reached < plan.pruning.ratio - SHORTFALL:
        raise Unprunable(
            f"{plan.pruning.ratio:.0%} of the multiply-accumulates were asked for and {reached:.0%} can be cut: the "
            f"others are in layers that cannot be narrower, in multiples of {plan.rule.width_multiple} channels",
            where=context.name,
            remedy=f"Ask for at most {reached:.2f}, or `prune: auto`.",
        )
