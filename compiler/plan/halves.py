"""Half of a build: up to the border model (`--to`), or from a border model on (`--from`); what cannot be is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compiler.errors import UsageError, combine
from compiler.plan.plan import BuildOptions, Plan
from compiler.store import BORDER_STAGES, StageName

ENDS = f"It can end at {', '.join(BORDER_STAGES)}: the model after that stage is handed out."
STARTS = "It can start at rewrite, from a trained model, or at compile, from a border model."


def parse_first(text: str) -> StageName | None:
    """The stage that a build starts at; None for the whole line.

    Raises:
        UsageError: It is no stage, or none that a build can start at.
    """
    # the first stage of all: a build that starts there is a whole one
    if text in ("", StageName.REWRITE):
        return None
    if text != StageName.COMPILE:
        raise UsageError(_cannot(text, "start"), where="--from", remedy=STARTS)
    return StageName.COMPILE


def parse_last(text: str) -> StageName | None:
    """The stage that a build ends at; None for the whole line.

    Raises:
        UsageError: It is no stage, or none that a build can end at.
    """
    # the last stage of all: a build that ends there is a whole one
    if text in ("", StageName.DELIVER):
        return None
    if text not in BORDER_STAGES:
        raise UsageError(_cannot(text, "end"), where="--to", remedy=ENDS)
    return StageName(text)


def refuse_halves(options: BuildOptions) -> None:
    """Raises UsageError for options that do not go with the half that is built."""
    if options.first and options.last:
        raise UsageError(
            f"a build that starts at '{options.first}' does not come by '{options.last}'",
            where="--to",
            remedy="Leave one of --from and --to out.",
        )
    portable = [
        name
        for name, value in {
            "--skip-pass": options.skip_passes,
            "--stop-after": options.stop_after is not None,
            "--dump-passes": options.dump_passes,
            "--prune": options.prune,
            "--recover": options.recover_minutes,
        }.items()
        if value
    ]
    if options.first and portable:
        raise UsageError(
            f"{', '.join(portable)}: a border model has all of that behind it",
            where=f"--from {options.first}",
            remedy="Leave it out, or build from the trained model.",
        )


def refuse_undecided(options: BuildOptions, plans: Sequence[Plan]) -> None:
    """Raises UsageError where half a build cannot decide what the whole one decides by measuring builds."""
    if options.last:
        problems = [problem for plan in plans for problem in _searched(options.last, plan)]
    elif options.first:
        problems = [problem for plan in plans for problem in _compared(options.first, plan)]
    else:
        problems = []
    if problems:
        # the plans of competing targets have most problems in common
        raise combine(list({str(problem): problem for problem in problems}.values()))


def _searched(last: StageName, plan: Plan) -> Iterator[UsageError]:
    where = f"--to {last}: {plan.device}"
    if plan.targets:
        yield _undecided_target(plan, where)
    if len(plan.candidates) > 1:
        names = ", ".join(rule.name for rule in plan.candidates)
        yield UsageError(
            f"the precision ({names}) is decided by builds and measurements, which come after the border model",
            where=where,
            remedy="Name one with --precision.",
        )
    if plan.pruning.is_searched:
        yield UsageError(
            "the share to prune is decided by builds and measurements, which come after the border model",
            where=where,
            remedy="Name a ratio with --prune, or --prune off.",
        )


def _compared(first: StageName, plan: Plan) -> Iterator[UsageError]:
    where = f"--from {first}: {plan.device}"
    if plan.targets:
        yield _undecided_target(plan, where)
    # limits of the fleet file must not be passed over in silence
    if plan.constraints.any:
        yield UsageError(
            "limits and an evaluation compare with the trained model, which a border model is not",
            where=where,
            remedy="Leave them out: parity with the border model is judged in any case.",
        )
    if plan.pruning.ratio or plan.pruning.is_searched:
        yield UsageError("a border model is not pruned any more", where=where, remedy="Leave `prune` out.")


def _undecided_target(plan: Plan, where: str) -> UsageError:
    names = ", ".join(target.target for target in plan.targets)
    return UsageError(
        f"the target ({names}) is decided by builds of each, and a border model is made for one",
        where=where,
        remedy="Name one with --target.",
    )


def _cannot(text: str, verb: str) -> str:
    if text in set(StageName):
        return f"a build cannot {verb} at '{text}'"
    return f"there is no stage '{text}'"
