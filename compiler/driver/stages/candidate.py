"""One candidate made: border model, artifact, and its parity with what it was made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from compiler.artifact import Evidence
from compiler.artifact.manifest import BORDER
from compiler.artifact.schema import Parity, ParityStatus, Reference
from compiler.driver.stages.bisect import explain_divergence
from compiler.driver.stages.border import Border, given_border, make_border
from compiler.driver.stages.border_parity import hold_to_model, judge_border
from compiler.driver.stages.compile import Built, build_artifact
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.emulation import LeftOut, choose_points, fewer_tokens, total_s, up_to
from compiler.driver.stages.execute import emulated_run
from compiler.driver.stages.inputs import sizes_label
from compiler.driver.stages.kernels import (
    Kernels,
    bound_payload,
    choose_schedule,
    list_kernels,
    lower_payload,
    tuning_log,
)
from compiler.driver.stages.products import verify_products
from compiler.driver.stages.proof import weak_proofs
from compiler.driver.stages.quantize import Variant, quantized_entry
from compiler.driver.stages.recover import pruned_search_entries
from compiler.driver.stages.reference import ParityCase, reference_cases
from compiler.driver.stages.rewrite import rewritten_entry
from compiler.driver.stages.verify import Verification, not_executed, verify_artifact
from compiler.driver.stages.weights import weights_entry
from compiler.errors import GateFailed, TargetUnavailable, ToolchainFailed, UnsupportedModel
from compiler.fleet.detect import host_isa
from compiler.fleet.profile import Cpu
from compiler.model.decoder import find_decoder
from compiler.model.numerics import TOLERANCES
from compiler.plan import Plan
from compiler.store import BORDER_STAGES, Entry, StageName
from compiler.target.capability import refuse_unsupported
from compiler.tune import Curve, Scheduled, TuningLog

UNDELIVERED = "it is not delivered, and others are compared with it at smaller sizes"


@dataclass(frozen=True)
class UnverifiedCandidate:
    """A candidate, built.

    Args:
        plan: The plan it was made by, its precision settled.
        border: What the target was given.
        built: The artifact.
        points: Inputs and expected outputs to compare it on.
        border_parity: Parity of the border model with the imported one, in ONNX Runtime.
        weak_proofs: Why some of that parity says little.
        kernels: What each of its kernels is built with, and by which record; none where the target cannot be tuned.
        curves: The trials behind those records.
        left_out: Sizes that are not executed, since the emulator has not the time for them.
    """

    plan: Plan
    border: Border
    built: Built
    points: tuple[ParityCase, ...]
    border_parity: Parity
    weak_proofs: tuple[str, ...] = ()
    kernels: tuple[Scheduled, ...] = ()
    curves: tuple[Curve, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def reference(self) -> Reference:
        """What parity was judged against: pruning and quantizing change results on purpose; accuracy judges that."""
        return _reference(self.plan, self.border_parity)

    @property
    def typical(self) -> ParityCase:
        """The point at the optimal sizes: what speed and memory are measured at."""
        label = _typical_label(self.plan)
        return next((point for point in self.points if point.label == label), self.points[0])

    @property
    def unexecuted(self) -> str:
        """What is not executed, with the reasons; empty where all is."""
        return "; ".join(f"not executed: {one}" for one in self.left_out)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The store's entries of its border model and artifact."""
        return (*self.border.entries, self.built.entry)


@dataclass(frozen=True)
class BuiltCandidate(UnverifiedCandidate):
    """A candidate, built and verified.

    Args:
        verdict: Parity, and what was timed or counted beside.
    """

    verdict: Verification = field(kw_only=True)


def make(context: BuildContext, plan: Plan, variant: Variant, *, explain: bool) -> BuiltCandidate:
    """Makes and verifies one candidate, from the store where it was made before.

    Args:
        context: The device.
        plan: Its plan with the precision settled.
        variant: How it is quantized, where its precision has a scheme.
        explain: Whether to look for the first operator that diverges if parity fails.

    Raises:
        CompilerError: It cannot be built, or differs from what it was made of.
    """
    return verify(context, build(context, plan, variant), explain=explain)


def build(
    context: BuildContext, plan: Plan, variant: Variant, *, payload_bytes: int | None = None
) -> UnverifiedCandidate:
    """Makes one candidate, from the store where it was made before.

    Args:
        context: The device.
        plan: Its plan with the precision settled.
        variant: How it is quantized, where its precision has a scheme.
        payload_bytes: Most bytes of its payload, below what the limit on memory gives; None: what the limit gives.

    Raises:
        CompilerError: It cannot be built.
    """
    job, ready = context.job, context.ready
    in_place = job.target.capability(job.profile).keeps_cache
    rewritten = _rewritten(context, plan)
    bound = bound_payload(plan, ready.model, job.device.generation, rewritten=rewritten, in_place=in_place)
    plan = hold_to_model(bound, ready.model)
    plan = plan if payload_bytes is None else lower_payload(plan, payload_bytes)
    border = make_candidate_border(context, plan, variant)
    refuse_unsupported(border.load(), job.target.capability(job.profile), target=job.target.name)
    stages, limits = context.stages, context.options.child_limits
    with context.clock.timed(StageName.REFERENCE):
        imported = _reference_cases(context, ready.model, ready.digest)
        border_parity = judge_border(border, plan, ready, imported, where=f"{context.name}: verify", stages=stages)
    # without records every kernel is the target's first choice, and listing them takes seconds: see `with_kernels`
    log = tuning_log(context.options.cache)
    kernels = _schedule(context, border, plan, log) if log.records() else Kernels(plan, ())
    plan = kernels.plan
    with context.clock.timed(StageName.COMPILE):
        built = build_artifact(border, plan, job.profile, job.target, stages=stages, child_limits=limits)
    with context.clock.timed(StageName.REFERENCE):
        is_changed = _reference(plan, border_parity) == Reference.BORDER_MODEL
        points = _reference_cases(context, border.load(), border.digest) if is_changed else imported
        weak = weak_proofs(points, is_random=ready.inputs.is_random)
        points, left_out = _executed(context, border, plan, built, points, is_changed=is_changed)
    return UnverifiedCandidate(
        plan, border, built, points, border_parity, weak, kernels.scheduled, kernels.curves, left_out
    )


def _typical_label(plan: Plan) -> str:
    """What the point at the optimal sizes is labelled with."""
    return sizes_label({name: sizes.opt for name, sizes in plan.target_plan.dims.items()})


def _executed(
    context: BuildContext,
    border: Border,
    plan: Plan,
    built: Built,
    points: tuple[ParityCase, ...],
    *,
    is_changed: bool,
) -> tuple[tuple[ParityCase, ...], tuple[LeftOut, ...]]:
    """The points that are executed, and what is not: an emulator is given what it is reckoned to end in its time.

    What is no candidate is never delivered: it is run at the sizes alone at which others are compared with it.
    """
    seconds, ready = context.options.emulate_s, context.ready
    if not is_foreign(context.job.profile.cpu) or not seconds:
        return points, ()
    is_delivered = plan.rule in context.job.plan.candidates
    possible = points if is_delivered else up_to(points, _typical_label(plan))
    model = border.load()
    chosen, late = choose_points(model, possible, seconds=seconds)
    left_out = (*late, *(LeftOut(point.label, UNDELIVERED) for point in points[len(possible) :]))
    if not left_out or not _is_emulated(context, built, points[0]):
        return points, ()
    for one in left_out:
        context.clock.note(f"{plan.precision}: not executed: {one}")
    if is_delivered and context.job.device.generation is not None:
        parts = fewer_tokens(model, points[-1], find_decoder(model), seconds=seconds - total_s(model, chosen))
        source = (model, border.digest) if is_changed else (ready.model, ready.digest)
        chosen += reference_cases(*source, parts, context.stages)
    return chosen, left_out


def _is_emulated(context: BuildContext, built: Built, point: ParityCase) -> bool:
    """Whether an emulator runs what was built for a foreign processor: some targets' builds run on any.

    The smallest size tells, whose run is kept for parity.
    """
    limits, where = context.options.child_limits, f"{context.name}: verify"
    limits = replace(limits, timeout_s=min(limits.timeout_s, context.options.emulate_s))
    try:
        run = emulated_run(
            built.artifact, built.entry.digest, point.inputs, where=where, stages=context.stages, child_limits=limits
        )
    except TargetUnavailable:  # whoever verifies it says why
        return False
    except ToolchainFailed:
        return True
    return run.evidence == Evidence.EMULATOR


def _rewritten(context: BuildContext, plan: Plan) -> Path | None:
    """The file of the rewritten float model where the build has one, and a limit counts from it."""
    is_limited = plan.constraints.limits.memory_reduction_pct is not None
    if not is_limited or context.options.first is not None or context.is_quantized:
        return None
    ready = context.ready
    return rewritten_entry(ready.model, ready.digest, plan, ready.inputs.probe, context.stages).files / BORDER


def _reference(plan: Plan, border: Parity) -> Reference:
    """The border model where it computes something else on purpose, or is without the imported model's own noise."""
    is_changed = plan.changes_results or border.tolerance == TOLERANCES["quantized"].name
    return Reference.BORDER_MODEL if is_changed else Reference.IMPORTED_MODEL


def with_kernels(context: BuildContext, made: BuiltCandidate) -> BuiltCandidate:
    """A candidate with the list of its kernels, which its build had no need of where the tuning log is empty.

    Raises:
        CompilerError: Whatever the target raised.
    """
    if made.kernels:
        return made
    kernels = _schedule(context, made.border, made.plan, tuning_log(context.options.cache))
    return replace(made, plan=kernels.plan, kernels=kernels.scheduled, curves=kernels.curves)


def _schedule(context: BuildContext, border: Border, plan: Plan, log: TuningLog) -> Kernels:
    job, limits = context.job, context.options.child_limits
    with context.clock.timed(StageName.KERNELS):
        tunables = list_kernels(border, plan, job.profile, job.target, stages=context.stages, child_limits=limits)
        return choose_schedule(tunables, plan, job.profile, log)


def _reference_cases(context: BuildContext, model: ir.Model, digest: str) -> tuple[ParityCase, ...]:
    inputs = context.ready.inputs
    try:
        return reference_cases(model, digest, inputs.points, context.stages)
    except UnsupportedModel as error:
        if not inputs.is_random:
            raise
        raise UnsupportedModel(
            f"{error.what}\nThe inputs were {inputs.origin}.",
            where=error.where,
            remedy="If it runs on real inputs, name some: `calibration: {path: inputs.npz}`, one array per input.",
        ) from error


def make_candidate_border(
    context: BuildContext, plan: Plan, variant: Variant, *, last: StageName = StageName.SPECIALIZE
) -> Border:
    """The border model of a candidate: pruned, recovered, converted, quantized, or the rewritten model as it is.

    Args:
        context: The device.
        plan: Its plan with the precision settled.
        variant: How it is quantized, where its precision has a scheme.
        last: The stage of the portable half to end at.

    Raises:
        CompilerError: A stage failed.
    """
    ready = context.ready
    if context.options.first is not None:
        is_asked = bool(context.options.precision) or context.job.device.precision != "auto"
        return given_border(ready.model, ready.digest, plan, context.stages, is_asked=is_asked)
    wanted = BORDER_STAGES[: BORDER_STAGES.index(last) + 1]
    prunes = plan.pruning.ratio and StageName.PRUNE in wanted
    recovers, specializes = StageName.RECOVER in wanted, StageName.SPECIALIZE in wanted
    quantizes = plan.rule.scheme is not None and not context.is_quantized and StageName.QUANTIZE in wanted
    any_batch = ready.any_batch if quantizes and not prunes and specializes else None
    start = any_batch or ready
    return make_border(
        start.model,
        start.digest,
        plan,
        context.job.target.passes(context.job.profile),
        capability=context.job.target.capability(context.job.profile),
        inputs=any_batch.probe if any_batch else ready.inputs.probe,
        stages=context.stages,
        prune=partial(pruned_search_entries, context, plan, recovers=recovers) if prunes else None,
        quantize=_quantizer(context, plan, variant) if quantizes else None,
        specializes=specializes,
        batch=plan.dims["batch"].opt if any_batch else None,
    )


def _quantizer(context: BuildContext, plan: Plan, variant: Variant) -> Callable[[Entry], Entry]:
    """What makes the quantized form of a float model: of weights alone, or of activations too."""
    if plan.rule.scheme is not None and plan.rule.scheme.weights is not None:
        return partial(weights_entry, context, plan, variant.time)
    return partial(quantized_entry, context, plan.rule, variant)


def is_foreign(cpu: Cpu | None) -> bool:
    """Whether a device's processor is an ARM and this machine's is none, or the other way round."""
    return cpu is not None and ("asimd" in cpu.isa) != ("asimd" in host_isa())


def verify(context: BuildContext, made: UnverifiedCandidate, *, explain: bool) -> BuiltCandidate:
    """Runs a candidate where it can run here, and compares it with what it was made of.

    Args:
        context: The device.
        made: The candidate.
        explain: Whether to look for the first operator that diverges if parity fails.

    Raises:
        CompilerError: It differs from what it was made of, or cannot be run.
    """
    options, plan = context.options, made.plan
    if not made.points:
        return BuiltCandidate(**vars(made), verdict=not_executed(plan.tolerance, str(made.left_out[0])))
    try:
        with context.clock.timed(StageName.VERIFY):
            verdict = verify_artifact(
                made.built.artifact,
                made.built.entry.digest,
                made.points,
                reference=made.border.load() if made.reference == Reference.BORDER_MODEL else context.ready.model,
                tolerance=plan.tolerance,
                counted=made.typical,
                repeat=options.repeat,
                where=f"{context.name}: verify",
                stages=context.stages,
                child_limits=options.child_limits,
                is_emulated=is_foreign(context.job.profile.cpu),
                emulate_s=options.emulate_s,
            )
            parity = verify_products(
                verdict.parity,
                made.border,
                made.typical,
                plan,
                context.job.profile,
                context.job.target,
                where=f"{context.name}: verify",
                stages=context.stages,
                child_limits=options.child_limits,
            )
        if parity.status == ParityStatus.PASSED and made.unexecuted:
            parity = replace(parity, reason="; ".join(filter(None, (parity.reason, made.unexecuted))))
        return BuiltCandidate(**vars(made), verdict=replace(verdict, parity=parity))
    except GateFailed as error:
        if explain:
            context.clock.note("looking for the first operator that diverges")
            with context.clock.timed(StageName.BISECT):
                where = explain_divergence(
                    made.border.load(), made.points, plan, context.job.profile, child_limits=options.child_limits
                )
            error.what += "\n" + where
        raise
