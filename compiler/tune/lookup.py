"""From the log to a build: which choice each kernel gets, and what it is based on.

measured      a record of this very device type, toolchain and settings: the best of its figures
transferred   nothing was measured here; the best of another cache size, model or toolchain with the same instruction
              set and cores: a proposal, and said to be one
predicted     no record applies: the first choice, by the target's cost model
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from compiler.artifact import Evidence
from compiler.artifact.schema import Basis, Curve, Scheduled
from compiler.store import canonical_json
from compiler.tune.record import Choice, Tunable, TuningKey, TuningRecord

TRUST = (Evidence.DEVICE, Evidence.HOST, Evidence.EMULATOR)
"""Whose figures decide where there are several kinds: times before instruction counts, which are no times."""


def curves(
    kernels: Sequence[Tunable], keys: Mapping[str, TuningKey], records: Sequence[TuningRecord]
) -> tuple[Curve, ...]:
    """The trials behind every kernel that was measured; arguments as of `schedule`."""
    by_workload = _by_workload(records)
    every = (_curve(kernel, keys[kernel.workload], by_workload.get(kernel.workload, [])) for kernel in kernels)
    return tuple(curve for curve in every if curve)


def _curve(kernel: Tunable, key: TuningKey, records: Sequence[TuningRecord]) -> Curve | None:
    own = [record for record in records if record.key == key]
    best = best_of(own)
    if best is None:
        return None
    values = tuple(record.median if not record.error else None for record in own if record.evidence == best.evidence)
    return Curve(kernel.name, kernel.count, best.unit, best.evidence, values)


def schedule(
    kernels: Sequence[Tunable], keys: Mapping[str, TuningKey], records: Sequence[TuningRecord]
) -> tuple[Scheduled, ...]:
    """Decides every kernel of a model by what the log has of it.

    Args:
        kernels: The kernels.
        keys: Workload → the key of a measurement on the device that is built for.
        records: The log, all device types.
    """
    by_workload = _by_workload(records)
    return tuple(_scheduled(kernel, keys[kernel.workload], by_workload.get(kernel.workload, [])) for kernel in kernels)


def _by_workload(records: Sequence[TuningRecord]) -> Mapping[str, list[TuningRecord]]:
    groups: dict[str, list[TuningRecord]] = {}
    for record in records:
        groups.setdefault(record.key.workload, []).append(record)
    return groups


def best_of(records: Iterable[TuningRecord]) -> TuningRecord | None:
    """The smallest figure of the most trusted kind; of equal ones the first written."""
    good = [record for record in records if not record.error]
    # kinds are not mixed: microseconds and instructions have no common scale
    for evidence in TRUST:
        kind = [record for record in good if record.evidence == evidence]
        if kind:
            return min(kind, key=lambda record: record.median)
    return None


def proposals(records: Iterable[TuningRecord], key: TuningKey) -> list[TuningRecord]:
    """The best record of every other device, toolchain and setting that measured this workload, nearest first."""
    others: dict[str, list[TuningRecord]] = {}
    for record in records:
        if _same_kernel(record.key, key) and record.key != key:
            others.setdefault(record.key.digest, []).append(record)
    bests = [best for group in others.values() if (best := best_of(group))]
    return sorted(bests, key=lambda record: (-_nearness(record.key, key), record.date, record.key.digest))


def _scheduled(kernel: Tunable, key: TuningKey, records: Sequence[TuningRecord]) -> Scheduled:
    known = {canonical_json(choice) for choice in kernel.choices}
    # an older fleetc may have offered choices that this one cannot build any more
    usable = [record for record in records if canonical_json(record.choice) in known]
    measured = best_of(record for record in usable if record.key == key)
    if measured is not None:
        return _of(kernel, measured.choice, Basis.MEASURED, measured.evidence, str(measured))
    near = [record for record in proposals(usable, key) if _transfers(record.key, key)]
    if near:
        return _of(kernel, near[0].choice, Basis.TRANSFERRED, Evidence.NONE, _transfer_text(near[0], key))
    why = "the target's cost model puts it first; nothing was measured"
    return _of(kernel, kernel.default, Basis.PREDICTED, Evidence.NONE, why)


def _of(kernel: Tunable, choice: Choice, basis: Basis, evidence: Evidence, reason: str) -> Scheduled:
    return Scheduled(kernel.name, kernel.workload, kernel.count, choice, basis, evidence, reason)


def _same_kernel(recorded: TuningKey, wanted: TuningKey) -> bool:
    return recorded.workload == wanted.workload and recorded.target == wanted.target


def _transfers(recorded: TuningKey, wanted: TuningKey) -> bool:
    """Whether a choice measured there may be built with here: the same instructions on as many cores."""
    return (recorded.device.isa, recorded.device.cores) == (wanted.device.isa, wanted.device.cores)


def _nearness(recorded: TuningKey, wanted: TuningKey) -> int:
    same_device, same_settings = recorded.device == wanted.device, recorded.settings == wanted.settings
    same_toolchain = recorded.toolchain == wanted.toolchain
    # a choice that may be taken over as it is comes before all that only share device, toolchain and settings
    return 4 * _transfers(recorded, wanted) + same_device + same_toolchain + same_settings


def _transfer_text(record: TuningRecord, key: TuningKey) -> str:
    differing = []
    if record.key.device != key.device:
        differing.append(str(record.key.device))
    differing += [
        f"{name} {version}" for name, version in record.key.toolchain.items() if key.toolchain.get(name) != version
    ]
    if record.key.settings != key.settings:
        differing.append("other settings")
    return f"transferred from {', '.join(differing)} ({record}), not measured here"
