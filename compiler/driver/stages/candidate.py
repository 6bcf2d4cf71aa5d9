"""One candidate made: border model, artifact, and its parity with what it was made of."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

from compiler.artifact.schema import Parity, Reference
from compiler.driver.stages.bisect import explain_divergence
from compiler.driver.stages.border import Border, make_border
from compiler.driver.stages.border_parity import hold_to_model, judge_border
from compiler.driver.stages.compile import Built, build_artifact
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.inputs import sizes_label
from compiler.driver.stages.kernels import bound_payload, choose_schedule, list_kernels, tuning_log
from compiler.driver.stages.proof import weak_proofs
from compiler.driver.stages.quantize import Variant, quantized_entry
from compiler.driver.stages.recover import pruned_search_entries
from compiler.driver.stages.verify import ParityCase, Verification, reference_cases, verify_artifact
from compiler.errors import GateFailed
from compiler.plan import Plan
from compiler.store import Entry
from compiler.target.capability import refuse_unsupported
from compiler.tune import Curve, Scheduled

log = logging.getLogger("fleetc.build")


@dataclass(frozen=True)
class Made:
    """A candidate, built and verified.

    Args:
        plan: The plan it was made by, its precision settled.
        border: What the target was given.
        built: The artifact.
        points: Inputs and expected outputs it was compared on.
        verdict: Parity, and what was timed or counted beside.
        border_parity: Parity of the border model with the imported one, in ONNX Runtime.
        weak_proofs: Why some of that parity says little.
        kernels: What each of its kernels is built with, and by which record; none where the target cannot be tuned.
        curves: The trials behind those records.
    """

    plan: Plan
    border: Border
    built: Built
    points: tuple[ParityCase, ...]
    verdict: Verification
    border_parity: Parity
    weak_proofs: tuple[str, ...] = ()
    kernels: tuple[Scheduled, ...] = ()
    curves: tuple[Curve, ...] = ()

    @property
    def reference(self) -> Reference:
        """What parity was judged against: pruning and quantizing change results on purpose; accuracy judges that."""
        return Reference.BORDER_MODEL if self.plan.changes_results else Reference.IMPORTED_MODEL

    @property
    def typical(self) -> ParityCase:
        """The point at the optimal sizes: what speed and memory are measured at."""
        sizes = {name: one.opt for name, one in self.plan.target_plan.dims.items()}
        found = [point for point in self.points if point.label == sizes_label(sizes)]
        return found[0] if found else self.points[0]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The store's entries of its border model and artifact."""
        return (*self.border.entries, self.built.entry)


def make(context: BuildContext, plan: Plan, variant: Variant, *, explain: bool) -> Made:
    """Makes and verifies one candidate, from the store where it was made before.

    Args:
        context: The device.
        plan: Its plan with the precision settled.
        variant: How it is quantized, where its precision has a scheme.
        explain: Whether to look for the first operator that diverges if parity fails.

    Raises:
        CompilerError: It cannot be built, or differs from what it was made of.
    """
    job, ready = context.job, context.ready
    plan = hold_to_model(bound_payload(plan, ready.model), ready.model)
    border = make_candidate_border(context, plan, variant)
    refuse_unsupported(border.load(), job.target.capability(job.profile), target=job.target.name)
    with context.clock.timed("reference"):
        border_parity = judge_border(border, plan, ready, where=f"{context.name}: verify", store=context.store)
    with context.clock.timed("kernels"):
        found = list_kernels(border, plan, job.profile, job.target, store=context.store, limits=context.options.child)
        kernels = choose_schedule(found, plan, job.profile, tuning_log(context.options.cache))
        plan = kernels.plan
    with context.clock.timed("build"):
        built = build_artifact(border, plan, job.profile, job.target, store=context.store, limits=context.options.child)
    with context.clock.timed("reference"):
        model, digest = (border.load(), border.digest) if plan.changes_results else (ready.model, ready.digest)
        points = reference_cases(model, digest, ready.inputs.points, context.store)
    with context.clock.timed("verify"):
        verdict = _verify(context, plan, border, built, points, explain=explain)
    weak = weak_proofs(points, is_random=ready.inputs.is_random)
    return Made(plan, border, built, points, verdict, border_parity, weak, kernels.scheduled, kernels.curves)


def make_candidate_border(context: BuildContext, plan: Plan, variant: Variant) -> Border:
    """The border model of a candidate: pruned, recovered, converted, quantized, or the rewritten model as it is."""
    ready, quantizes = context.ready, plan.rule.scheme is not None and not context.is_quantized
    with context.clock.timed("quantize" if quantizes else "prune" if plan.pruning.ratio else "passes"):
        return make_border(
            ready.model,
            ready.digest,
            plan,
            context.job.target.passes(context.job.profile),
            capability=context.job.target.capability(context.job.profile),
            inputs=ready.inputs.probe,
            store=context.store,
            prune=partial(pruned_search_entries, context, plan) if plan.pruning.ratio else None,
            quantize=partial(quantized_entry, context, plan.rule, variant) if quantizes else None,
        )


def _verify(
    context: BuildContext, plan: Plan, border: Border, built: Built, points: tuple[ParityCase, ...], *, explain: bool
) -> Verification:
    options = context.options
    try:
        return verify_artifact(
            built.artifact,
            built.entry.digest,
            points,
            tolerance=plan.decisions["tolerance"].value,
            repeat=options.repeat,
            where=f"{context.name}: verify",
            store=context.store,
            limits=options.child,
        )
    except GateFailed as error:
        if explain:
            log.info("%s: looking for the first operator that diverges", context.name)
            error.what += "\n" + explain_divergence(
                border.load(), points, plan, context.job.profile, limits=options.child
            )
        raise
