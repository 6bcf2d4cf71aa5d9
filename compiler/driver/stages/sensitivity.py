"""Which layers of a quantized candidate err most: each is quantized alone, and the model's outputs are compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from compiler.compress.quant import measure_sensitivity
from compiler.driver.stages.calibrate import Batches
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.files import load_stage
from compiler.driver.stages.quantize import Variant, float_entry, quantizer_inputs, read_plan, scheme_and_data
from compiler.errors import InternalError
from compiler.store import Entry, StageName, read_result, write_result
from compiler.target.capability import PrecisionRule

BATCHES = 4
"""Batches on which each layer's error is measured: the ranking is what counts, and it settles early."""

MOST_DB = 300.0
"""What stands for an infinite ratio, which JSON has no number for: further than float64 can tell apart."""

_LAYERS = "layers.json"


@dataclass(frozen=True)
class LayerRank:
    """One layer, and how much the model's outputs err when it alone is quantized."""

    node: str
    sqnr_db: float


def rank_layers(
    context: BuildContext, rule: PrecisionRule, variant: Variant, entries: Iterable[Entry]
) -> tuple[LayerRank, ...]:
    """The quantized layers, the worst first.

    Args:
        context: The device.
        rule: The candidate's precision.
        variant: How it was quantized.
        entries: The stages of its border model.
    """
    scheme, needed = scheme_and_data(context, rule, variant)
    data = needed or (context.data.judge.dataset if context.data.judge else None)
    stages = list(entries)
    rewritten, quantized = float_entry(stages), read_plan(stages)
    if quantized is None or data is None:
        raise InternalError("a candidate with a scheme has no quantized border model, or no data to rank its layers on")
    plan, _ = quantized

    def make(folder: Path) -> None:
        errors = measure_sensitivity(load_stage(rewritten), plan, Batches(data, BATCHES))
        rows = [{"node": layer.node, "sqnr_db": min(layer.sqnr_db, MOST_DB)} for layer in errors]
        write_result(folder, _LAYERS, rows)

    inputs = quantizer_inputs(rewritten, scheme, data, variant)
    entry = context.stages.run(StageName.SENSITIVITY, make, **inputs, batches=BATCHES)
    ranks = (LayerRank(str(row["node"]), float(row["sqnr_db"])) for row in read_result(entry, _LAYERS))
    return tuple(sorted(ranks, key=lambda rank: (rank.sqnr_db, rank.node)))
