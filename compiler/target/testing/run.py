"""One case through one target: capability → passes → build → load → run → compare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import onnx_ir as ir

from compiler.artifact import Artifact
from compiler.errors import CompilerError, TargetUnavailable, UnsupportedModel
from compiler.fleet.profile import HardwareProfile, validate_options
from compiler.model.numerics import TOLERANCES, Arrays, ErrorStats, Tolerance, compare_all
from compiler.store.scratch import scratch_folder
from compiler.target.capability import find_unsupported, is_judged_by_build
from compiler.target.runner import Runner
from compiler.target.target import Target, TargetPlan
from compiler.target.testing.case import Case

_LEVEL = {"float16": "fp16", "bfloat16": "bf16", "bool": "exact"} | {
    f"{sign}int{bits}": "exact" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
"""Element type of an output → the tolerance it is judged by, whatever the precision."""


class Status(StrEnum):
    """How a case ended."""

    PASSED = "passed"
    BUILT = "built"
    REFUSED = "refused"
    FAILED = "failed"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True)
class Outcome:
    """What became of one case on one target.

    Args:
        case: Its name.
        target: The target's.
        status: `passed`: executed and inside the tolerance. `built`: built, its inputs and outputs are the model's,
            and it cannot run here. `refused`: the target says beforehand that it does not take the model. `failed`:
            anything it should have done and did not. `unavailable`: this machine lacks the toolchain.
        reason: Why it did not pass.
        stats: Output name → error statistics of the last set of inputs that was run.
    """

    case: str
    target: str
    status: Status
    reason: str = ""
    stats: Mapping[str, ErrorStats] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the target did all that can be seen on this machine."""
        return self.status in (Status.PASSED, Status.BUILT)

    def __str__(self) -> str:
        return f"{self.case} on {self.target}: {self.status}" + (f": {self.reason}" if self.reason else "")


def run_case(
    target: Target,
    profile: HardwareProfile,
    case: Case,
    *,
    precision: str = "fp32",
    workdir: Path | None = None,
    cache_dir: Path | None = None,
) -> Outcome:
    """Builds and, where this machine can, executes one case.

    Args:
        target: The target under test.
        profile: A device of the target.
        case: One of `conformance_cases()` or `onnx_backend_cases()`.
        precision: One of the target's precisions that does not need the model converted.
        workdir: Where to build; a temporary folder when absent.
        cache_dir: Where the target may keep what it downloads.
    """
    with scratch_folder() as folder:
        root = workdir if workdir is not None else folder
        try:
            target.check(profile)
        except TargetUnavailable as error:
            return Outcome(case.name, target.name, Status.UNAVAILABLE, str(error))
        try:
            return _run(target, profile, case, precision, root, cache_dir or root)
        except UnsupportedModel as error:
            return Outcome(case.name, target.name, Status.REFUSED, str(error))
        except CompilerError as error:
            return Outcome(case.name, target.name, Status.FAILED, f"{type(error).__name__}: {error}")


def check_target(target: Target, profile: HardwareProfile, cases: Iterable[Case]) -> list[Outcome]:
    """The outcome of every case, in order; `[o for o in check_target(…) if not o.passed]` is what there is to do."""
    return [run_case(target, profile, case) for case in cases]


def _run(target: Target, profile: HardwareProfile, case: Case, precision: str, root: Path, cache_dir: Path) -> Outcome:
    capability = target.capability(profile)
    rule = next((rule for rule in capability.precisions if rule.name == precision), None)
    if rule is None:
        reason = capability.precision_refusals.get(precision, "not among the target's precisions")
        return Outcome(case.name, target.name, Status.REFUSED, f"{precision}: {reason}")
    keeps_ranges = capability.dynamic_dims and len(case.dims) <= (capability.ranges_max or len(case.dims))
    model = case.model(bind=not keeps_ranges)
    for step in target.passes(profile):
        step(model)
    refusals = () if is_judged_by_build(model, capability) else find_unsupported(model, capability)
    if refusals:
        return Outcome(case.name, target.name, Status.REFUSED, "; ".join(map(str, refusals)))
    dims = case.dims if keeps_ranges else {}
    options = validate_options(target.Options, profile)
    plan = TargetPlan(precision, options, dims=dims, threads=1, cache_dir=cache_dir)
    artifact = target.build(model, plan, profile, workdir=root)
    if problems := [*_file_problems(artifact), *_signature_problems(artifact, model)]:
        return Outcome(case.name, target.name, Status.FAILED, "; ".join(problems))
    return _execute(
        target, artifact, case, TOLERANCES[case.tolerance or rule.tolerance], dims=bool(dims or not case.dims)
    )


def _execute(target: Target, artifact: Artifact, case: Case, tolerance: Tolerance, *, dims: bool) -> Outcome:
    if artifact.deferred:
        return Outcome(case.name, target.name, Status.BUILT, f"deferred: {artifact.deferred}")
    try:
        runner = target.load(artifact)
    except TargetUnavailable as error:
        return Outcome(case.name, target.name, Status.BUILT, str(error))
    try:
        pairs = list(zip(case.inputs, case.answers(), strict=True))
        return _compared(target, runner, case.name, pairs if dims else pairs[len(pairs) // 2 :][:1], tolerance)
    finally:
        runner.close()


def _compared(
    target: Target, runner: Runner, case: str, pairs: Iterable[tuple[Arrays, Arrays]], tolerance: Tolerance
) -> Outcome:
    stats: dict[str, ErrorStats] = {}
    for inputs, expected in pairs:
        actual = runner.run(inputs)
        stats = compare_all(expected, actual)
        wrong = [*_dtype_problems(expected, actual), *_value_problems(expected, stats, tolerance)]
        if wrong:
            return Outcome(case, target.name, Status.FAILED, "; ".join(wrong), stats)
    return Outcome(case, target.name, Status.PASSED, "", stats)


def _dtype_problems(expected: Arrays, actual: Arrays) -> Iterator[str]:
    for name, want in expected.items():
        got = actual.get(name)
        if got is None:
            yield f"no output '{name}'"
        elif (got.dtype, got.shape) != (want.dtype, want.shape):
            yield f"'{name}' is {got.dtype} {got.shape}, not {want.dtype} {want.shape}"


def _value_problems(expected: Arrays, stats: Mapping[str, ErrorStats], tolerance: Tolerance) -> Iterator[str]:
    for name, difference in stats.items():
        level = TOLERANCES[_LEVEL[expected[name].dtype.name]] if expected[name].dtype.name in _LEVEL else tolerance
        if not level.accepts(difference):
            yield f"'{name}' is outside {level.name}: {difference}"


def _file_problems(artifact: Artifact) -> Iterator[str]:
    for name in artifact.files:
        if Path(name).is_absolute() or ".." in Path(name).parts or not (artifact.root / name).is_file():
            yield f"file '{name}' is not below the artifact's folder"


def _signature_problems(artifact: Artifact, model: ir.Model) -> Iterator[str]:
    """How what was built differs from the model; an input without use or elements may be missing."""
    used = [value for value in model.graph.inputs if value.uses() and 0 not in (value.shape or ())]
    built = {spec.name: spec for spec in (*artifact.inputs, *artifact.outputs)}
    if [spec.name for spec in artifact.outputs] != [value.name for value in model.graph.outputs]:
        yield f"outputs are {[spec.name for spec in artifact.outputs]}"
    for value in (*used, *model.graph.outputs):
        spec = built.get(str(value.name))
        if spec is None:
            yield f"'{value.name}' is missing"
            continue
        if value.dtype is not None and value.dtype.numpy().name != spec.dtype:
            yield f"'{value.name}' is {spec.dtype}, not {value.dtype.numpy().name}"
        if value.shape is not None and not _fits(value.shape, spec.shape):
            yield f"'{value.name}' is {spec.shape}, not {value.shape}"


def _fits(wanted: ir.Shape, built: tuple[int | str, ...]) -> bool:
    """Whether every size that both know is the same."""
    return len(wanted) == len(built) and all(
        not isinstance(want, int) or not isinstance(got, int) or want == got
        for want, got in zip(wanted, built, strict=True)
    )
