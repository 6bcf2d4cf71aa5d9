"""The pruned form of a rewritten model, in two stages of the store: what channels are worth, and the cut and repair.

importance   in which order every group's channels go; the same for every ratio and every device class
prune        the channels of one ratio cut in widths that suit one device, and the layers behind them solved anew
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.artifact.manifest import BORDER
from compiler.compress.prune import SHORTFALL, Unprunable, find_order, prune
from compiler.driver.roofline import describe_machine, layer_seconds
from compiler.driver.stages.border import EMBED_BYTES, RECORDS
from compiler.driver.stages.context import BuildContext
from compiler.driver.work import list_work
from compiler.errors import InternalError
from compiler.evaluate import Dataset
from compiler.model.numerics import Arrays
from compiler.model.save import save_model
from compiler.plan import Plan
from compiler.store import Entry, Stage, canonical_json
from compiler.store.digests import code_digest, portable_tools

BATCH = 8
"""Samples that go by at a time, where the model leaves that open."""

_ORDER, _PRUNED, _REMOVED = "order.json", "pruned.json", "removed.json"


def pruned_entry(context: BuildContext, plan: Plan, rewritten: Entry) -> Entry:
    """The rewritten model without as much of its work as the plan says, with what was done beside it.

    Raises:
        Unprunable: Nothing of it can be cut, or less than a ratio that was asked for.
    """
    data = calibration_of(context)
    order = _order_entry(context, data, rewritten)
    prices = _prices(context, plan, rewritten)
    parts = (
        ("importance", order.digest),
        ("ratio", f"{plan.pruning.ratio:g}"),
        ("multiple", str(plan.rule.width_multiple)),
        ("prices", canonical_json(prices)),
        ("compiler", code_digest("compiler.driver.stages.prune")),
    )

    def make(folder: Path) -> None:
        found = prune(
            ir.load(rewritten.files / BORDER),
            json.loads((order.files / _ORDER).read_text(encoding="utf-8")),
            batches_of(data),
            ratio=plan.pruning.ratio,
            multiple=plan.rule.width_multiple,
            prices=prices,
        )
        save_model(found.model, folder / BORDER, external_above_bytes=EMBED_BYTES)
        (folder / RECORDS).write_text("[]", encoding="utf-8")
        (folder / _PRUNED).write_text(json.dumps(found.to_dict()), encoding="utf-8")
        (folder / _REMOVED).write_text(json.dumps([int(one) for one in found.plan.removed]), encoding="utf-8")

    entry = context.store.obtain(Stage("prune", parts), make)
    _refuse_shortfall(context, plan, entry)
    return entry


def read_pruned(entry: Entry) -> dict[str, Any]:
    """What was pruned and repaired, of an entry of `prune`."""
    value: dict[str, Any] = json.loads((entry.files / _PRUNED).read_text(encoding="utf-8"))
    return value


def read_removed(entry: Entry) -> tuple[int, ...]:
    """The classes of channels that went, of an entry of `prune`."""
    return tuple(json.loads((entry.files / _REMOVED).read_text(encoding="utf-8")))


def batches_of(data: Dataset) -> Callable[[], Iterable[Arrays]]:
    """The data from the start, as often as it is called; in two batches at least, since one half judges the other."""
    fixed = next((spec.shape[0] for spec in data.inputs if spec.shape and isinstance(spec.shape[0], int)), None)
    size = fixed or max(1, min(BATCH, data.count // 2))
    return lambda: data.batches(size)


def calibration_of(context: BuildContext) -> Dataset:
    """The data that pruning and recovery work on; a plan without them prunes nothing."""
    if context.data.calibration is None:
        raise InternalError("a plan prunes, and there are no calibration data")
    return context.data.calibration


def _order_entry(context: BuildContext, data: Dataset, rewritten: Entry) -> Entry:
    parts = (
        ("rewrite", rewritten.digest),
        ("data", f"{data.digest} {data.count}"),
        ("compiler", code_digest("compiler.compress.prune")),
        *portable_tools(),
    )

    def make(folder: Path) -> None:
        found = find_order(ir.load(rewritten.files / BORDER), batches_of(data))
        (folder / _ORDER).write_text(json.dumps(found), encoding="utf-8")

    return context.store.obtain(Stage("importance", parts), make)


def _prices(context: BuildContext, plan: Plan, rewritten: Entry) -> Mapping[str, float]:
    """Layer → what one of its multiply-accumulates costs this device against the cheapest, by the roofline; rounded,
    so that devices of one kind share what is pruned. Nothing where the profile says too little."""
    machine = describe_machine(context.job.profile)
    if machine is None:
        return {}
    works = [
        one for one in list_work(ir.load(rewritten.files / BORDER), batch=context.job.device.batch.opt) if one.macs
    ]
    seconds = {one.node: layer_seconds(one, machine, plan.precision) / one.macs for one in works}
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
