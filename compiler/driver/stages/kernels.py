"""The kernels of a border model: what the target says can be chosen, and what the tuning log says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.artifact.adapter import parse, to_json
from compiler.artifact.schema import Basis
from compiler.driver.stages.border import Border
from compiler.driver.stages.compile import target_inputs
from compiler.driver.stages.run import Stages
from compiler.fleet.data import Generation
from compiler.fleet.profile import HardwareProfile
from compiler.model.decoder import find_decoder
from compiler.passes.instrument import measure
from compiler.plan import Decision, Plan, options_to_dict
from compiler.store import StageName, canonical_json, read_result, write_result
from compiler.store.scratch import scratch_folder
from compiler.target import Target, Tunes
from compiler.target.isolate import ChildLimits
from compiler.target.request import BuildRequest, KernelsTask, ask, border_work
from compiler.tune import Curve, DeviceType, Scheduled, Tunable, TuningKey, TuningLog, curves, profile_device, schedule

KERNELS = "kernels.json"
MIB = 1 << 20

RUNTIME_BYTES = 64 << 20
"""What a runtime is reckoned with before anything is measured: a first guess, which the measurement then corrects."""


@dataclass(frozen=True)
class Kernels:
    """A plan with the choice of every kernel in it, where each is from, and the trials behind those measured."""

    plan: Plan
    scheduled: tuple[Scheduled, ...]
    curves: tuple[Curve, ...] = ()

    def to_dict(self) -> list[dict[str, Any]]:
        """JSON values, as the manifest keeps them."""
        return [to_json(kernel) for kernel in self.scheduled]


def tuning_log(cache: Path) -> TuningLog:
    """The log of a cache."""
    return TuningLog(cache / "tuning")


def bound_payload(
    plan: Plan,
    original: ir.Model,
    generation: Generation | None = None,
    *,
    rewritten: Path | None = None,
    in_place: bool = False,
) -> Plan:
    """The plan with the bytes that its build's payload may take, where a limit on memory holds.

    Args:
        plan: A device's plan.
        original: The model as imported.
        generation: How a language model is used: its cache takes memory too.
        rewritten: The file of the float model after the portable passes, whose weights a share counts from, as they do
            when the build is judged; None: those of the imported model.
        in_place: Whether the target writes a cache of its whole size in place: then there is one of it in memory.
    """
    memory_mib = plan.constraints.limits.memory_mib
    if memory_mib is not None:
        cache = _caches_bytes(original, generation, in_place=in_place, is_narrow=_is_narrow(plan)) if generation else 0
        logits = _logits_bytes(original, generation) if generation else 0
        most = max(1, int(memory_mib * MIB) - cache - logits - RUNTIME_BYTES)
        reason = (
            f"memory_mib is {memory_mib:g}; the cache takes {cache / MIB:.1f} MiB, the logits of a prompt "
            f"{logits / MIB:.1f}, and the runtime is reckoned with {RUNTIME_BYTES // MIB}"
        )
        decisions = {**plan.decisions, "payload": Decision(f"at most {most / MIB:.1f} MiB", reason)}
        plan = replace(plan, decisions=decisions, target_plan=replace(plan.target_plan, payload_bytes=most))
    reduction_pct = plan.constraints.limits.memory_reduction_pct
    if reduction_pct is None:
        return plan
    model_bytes = measure(original if rewritten is None else ir.load(rewritten)).bytes
    most = int(model_bytes * (1 - reduction_pct / 100))
    if plan.target_plan.payload_bytes is not None and plan.target_plan.payload_bytes <= most:
        return plan
    reason = f"memory_reduction_pct is {reduction_pct:g}, and the model's weights take {model_bytes / MIB:.1f} MiB"
    decisions = {**plan.decisions, "payload": Decision(f"at most {most / MIB:.1f} MiB", reason)}
    return replace(plan, decisions=decisions, target_plan=replace(plan.target_plan, payload_bytes=most))


def _logits_bytes(model: ir.Model, generation: Generation) -> int:
    """Bytes of what a decoder gives for the tokens of a prompt that are read at once, in float32."""
    return 4 * generation.prefill * find_decoder(model).vocabulary


def _is_narrow(plan: Plan) -> bool:
    """Whether keys and values are kept in 8 bits."""
    return plan.rule.scheme is not None and plan.rule.scheme.rounds_cache


def _caches_bytes(model: ir.Model, generation: Generation, *, in_place: bool, is_narrow: bool) -> int:
    """Bytes of all caches that a prompt behind a full context takes: those before it and after it, or the one."""
    if in_place:
        rows = replace(generation, context=generation.context - 1 + generation.prefill)
        return cache_bytes(model, rows, is_narrow=is_narrow)
    return 2 * cache_bytes(model, generation, is_narrow=is_narrow)


def cache_bytes(model: ir.Model, generation: Generation, *, is_narrow: bool = False) -> int:
    """Bytes of a decoder's keys and values at its full context; in 8 bits each head of a token has a float32 beside."""
    pairs = {pair.past: pair.axis for pair in find_decoder(model).pairs}
    total = 0
    for value in model.graph.inputs:
        if value.name in pairs and value.shape is not None and value.dtype is not None:
            sizes = [
                generation.context if axis == pairs[str(value.name)] else size if isinstance(size, int) else 1
                for axis, size in enumerate(value.shape)
            ]
            rows = math.prod(sizes[:-1])
            total += int(rows * (sizes[-1] + 4 if is_narrow else sizes[-1] * value.dtype.itemsize))
    return total


def lower_payload(plan: Plan, most: int) -> Plan:
    """The plan with fewer bytes for its build's payload, where what was measured is over the limit on memory.

    Args:
        plan: The plan of the build that was measured.
        most: Bytes that the next build's payload may take.
    """
    reason = f"{plan.decisions['payload'].reason}; the build before this was measured and over the limit"
    decisions = {**plan.decisions, "payload": Decision(f"at most {most / MIB:.1f} MiB", reason)}
    return replace(plan, decisions=decisions, target_plan=replace(plan.target_plan, payload_bytes=most))


def list_kernels(
    border: Border, plan: Plan, profile: HardwareProfile, target: Target, *, stages: Stages, child_limits: ChildLimits
) -> tuple[Tunable, ...]:
    """The kernels that have choices, from the target's child process or the store; none where it cannot be tuned.

    Raises:
        CompilerError: Whatever the target raised, or ToolchainFailed if its process ended badly.
    """
    if not isinstance(target, Tunes):
        return ()

    def make(folder: Path) -> None:
        with scratch_folder() as scratch:
            work = border_work(border.path, BuildRequest.of(plan.target_plan), profile, scratch)
            where = f"{plan.device}: {StageName.KERNELS}"
            tunables = ask(
                KernelsTask(work),
                tuple[Tunable, ...],
                folder=scratch,
                child_limits=child_limits,
                where=where,
                builds_for=profile.target,
            )
        write_result(folder, KERNELS, to_json(tunables))

    entry = stages.run(StageName.KERNELS, make, **target_inputs(border, plan, target))
    return tuple(parse(Tunable, row) for row in read_result(entry, KERNELS))


def tuning_keys(kernels: Sequence[Tunable], plan: Plan, device: DeviceType) -> dict[str, TuningKey]:
    """Workload → the key its measurements on a type of device have under this plan."""
    toolchain = {**plan.toolchain, "fleetc": version("fleetc")}
    settings = {
        "precision": plan.precision,
        "threads": str(plan.target_plan.threads),
        "options": canonical_json(options_to_dict(plan.target_plan.options)),
    }
    return {kernel.workload: TuningKey(kernel.workload, plan.target, toolchain, settings, device) for kernel in kernels}


def choose_schedule(kernels: Sequence[Tunable], plan: Plan, profile: HardwareProfile, log: TuningLog) -> Kernels:
    """The plan with what the log has for each kernel on the profile's device.

    A choice that is the target's own first is left out of the plan's schedule: a log that only confirms it changes
    neither the build nor its key.
    """
    if not kernels:
        return Kernels(plan, ())
    keys = tuning_keys(kernels, plan, profile_device(profile))
    records = log.records()
    scheduled = schedule(kernels, keys, records)
    defaults = {kernel.workload: kernel.default for kernel in kernels}
    chosen = {
        kernel.workload: dict(kernel.choice) for kernel in scheduled if kernel.choice != defaults[kernel.workload]
    }
    target_plan = replace(plan.target_plan, schedule=dict(sorted(chosen.items())))
    decisions = {**plan.decisions, "tuning": _decision(scheduled)}
    return Kernels(
        replace(plan, decisions=decisions, target_plan=target_plan), scheduled, curves(kernels, keys, records)
    )


def _decision(scheduled: Sequence[Scheduled]) -> Decision:
    counts = {basis: sum(kernel.basis == basis for kernel in scheduled) for basis in Basis}
    reasons = {
        Basis.MEASURED: "by records of this type of device in the tuning log",
        Basis.TRANSFERRED: "from another type of device or toolchain, not measured here",
        Basis.PREDICTED: "by the target's cost model",
    }
    present = [name for name, count in counts.items() if count]
    words = ", ".join(f"{counts[name]} {name}" for name in present)
    return Decision(f"{words} of {len(scheduled)} kernels", "; ".join(f"{name}: {reasons[name]}" for name in present))
