"""The border model of a candidate whose weights alone are in few bits, each in a format of its own.

What each format costs is measured once for all limits on memory; then formats are chosen and weights are fitted. Both
go on where they were after a kill, segment by segment.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compiler.artifact.adapter import parse, to_json
from compiler.compress.quant import LayerQuant, QuantPlan
from compiler.compress.weight_only import (
    Budget,
    WeightChoice,
    WeightOptions,
    WeightPlan,
    choose_weights,
    fit_weights,
    measure_weights,
    round_activations,
    round_cache,
)
from compiler.driver.stages.calibrate import Batches
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.files import load_stage, save_stage
from compiler.driver.stages.quantize import PLAN
from compiler.errors import DataError, GateFailed, InternalError
from compiler.evaluate import Dataset
from compiler.model.decoder import find_decoder
from compiler.plan import Plan
from compiler.store import Entry, Stage, StageName, read_result, stage_key, write_result
from compiler.target.scheme import QuantScheme, WeightChoices

_COSTS, _READS, _FORMATS, _TOTALS = "weights.json", "reads", "formats.json", "totals.json"


def weights_entry(context: BuildContext, plan: Plan, time: float | None, rewritten: Entry) -> Entry:
    """The rewritten model with its weights in few bits, and why each is in its format beside it.

    Args:
        context: The device.
        plan: Its plan, the precision settled.
        time: Most time of all products, against that of all weights in the fastest format; None: nothing limits it.
        rewritten: The model.

    Raises:
        GateFailed: The smallest formats do not fit into the bytes that the limit on memory leaves.
        UnsupportedModel: The model is no decoder, or has no weights to put in few bits.
        DataError: There are no calibration data.
    """
    scheme, choices, data = _needs(context, plan)
    options, most = WeightOptions(), plan.target_plan.payload_bytes
    budget = Budget(most, time, plan.decisions["payload"].reason if most is not None else "")
    costs = _costs_entry(context, rewritten, choices, data, options)

    try:
        chosen = choose_weights(costs.files / _COSTS, budget=budget, times=scheme.times, scheme=scheme.name)
    except GateFailed as error:
        raise GateFailed(error.what, where=context.job.device.place, remedy=error.remedy) from error
    fitted = _fitted_entry(context, rewritten, costs, chosen, data, options)

    def make(files: Path) -> None:
        model = load_stage(fitted)
        if scheme.rounds_activations:
            round_activations(model)
        if scheme.rounds_cache:
            round_cache(model, find_decoder(model))
        save_stage(model, files)
        write_result(files, PLAN, {"plan": quant_plan(chosen).to_dict(), "warnings": []})
        write_result(files, _FORMATS, [to_json(choice) for choice in chosen.choices])
        write_result(files, _TOTALS, {"time": chosen.time, "least_bytes": chosen.least_bytes})

    inputs: dict[str, object] = {"model": fitted.digest, "plan": to_json(chosen)}
    inputs |= {"rounds activations": scheme.rounds_activations, "rounds cache": scheme.rounds_cache}
    return context.stages.obtain(stage_key(StageName.QUANTIZE, make, inputs), make)


def _fitted_entry(
    context: BuildContext, rewritten: Entry, costs: Entry, chosen: WeightPlan, data: Dataset, options: WeightOptions
) -> Entry:
    """The model with its weights in their formats, for all schemes and limits that come to the same."""
    inputs: dict[str, object] = {"model": rewritten.digest, "data": [data.digest, data.count]}
    inputs |= {"options": asdict(options), "formats": {name: asdict(own) for name, own in chosen.formats.items()}}

    def make(files: Path) -> None:
        model = fit_weights(
            load_stage(rewritten),
            Batches(data),
            chosen.formats,
            options,
            folder=folder,
            reads=costs.files / _READS,
            tell=context.clock.note,
        )
        save_stage(model, files)

    stage = stage_key(StageName.QUANTIZE, make, inputs)
    folder = context.store.workspace(stage)
    return _obtained(context, stage, make)


def _costs_entry(
    context: BuildContext, rewritten: Entry, choices: WeightChoices, data: Dataset, options: WeightOptions
) -> Entry:
    """What each format of each weight costs in divergence."""
    inputs: dict[str, object] = {"model": rewritten.digest, "data": [data.digest, data.count]}
    inputs |= {"options": asdict(options), "choices": asdict(choices)}

    def make(files: Path) -> None:
        model = load_stage(rewritten)
        measure_weights(
            model,
            Batches(data),
            choices,
            options,
            logits=find_decoder(model).logits,
            folder=folder,
            result=files / _COSTS,
            reads=files / _READS,
            tell=context.clock.note,
        )

    stage = stage_key(StageName.SENSITIVITY, make, inputs)
    folder = context.store.workspace(stage)
    return _obtained(context, stage, make)


def _obtained(context: BuildContext, stage: Stage, make: Callable[[Path], None]) -> Entry:
    """The stage's result; what it kept to go on from is removed."""
    entry = context.stages.obtain(stage, make)
    shutil.rmtree(context.store.workspace(stage), ignore_errors=True)
    return entry


def _needs(context: BuildContext, plan: Plan) -> tuple[QuantScheme, WeightChoices, Dataset]:
    """The scheme, its formats, and the calibration data."""
    scheme, data = plan.rule.scheme, context.data.calibration
    if scheme is None or scheme.weights is None:
        raise InternalError(f"{plan.precision} has no formats of weights")
    if data is None:
        raise DataError("weights are fitted on calibration data, and the fleet file names none", where=context.name)
    return scheme, scheme.weights, data


def read_weights(entries: Iterable[Entry]) -> tuple[WeightChoice, ...]:
    """The format of each weight, of a border model's entries; none where they are not chosen one by one."""
    for entry in entries:
        if entry.stage == StageName.QUANTIZE and (entry.files / _FORMATS).exists():
            return tuple(parse(WeightChoice, row) for row in read_result(entry, _FORMATS))
    return ()


def read_time(entries: Iterable[Entry]) -> float:
    """The time of all products, against that of all weights in the fastest format; 0 where nothing is known of it."""
    return float(_read_totals(entries).get("time", 0.0))


def read_least_bytes(entries: Iterable[Entry]) -> int:
    """What all weights of a border model take in their smallest formats; 0 where they are not chosen one by one."""
    return int(_read_totals(entries).get("least_bytes", 0))


def _read_totals(entries: Iterable[Entry]) -> dict[str, Any]:
    for entry in entries:
        if entry.stage == StageName.QUANTIZE and (entry.files / _TOTALS).exists():
            totals: dict[str, Any] = read_result(entry, _TOTALS)
            return totals
    return {}


def quant_plan(plan: WeightPlan) -> QuantPlan:
    """The choices in the form that every quantized candidate has: a line for each layer, with its reason."""
    layers = tuple(
        LayerQuant(
            node=choice.node,
            op=choice.op,
            precision=f"int{choice.format.bits}-weights",
            reason=f"{choice.format}, {choice.bytes} bytes, divergence {choice.kl:.2g} nats a token; {choice.reason}",
        )
        for choice in plan.choices
    )
    limit = f" of {plan.budget_bytes} that it may take" if plan.budget_bytes is not None else ""
    note = f"weights take {plan.bytes} bytes{limit}; expected divergence {plan.kl:.3g} nats a token"
    return QuantPlan(plan.scheme, layers, {}, {}, {}, opset=21, notes=(note,))
