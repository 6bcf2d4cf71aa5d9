"""The border model of a quantized candidate.

Nothing in its key names a device: two device classes with equal schemes share calibration and model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compiler.compress.quant import QuantOptions, QuantPlan, plan_from_dict, quantize
from compiler.driver.stages.calibrate import Batches, coverage, observed
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.files import load_stage, save_stage
from compiler.errors import InternalError
from compiler.evaluate import Dataset
from compiler.store import Entry, StageName, read_result, write_result
from compiler.target.capability import PrecisionRule
from compiler.target.scheme import QuantScheme

FLOAT_STAGES = (StageName.REWRITE, StageName.PRUNE, StageName.RECOVER)
"""What leaves a float model that may be quantized."""

PLAN = "quant.json"
"""The quantizer's plan and warnings, in the entry of a quantized model."""


@dataclass(frozen=True)
class Variant:
    """How a quantized candidate is made.

    Args:
        options: The quantizer's.
        kept: Layer → why it stays float.
        time: Most time of all products of weights in formats of their own, against that in the fastest format; None:
            nothing limits it.
    """

    options: QuantOptions = field(default_factory=QuantOptions)
    kept: Mapping[str, str] = field(default_factory=dict)
    time: float | None = None


def quantized_entry(context: BuildContext, rule: PrecisionRule, variant: Variant, rewritten: Entry) -> Entry:
    """The quantized form of a rewritten model, with its `QuantPlan` beside it."""
    scheme, data = scheme_and_data(context, rule, variant)

    def make(folder: Path) -> None:
        batches = Batches(data) if data else None
        calibrated = None
        if data and scheme.needs_calibration:
            calibrated = observed(context.stages, rewritten, scheme, data, variant.options)
        quantized = quantize(
            load_stage(rewritten), batches, scheme, variant.options, keep_float=variant.kept, calibrated=calibrated
        )
        save_stage(quantized.model, folder)
        write_result(folder, PLAN, {"plan": quantized.plan.to_dict(), "warnings": list(quantized.warnings)})

    return context.stages.run(StageName.QUANTIZE, make, **quantizer_inputs(rewritten, scheme, data, variant))


def read_plan(entries: Iterable[Entry]) -> tuple[QuantPlan, tuple[str, ...]] | None:
    """The quantizer's plan and warnings, of a border model's entries; None where it is not quantized."""
    for entry in entries:
        if entry.stage == StageName.QUANTIZE:
            value = read_result(entry, PLAN)
            return plan_from_dict(value["plan"]), tuple(value["warnings"])
    return None


def quantizer_warnings(context: BuildContext, rule: PrecisionRule, entries: Iterable[Entry]) -> tuple[str, ...]:
    """What is poor about the data that a candidate was quantized with; empty where it is not quantized."""
    stages = list(entries)
    quantized = read_plan(stages)
    if quantized is None or rule.scheme is None:
        return ()
    _, warnings = quantized
    data, judge = context.data.calibration, context.data.judge
    if data is None or judge is None or not rule.scheme.needs_calibration or rule.scheme.weights:
        return warnings
    rewritten = float_entry(stages)
    return (*warnings, *coverage(context.stages, rewritten, rule.scheme, data, judge.dataset))


def options_to_dict(options: QuantOptions) -> dict[str, Any]:
    """The quantizer's options as the manifest keeps them."""
    return asdict(options)


def float_entry(entries: Sequence[Entry]) -> Entry:
    """What was quantized: the rewritten model, what pruning left of it, or that recovered."""
    return next(entry for entry in reversed(entries) if entry.stage in FLOAT_STAGES)


def scheme_and_data(context: BuildContext, rule: PrecisionRule, variant: Variant) -> tuple[QuantScheme, Dataset | None]:
    """The scheme, and the calibration data: where ranges are needed, or where there are some to fit layers on."""
    if rule.scheme is None:
        raise InternalError(f"{rule.name} has no scheme")
    used = rule.scheme.needs_calibration or variant.options.compensate or variant.options.correct
    return rule.scheme, context.data.calibration if used else None


def quantizer_inputs(
    rewritten: Entry, scheme: QuantScheme, data: Dataset | None, variant: Variant
) -> dict[str, object]:
    """All that the quantizer's results depend on, as parts of a key."""
    return {
        "model": rewritten.digest,
        "scheme": asdict(scheme),
        "data": [data.digest, data.count] if data else None,
        "options": asdict(variant.options),
        "kept": dict(variant.kept),
    }
