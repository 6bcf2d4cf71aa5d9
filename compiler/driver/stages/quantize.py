"""The border model of a quantized candidate, and which of its layers err most; both kept in the store.

Nothing in their keys names a device: two device classes with equal schemes share calibration, model and ranking.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.artifact.manifest import BORDER
from compiler.compress.quant import QuantOptions, QuantPlan, measure_sensitivity, plan_from_dict, quantize
from compiler.driver.stages.border import EMBED_BYTES, RECORDS
from compiler.driver.stages.calibrate import Batches, coverage, observed
from compiler.driver.stages.context import BuildContext
from compiler.errors import InternalError
from compiler.evaluate import Dataset
from compiler.model.save import save_model
from compiler.store import Entry, Stage, canonical_json
from compiler.store.digests import code_digest, portable_tools
from compiler.target.capability import PrecisionRule
from compiler.target.scheme import QuantScheme

SENSITIVITY_BATCHES = 4
"""Batches on which each layer's error is measured: the ranking is what counts, and it settles early."""

_PLAN = "quant.json"


@dataclass(frozen=True)
class Variant:
    """How a quantized candidate is made.

    Args:
        options: The quantizer's.
        kept: Layer → why it stays float.
    """

    options: QuantOptions = field(default_factory=QuantOptions)
    kept: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerRank:
    """One layer, and how much the model's outputs err when it alone is quantized."""

    node: str
    sqnr_db: float


def quantized_entry(context: BuildContext, rule: PrecisionRule, variant: Variant, rewritten: Entry) -> Entry:
    """The quantized form of a rewritten model, with its `QuantPlan` beside it."""
    scheme, data = _needs(context, rule, variant)
    parts = _parts(rewritten, scheme, data, variant)

    def make(folder: Path) -> None:
        model = ir.load(rewritten.files / BORDER)
        batches = Batches(data) if data else None
        seen = None
        if data and scheme.needs_calibration:
            seen = observed(context.store, rewritten, scheme, data, variant.options)
        found = quantize(model, batches, scheme, variant.options, keep_float=variant.kept, calibrated=seen)
        save_model(found.model, folder / BORDER, external_above_bytes=EMBED_BYTES)
        (folder / RECORDS).write_text("[]", encoding="utf-8")
        value = {"plan": found.plan.to_dict(), "warnings": list(found.warnings)}
        (folder / _PLAN).write_text(json.dumps(value), encoding="utf-8")

    return context.store.obtain(Stage("quantize", parts), make)


def read_plan(entries: Iterable[Entry]) -> tuple[QuantPlan, tuple[str, ...]] | None:
    """The quantizer's plan and warnings, of a border model's entries; None where it is not quantized."""
    for entry in entries:
        if entry.stage == "quantize":
            value = json.loads((entry.files / _PLAN).read_text(encoding="utf-8"))
            return plan_from_dict(value["plan"]), tuple(value["warnings"])
    return None


def quantizer_warnings(context: BuildContext, rule: PrecisionRule, entries: Iterable[Entry]) -> tuple[str, ...]:
    """What is poor about the data that a candidate was quantized with; empty where it is not quantized."""
    kept = list(entries)
    found = read_plan(kept)
    if found is None or rule.scheme is None:
        return ()
    rewritten = float_entry(kept)
    data, judge = context.data.calibration, context.data.judge
    if data is None or judge is None or not rule.scheme.needs_calibration:
        return found[1]
    return (*found[1], *coverage(context.store, rewritten, rule.scheme, data, judge.dataset))


def rank_layers(
    context: BuildContext, rule: PrecisionRule, variant: Variant, entries: Iterable[Entry]
) -> tuple[LayerRank, ...]:
    """The quantized layers, the worst first."""
    scheme, needed = _needs(context, rule, variant)
    data = needed or (context.data.judge.dataset if context.data.judge else None)
    kept = list(entries)
    rewritten = float_entry(kept)
    found = read_plan(kept)
    if found is None or data is None:
        raise InternalError("a candidate with a scheme has no quantized border model, or no data to rank its layers on")

    def make(folder: Path) -> None:
        model = ir.load(rewritten.files / BORDER)
        errors = measure_sensitivity(model, found[0], Batches(data, SENSITIVITY_BATCHES))
        rows = [{"node": one.node, "sqnr_db": min(one.sqnr_db, 300.0)} for one in errors]
        (folder / "layers.json").write_text(json.dumps(rows), encoding="utf-8")

    parts = (*_parts(rewritten, scheme, data, variant), ("batches", str(SENSITIVITY_BATCHES)))
    entry = context.store.obtain(Stage("sensitivity", parts), make)
    rows = json.loads((entry.files / "layers.json").read_text(encoding="utf-8"))
    ranked = (LayerRank(str(row["node"]), float(row["sqnr_db"])) for row in rows)
    return tuple(sorted(ranked, key=lambda one: (one.sqnr_db, one.node)))


def options_to_dict(options: QuantOptions) -> dict[str, Any]:
    """The quantizer's options as the manifest keeps them."""
    return asdict(options)


def float_entry(entries: Sequence[Entry]) -> Entry:
    """What was quantized: the rewritten model, what pruning left of it, or that recovered."""
    return next(entry for entry in reversed(entries) if entry.stage in ("rewrite", "prune", "recover"))


def _needs(context: BuildContext, rule: PrecisionRule, variant: Variant) -> tuple[QuantScheme, Dataset | None]:
    """The scheme, and the calibration data: where ranges are needed, or where there are some to fit layers on."""
    if rule.scheme is None:
        raise InternalError(f"{rule.name} has no scheme")
    used = rule.scheme.needs_calibration or variant.options.compensate or variant.options.correct
    return rule.scheme, context.data.calibration if used else None


def _parts(
    rewritten: Entry, scheme: QuantScheme, data: Dataset | None, variant: Variant
) -> tuple[tuple[str, str], ...]:
    return (
        ("rewrite", rewritten.digest),
        ("scheme", canonical_json(asdict(scheme))),
        ("data", f"{data.digest} {data.count}" if data else "none"),
        ("options", canonical_json(asdict(variant.options))),
        ("kept", canonical_json(dict(variant.kept))),
        ("compiler", code_digest("compiler.compress.quant")),
        *portable_tools(),
    )
