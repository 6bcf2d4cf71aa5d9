"""What can be expected of a candidate that is not made yet: the order of the trials, and those that are left out.

Where trials are judged by a roofline, that of the rewritten model in the candidate's precision tells beforehand what
the trial would: one that is no faster by it than what passes, and has weights of no fewer bytes, is left out too. Where
they are measured, the target's expected gain and the roofline are taken, the larger of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from compiler.artifact import Evidence
from compiler.artifact.schema import Purpose, Speed
from compiler.driver.measure.speed import least_speedup
from compiler.driver.roofline import describe_machine, model_seconds, weight_bytes
from compiler.driver.search.select import SAME_SPEED, out_of_reach, undisturbed
from compiler.driver.search.trial import Trial, float_original, judged_event
from compiler.driver.stages.candidate import make_candidate_border
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.quantize import Variant
from compiler.driver.work import LayerWork, list_border_casts, list_work
from compiler.plan import settle
from compiler.store import StageName
from compiler.target.capability import PrecisionRule


def order_candidates(
    context: BuildContext, rules: Sequence[PrecisionRule], original: Trial | None
) -> tuple[PrecisionRule, ...]:
    """The candidates, the most promising first; as the plan has them where trials will be measured.

    Args:
        context: The device.
        rules: In the order of the target's expected gain.
        original: The float original's trial, whose evidence those of the candidates will have.
    """
    if original is None or _evidence(original) != Evidence.ESTIMATED:
        return tuple(rules)
    return tuple(sorted(rules, key=lambda rule: -(roofline_speedup(context, rule) or rule.gain)))


def why_left_out(
    context: BuildContext, rule: PrecisionRule, trials: Sequence[Trial], *, most: float = 1.0, slack: float = 0.0
) -> str:
    """Why a candidate need not be made: what passes is faster than can be expected of it; empty where it must be.

    Args:
        context: The device.
        rule: The candidate's precision.
        trials: All so far.
        most: How much faster its target's float32 build may be at most than the float original, which may be another's.
        slack: Share by which a candidate may be faster than is expected of it.
    """
    estimate = roofline_speedup(context, rule)
    is_estimated = any(_evidence(trial) == Evidence.ESTIMATED for trial in trials)
    is_judged_by_it = estimate is not None and is_estimated
    gain = max(rule.gain, estimate or 0.0)
    expected = estimate if is_judged_by_it and estimate is not None else gain * most * (1.0 + slack)
    best = out_of_reach(expected, trials, partial(_least_speedup, context, trials))
    if best is None and is_judged_by_it and (equal := as_good(rule, expected, trials)) is not None:
        return (
            f"not made: {expected:.2f} × float32 at most is expected of it (by the roofline), no more than of "
            f"{equal.label}, which passes and has weights of no more bytes; --search thorough tries it"
        )
    if best is None or best.speed is None:
        return ""
    source = "by the roofline" if is_judged_by_it or gain == estimate else "by the target's expectation"
    if not is_judged_by_it:
        source += f", its float32 build being {most:.2f} × as fast at most" if most != 1.0 else ""
        source += f", {100 * slack:g} % more allowed" if slack else ""
    return (
        f"not made: {expected:.2f} × float32 at most is expected of it ({source}), and {best.label} passes with "
        f"{_speed_words(best.speed)}; --search thorough tries it"
    )


def as_good(rule: PrecisionRule, expected: float, trials: Sequence[Trial]) -> Trial | None:
    """The passing trial in floating point that a candidate is estimated to be no better than; None where there is none.

    Args:
        rule: The candidate's precision.
        expected: The most that is estimated of it, against float32.
        trials: All so far.
    """
    best = out_of_reach(0.0, trials)  # what has the evidence to rule others out
    if best is None or best.speed is None or best.speed.speedup is None:
        return None
    is_of_floats = rule.scheme is None and best.variant is None and not best.pruned
    is_smaller = weight_bytes(rule.name) < weight_bytes(best.precision)
    return best if is_of_floats and not is_smaller and expected <= best.speed.speedup * (1.0 + SAME_SPEED) else None


def _least_speedup(context: BuildContext, trials: Sequence[Trial], trial: Trial) -> float:
    """The least that a trial's speed-up can be; where its race was disturbed, by processor time."""
    if trial.speed is None or not trial.speed.disturbed or trial.made is None:
        return undisturbed(trial)
    original = float_original(trials)
    if original is None or original.made is None:
        return 0.0
    with context.clock.timed(StageName.SPEED):
        return least_speedup(context.through(trial.made.plan), trial.made, original.made, trial.speed)


def _speed_words(speed: Speed) -> str:
    doubt = ", disturbed, but out of its reach by processor time, too" if speed.disturbed else ""
    return f"{speed.speedup:.2f} × ({speed.evidence}{doubt})"


def skip_trial(context: BuildContext, rule: PrecisionRule, *, number: int, why: str) -> Trial:
    """The trial that stands for a candidate that is not made; says so."""
    trial = Trial(number, Purpose.CANDIDATE, rule.name, left_out=why, target=context.job.plan.competes_as)
    context.clock.emit(judged_event(context, trial))
    return trial


def roofline_speedup(context: BuildContext, rule: PrecisionRule) -> float | None:
    """The estimate of a precision against float32, from the rewritten model; None where the profile states too little.

    Operators that the scheme quantizes count in the low precision, as they do when the quantized model is judged.
    """
    machine = describe_machine(context.job.profile)
    if machine is None or context.options.first is not None:
        return None
    plan = settle(context.job.plan, rule, "estimated by the search")
    rewritten = make_candidate_border(context, plan, Variant(), last=StageName.REWRITE).load()
    batch = context.job.device.batch.opt
    works = list_work(rewritten, batch=batch)
    base = model_seconds(works, machine, "fp32")
    own = [*(_in_precision(work, rule) for work in works), *_casts(rewritten, rule, batch)]
    value = model_seconds(own, machine, rule.name)
    return base / value if base and value else None


def _casts(rewritten: ir.Model, rule: PrecisionRule, batch: int) -> tuple[LayerWork, ...]:
    """Where the graph itself is converted, what stands at its inputs and outputs."""
    is_converted = rule.scheme.compute != "fp32" if rule.scheme else rule.converts_graph
    return list_border_casts(rewritten, batch=batch, is_low=rule.scheme is None) if is_converted else ()


def _in_precision(work: LayerWork, rule: PrecisionRule) -> LayerWork:
    if rule.scheme is None:
        return work
    return replace(work, is_low=work.is_low and work.op in rule.scheme.ops)


def _evidence(trial: Trial) -> Evidence:
    return trial.speed.evidence if trial.speed else Evidence.NONE
