"""How much faster a candidate is than the float original, by the best evidence there is.

measured-host       both builds run here in turn, block by block: the ratio of the fastest runs of two neighbouring
                    blocks, which other work on the machine disturbs least; of those ratios the centre by Hodges and
                    Lehmann with its 95 % interval, measured until that is narrow or time is up
measured-emulator   guest instructions of one inference
estimated           a roofline of the profile
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import asdict, replace

import onnx_ir as ir

from compiler.artifact import Evidence
from compiler.artifact.manifest import BORDER
from compiler.artifact.schema import Speed, SpeedUnit
from compiler.driver.measure.child import measure_in_child
from compiler.driver.measure.instruction_sets import on_device
from compiler.driver.roofline import describe_machine, model_seconds
from compiler.driver.stages.candidate import BuiltCandidate, UnverifiedCandidate, is_foreign
from compiler.driver.stages.context import BuildContext
from compiler.driver.work import list_work
from compiler.errors import CompilerError, StorageError, TargetUnavailable
from compiler.evaluate.gates import Figure
from compiler.evaluate.paired import centre_of, ratio_of
from compiler.fleet.detect import detect_profile
from compiler.fleet.machine import available_cpus
from compiler.fleet.profile import HardwareProfile
from compiler.store import StageName
from compiler.target.request import RaceAnswer, RaceClock, RaceTask, RaceUntil

LEAST_PAIRS = 7
"""Pairs of blocks in any case: one more than an interval of 95 % needs."""

MOST_PAIRS = 60
"""Pairs beyond which an interval narrows too slowly to be worth the time: four times as many halve it."""

FIRST_RACE = RaceUntil(LEAST_PAIRS, 2 * LEAST_PAIRS, 3.0, 0.05)
"""Of the first builds of two targets: it only sorts out a target that is clearly slower, so that a few seconds do."""

NARROW = 0.01
"""Half of the interval, relative, that is narrow enough: a third of what counts as the same speed."""

WIDE = 0.05
"""Half of the interval, relative, beyond which a figure is called disturbed though nothing else shows."""

INSTRUCTIONS_PER_CYCLE = 2.0
"""Assumed of an ARM core on vector code when instructions become a time: half of what a Cortex-A76 issues at most."""


def measure_speed(context: BuildContext, made: BuiltCandidate, original: BuiltCandidate | None) -> Speed:
    """The candidate against the float original of the same target and profile.

    Args:
        context: The device.
        made: The candidate.
        original: The float original; None where this is it, or where the target cannot build it.
    """
    base = original or (made if made.plan.is_baseline else None)
    # only where both ran on this machine itself: an emulator's time is no figure
    if base is not None and {made.verdict.evidence, base.verdict.evidence} == {Evidence.HOST}:
        return _race(context, made, base)
    count, other = made.verdict.instructions, base.verdict.instructions if base else None
    if count and other:
        return Speed(other / count, count, other, SpeedUnit.INSTRUCTIONS, Evidence.EMULATOR, made.verdict.reason)
    return _roofline(context, made)


def latency_figure(context: BuildContext, made: BuiltCandidate, speed: Speed) -> Figure:
    """Milliseconds of one inference on the device at the optimal sizes, for the latency gate."""
    profile = context.job.profile
    if speed.unit == SpeedUnit.MS and speed.value is not None and (latency := _from_host(profile, speed, made)):
        return latency
    if speed.unit == SpeedUnit.INSTRUCTIONS and speed.value is not None and profile.cpu and profile.cpu.clock_mhz:
        value = speed.value / (profile.cpu.clock_mhz * 1e3 * INSTRUCTIONS_PER_CYCLE)
        why = f"{speed.value / 1e6:.1f} M instructions on one core, {INSTRUCTIONS_PER_CYCLE:g} a cycle assumed"
        return Figure(value, Evidence.ESTIMATED, "instructions", why)
    bound = _roofline(context, made)
    if bound.value is None:
        return Figure(None, Evidence.NONE, why=bound.note)
    return Figure(bound.value, Evidence.ESTIMATED, "roofline", f"a lower bound: {bound.note}")


def _from_host(profile: HardwareProfile, speed: Speed, made: BuiltCandidate) -> Figure | None:
    """This machine's time, scaled to the device where it is another; None where a profile says too little for that.

    Of an interval the upper end is judged: what may be too slow does not pass.
    """
    value_ms = speed.value if speed.value_high is None else speed.value_high
    if value_ms is None:
        return None
    doubt = f"disturbed: {speed.disturbed}" if speed.disturbed else ""
    rule = "median" if speed.value_high is None else "upper end of the median's 95 % interval"
    host = detect_profile()
    # without a processor in the profile the device is taken to be this machine
    if profile.cpu is None or (host.cpu is not None and profile.cpu.model == host.cpu.model):
        return Figure(value_ms, Evidence.HOST, rule, doubt)
    here, there = describe_machine(host), describe_machine(profile)
    if here is None or there is None:
        return None
    rates = [machine.macs_per_s.get(made.plan.precision, machine.macs_per_s["fp32"]) for machine in (here, there)]
    scale = rates[0] / rates[1]
    why = f"{value_ms:.2f} ms on this machine × {scale:.2f}, the ratio of peak rates ({there.source})"
    why = "; ".join(filter(None, (why, doubt)))
    return Figure(value_ms * scale, Evidence.ESTIMATED, "scaled by peak rates", why)


def _race(context: BuildContext, made: BuiltCandidate, original: BuiltCandidate) -> Speed:
    times = [latency.p50_ms for latency in made.verdict.latency if latency.sizes == made.typical.label]
    # a candidate that came out as the same artifact: a race would give noise around 1
    if made.built.entry.digest == original.built.entry.digest and times:
        return Speed(1.0, times[0], times[0], SpeedUnit.MS, Evidence.HOST, made.verdict.reason, low=1.0, high=1.0)
    speed = race_speed(_raced(context, made, original, _last(context)), note=made.verdict.reason)
    return on_device(context.job.profile, speed, made, original)


def race_targets(context: BuildContext, made: UnverifiedCandidate, baseline: UnverifiedCandidate) -> Speed:
    """The first build of a target against that of another, in a race that is short.

    Args:
        context: The device through the first of the two.
        made: Its build.
        baseline: The other target's build.

    Raises:
        TargetUnavailable: One of the two cannot be run on this machine as the device runs it.
    """
    if is_foreign(context.job.profile.cpu):
        raise TargetUnavailable("the device has another kind of processor than this machine")
    if reason := next((side.built.artifact.deferred for side in (made, baseline) if side.built.artifact.deferred), ""):
        raise TargetUnavailable(f"the device must finish the build first: {reason}")
    until = _first(context)
    speed = race_speed(_raced(context, made, baseline, until), note="")
    if speed.disturbed:
        with suppress(
            TargetUnavailable
        ):  # a runner that does not tell processor time: the clock's figure is all there is
            speed = replace(_by_processor_time(context, made, baseline, until), disturbed=speed.disturbed)
    return on_device(context.job.profile, speed, made, baseline)


def race_best(context: BuildContext, made: BuiltCandidate, other: BuiltCandidate, *, is_busy: bool) -> Speed:
    """A build against another of the same device, by the clock; by processor time where other work disturbs that.

    Args:
        context: The device.
        made: The build.
        other: The other one, perhaps of another target.
        is_busy: Whether a race of one of them was disturbed already: then the clock is not tried again.

    Raises:
        CompilerError: One of them cannot be run, or does not tell its processor time.
    """
    until = _last(context)
    speed = None if is_busy else race_speed(_raced(context, made, other, until), note="")
    if speed is None or speed.disturbed:
        speed = _by_processor_time(context, made, other, until)
    return on_device(context.job.profile, speed, made, other)


def least_speedup(context: BuildContext, made: BuiltCandidate, original: BuiltCandidate, speed: Speed) -> float:
    """The least that a speed-up can be, whatever else this machine does; 0 where nothing tells.

    Args:
        context: The device.
        made: The build.
        original: The float original.
        speed: Of the one against the other; where it was disturbed they are raced by processor time.

    Raises:
        StorageError: The cache's disk is full.
    """
    if speed.disturbed and speed.evidence == Evidence.HOST:
        try:
            speed = _by_processor_time(context, made, original, _first(context))
        except StorageError:
            raise
        except CompilerError:  # both ran before; without this race nothing is certain
            return 0.0
    return speed_ends(speed, threads=threads_here(made))[0]


def speed_ends(speed: Speed, *, threads: int) -> tuple[float, float]:
    """The ends between which a speed-up lies for certain; 0 and infinity where other work disturbed the clock.

    Args:
        speed: The speed-up.
        threads: Threads of the builds. Processor time is taken on one processor: on n threads a build is n times as
            fast at most, and the other one may gain nothing by them.
    """
    if speed.speedup is None:
        return 0.0, math.inf
    low, high = (speed.speedup if end is None else end for end in (speed.low, speed.high))
    if speed.unit == SpeedUnit.PROCESSOR_MS:
        return low / threads, high * threads
    return (0.0, math.inf) if speed.disturbed else (low, high)


def _by_processor_time(
    context: BuildContext, made: UnverifiedCandidate, other: UnverifiedCandidate, until: RaceUntil
) -> Speed:
    """A race by processor time, both on one processor with one thread, which other work hardly moves."""
    answer = _raced(context, made, other, until, clock=RaceClock.PROCESSOR)
    return replace(race_speed(answer, note="by processor time on one processor"), unit=SpeedUnit.PROCESSOR_MS)


def _first(context: BuildContext) -> RaceUntil:
    return replace(FIRST_RACE, budget_s=min(FIRST_RACE.budget_s, context.options.race_s))


def _last(context: BuildContext) -> RaceUntil:
    return RaceUntil(LEAST_PAIRS, MOST_PAIRS, context.options.race_s, NARROW)


def _raced(
    context: BuildContext,
    made: UnverifiedCandidate,
    original: UnverifiedCandidate,
    until: RaceUntil,
    *,
    clock: RaceClock = RaceClock.WALL,
) -> RaceAnswer:
    builds = [(side.built, side.typical.inputs) for side in (made, original)]
    artifacts = tuple(built.artifact for built, _ in builds)
    threads = threads_here(made)
    (raced,) = measure_in_child(
        context,
        StageName.SPEED,
        RaceAnswer,
        builds,
        lambda inputs: RaceTask(artifacts, inputs, until, threads, clock),
        until=asdict(until),
        threads=threads,
        clock=str(clock),
    )
    return raced


def threads_here(made: UnverifiedCandidate) -> int:
    """How many threads a build has when it runs on this machine."""
    return min(made.plan.target_plan.threads, available_cpus())


def race_speed(raced: RaceAnswer, *, note: str) -> Speed:
    """The speed that a race of a candidate and the float original shows.

    Args:
        raced: Times of the candidate, then of the original.
        note: What the reader should know of the runs.
    """
    own, original = raced.fastest_ms
    ratio = ratio_of(original, own)
    value, base = (centre_of(medians) for medians in raced.medians_ms)
    wide = ratio.half_width / ratio.value
    doubts = [raced.disturbed] if raced.disturbed else []
    doubts += [f"after {len(own)} pairs of blocks it is known to ±{wide:.0%}"] if wide > WIDE else []
    return Speed(
        ratio.value,
        value.value,
        base.value,
        SpeedUnit.MS,
        Evidence.HOST,
        note,
        low=ratio.low,
        high=ratio.high,
        disturbed="; ".join(doubts),
        value_high=value.high,
    )


def _roofline(context: BuildContext, made: BuiltCandidate) -> Speed:
    """An estimate of both: of the candidate's border model, and of the rewritten float model in float32."""
    machine = describe_machine(context.job.profile)
    if machine is None:
        why = "the profile states too little for an estimate: cores, clock_mhz and isa or compute_capability"
        return Speed(None, None, None, SpeedUnit.NONE, Evidence.NONE, why)
    batch = context.job.device.batch.opt
    layers = list(list_work(made.border.load(), batch=batch))
    value, high = (
        1e3 * model_seconds(layers, machine, made.plan.precision, overlaps=overlaps) for overlaps in (True, False)
    )
    float_model = ir.load(made.border.entries[0].files / BORDER)
    base = 1e3 * model_seconds(list_work(float_model, batch=batch), machine, "fp32")
    if not value or not base:
        why = "the model has no work that an estimate could count"
        return Speed(None, None, None, SpeedUnit.NONE, Evidence.NONE, why)
    estimate, source = SpeedUnit.ROOFLINE_MS, machine.source
    return Speed(base / value, value, base, estimate, Evidence.ESTIMATED, source, value_high=high)
