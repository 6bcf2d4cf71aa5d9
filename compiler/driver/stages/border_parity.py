"""Parity of the border model: ONNX Runtime runs it here for every device, whether the artifact can be executed or not.

It is judged on the same samples as the artifact, against the imported model. Where the border model changes results on
purpose, the level says by how much it may: accuracy is judged by the gates, but noise, zeros and NaN are no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from compiler.artifact import Evidence
from compiler.artifact.schema import Parity, ParityStatus
from compiler.driver.stages.border import Border
from compiler.driver.stages.inputs import BuildStart
from compiler.driver.stages.reference import ParityCase, reference_cases
from compiler.driver.stages.run import Stages
from compiler.driver.stages.verify import Differences, compare_point, failures, leave_own_noise, lines_of
from compiler.errors import GateFailed, UnsupportedModel
from compiler.model.numerics import TOLERANCES, Tolerance, coarser, is_floating
from compiler.passes.probe import tolerance_of
from compiler.passes.quantized import count_quantized_steps, is_quantized
from compiler.plan import Plan, settle_tolerance


def hold_to_model(plan: Plan, model: ir.Model) -> Plan:
    """The plan with the tolerance that the imported model allows: one in float16 has float16's, whatever is built.

    Args:
        plan: The plan, its precision settled.
        model: The imported model.
    """
    asked, own = TOLERANCES[plan.tolerance], tolerance_of(model)
    level = coarser(asked, own)
    if level == asked:
        return plan
    reason = f"the level for {own.name}: the imported model itself computes in it"
    return settle_tolerance(plan, level.name, reason)


def judge_border(
    border: Border, plan: Plan, ready: BuildStart, expected: Sequence[ParityCase], *, where: str, stages: Stages
) -> Parity:
    """Runs the border model by ONNX Runtime on every point and compares it with the imported model.

    Args:
        border: The border model.
        plan: The plan it was made by.
        ready: The imported model and the inputs.
        expected: What the imported model gives for them.
        where: Device, for messages.
        stages: Where it is run.

    Raises:
        GateFailed: An output is outside the level; the message names each, and the pass where the probe shows it.
    """
    level, changed = border_level(plan, ready.model), border.load()
    try:
        actual = reference_cases(changed, border.digest, ready.inputs.points, stages)
    except UnsupportedModel as error:
        return Parity(ParityStatus.NOT_EXECUTED, level.name, Evidence.NONE, error.what)
    if _is_changed(plan, ready.model):
        expected, actual = _floats(expected), _floats(actual)
    differing, reason = _differences(expected, actual, level), ""
    if differing:
        differing, reason = leave_own_noise(differing, ready.model, level)
        is_without = count_quantized_steps(changed) < count_quantized_steps(ready.model)
        level = TOLERANCES["quantized"] if is_without and not differing else level
    if differing:
        raise GateFailed(
            f"the border model differs from the imported model by more than '{level.name}' allows "
            f"(SQNR ≥ {level.sqnr_db_min:g} dB; {Evidence.HOST}):\n{lines_of(differing)}\n{_blame(border, plan)}",
            where=where,
        )
    points = tuple(compare_point(want, got.expected) for want, got in zip(expected, actual, strict=True))
    return Parity(ParityStatus.PASSED, level.name, Evidence.HOST, reason, points)


def _differences(expected: Sequence[ParityCase], actual: Sequence[ParityCase], level: Tolerance) -> Differences:
    pairs = zip(expected, actual, strict=True)
    compared = ((want, failures(want.expected, got.expected, level.name)) for want, got in pairs)
    return [(case, outputs) for case, outputs in compared if outputs]


def border_level(plan: Plan, model: ir.Model) -> Tolerance:
    """The level a plan's border model is judged by against the imported model.

    Args:
        plan: The plan, its precision settled.
        model: The imported model.
    """
    if plan.pruning.ratio:
        return TOLERANCES["pruned"]
    if _is_changed(plan, model):
        return TOLERANCES["quantized"]
    graph = TOLERANCES[plan.rule.tolerance if plan.converts_graph else "fp32"]
    return coarser(graph, tolerance_of(model))


def _is_changed(plan: Plan, model: ir.Model) -> bool:
    """Whether the border model computes something else on purpose; one that came quantized is passed on as it is."""
    return bool(plan.pruning.ratio) or (plan.rule.scheme is not None and not is_quantized(model))


def _floats(cases: Sequence[ParityCase]) -> tuple[ParityCase, ...]:
    """The cases without integers: where results change on purpose, an arg max may fall on another place."""
    return tuple(
        replace(case, expected={name: array for name, array in case.expected.items() if is_floating(array)})
        for case in cases
    )


def _blame(border: Border, plan: Plan) -> str:
    """What to look at: the first pass whose record already shows the difference, or how to find it."""
    floor = TOLERANCES[plan.rule.tolerance if plan.converts_graph else "fp32"].sqnr_db_min
    figures = ((record, record["sqnr_db"]) for record in border.records if not record["left_out"])
    seen = [record for record, sqnr_db in figures if sqnr_db is not None and float(sqnr_db) < floor]
    if plan.changes_results:
        return "It was quantized or pruned so: more or other calibration data, or another precision, may hold it."
    if seen:
        number, name = seen[0]["number"], seen[0]["name"]
        return f"It differs from pass {number} ({name}) on: `--skip-pass {name}` builds without it; report it."
    return "A pass is at fault, not the target: `--stop-after N` builds with the first N passes only, and tells which."
