"""The figures of one device as the report's tables show them: text, difference to the float original, evidence."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.artifact.report.read import Build, Device, payload_bytes
from compiler.artifact.schema import (
    Evidence,
    Footprint,
    Gate,
    MeasuredOn,
    ParityStatus,
    SpeedUnit,
    TrialFacts,
    less_text,
)

MIB = 1 << 20
FLOAT = "the float original"


@dataclass(frozen=True)
class Figure:
    """One figure: as text, what it is against the float original (or why there is none), where it is from."""

    text: str
    detail: str = ""
    evidence: Evidence = Evidence.NONE


@dataclass(frozen=True)
class Row:
    """One device class in the fleet's table; `changes` tells what is new against a previous build."""

    device: Device
    precision: str
    target: str
    profile: str
    size: Figure
    memory: Figure
    speed: Figure
    accuracy: Figure
    gates: tuple[Gate, ...]
    changes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The gates in a few words."""
        if not self.gates:
            return "no gate" if not self.device.failure else "failed"
        passed, judged = (sum(gate.passed is state for gate in self.gates) for state in (True, None))
        failed = len(self.gates) - passed - judged
        words = ((passed, "passed"), (failed, "failed"), (judged, "not judged"))
        return ", ".join(f"{count} {word}" for count, word in words if count)


def rows_of(build: Build, previous: Build | None) -> tuple[Row, ...]:
    """One row per device of a build, in its order."""
    before = {device.name: device for device in previous.devices} if previous else {}
    return tuple(_row(device, before.get(device.name), previous is not None) for device in build.devices)


def chosen_trial(device: Device) -> TrialFacts | None:
    """The trial that was delivered; None if none was."""
    return device.searched.chosen if device.searched else None


def _row(device: Device, before: Device | None, compares: bool) -> Row:
    manifest, searched = device.manifest, device.searched
    plan = searched.plan if searched else None
    return Row(
        device=device,
        precision=manifest.artifact.precision if manifest else "",
        target=plan.target if plan else "",
        profile=plan.profile if plan else "",
        size=_size(device),
        memory=_memory(device),
        speed=_speed(device),
        accuracy=_accuracy(device),
        gates=searched.gates if searched else (),
        changes=_changes(device, before) if compares else (),
    )


def _size(device: Device) -> Figure:
    if device.manifest is None:
        return Figure("–", "nothing was delivered")
    if device.manifest.artifact.deferred:
        return Figure("deferred", device.manifest.artifact.deferred)
    footprint, original, size = _footprint(device), device.manifest.original, payload_bytes(device)
    detail = _less(size, device.manifest.source.bytes, "the float model's weights")
    if footprint and original and original.weights_bytes:
        detail = _less(footprint.weights_bytes, original.weights_bytes, FLOAT)
    return Figure(f"{size / MIB:.1f} MiB", detail, footprint.weights_evidence if footprint else Evidence.HOST)


def _memory(device: Device) -> Figure:
    footprint, original = _footprint(device), device.searched.original if device.searched else None
    if footprint is None or footprint.run_bytes is None:
        return Figure("–", (footprint.why if footprint else "") or "not measured")
    detail = _less(footprint.run_bytes, original.run_bytes, FLOAT) if original and original.run_bytes else footprint.why
    return Figure(f"{footprint.run_bytes / MIB:.1f} MiB", detail, footprint.run_evidence)


def _speed(device: Device) -> Figure:
    measured, trial = device.measurements, chosen_trial(device)
    speed = trial.speed if trial else None
    detail = ""
    if speed and speed.speedup is not None:
        same = speed.evidence == measured.evidence
        detail = speed.ratio_words + ("" if same else f" ({speed.evidence})")
    if measured.latency:
        return Figure(f"{measured.latency[0].p50_ms:.2f} ms", detail, measured.evidence)
    if measured.instructions:
        return Figure(f"{measured.instructions / 1e6:.1f} M instructions", detail, measured.evidence)
    if speed and speed.value is not None and speed.unit in (SpeedUnit.MS, SpeedUnit.ROOFLINE_MS):
        return Figure(speed.time_words, detail, speed.evidence)
    return Figure("–", detail or "not executed")


def _accuracy(device: Device) -> Figure:
    trial = chosen_trial(device)
    accuracy = trial.accuracy if trial else None
    if accuracy and accuracy.drop:
        drop, score = accuracy.drop, accuracy.drop.candidate
        lost = f"{points_lost(drop.drop_pct)} {interval(drop.low_pct, drop.high_pct)}"
        text = f"{score.value_pct:.1f} % {interval(score.low_pct, score.high_pct)}".strip()
        on_border = accuracy.measured_on == MeasuredOn.BORDER_MODEL
        where = f"; on the {accuracy.measured_on}, not the artifact" if on_border else ""
        return Figure(text, f"{score.metric}: {lost}".strip() + where, accuracy.evidence)
    if device.manifest is None:
        return Figure("–")
    parity = device.manifest.verdict.parity
    worst = parity.worst_sqnr_db
    why = accuracy.note if accuracy else "no evaluation"
    if parity.status != ParityStatus.PASSED:
        return Figure("–", why or parity.reason or parity.status)
    text = "equal to the bit" if worst is None else f"SQNR {worst:.0f} dB"
    return Figure(text, f"against the {device.manifest.verdict.reference}; {why}", parity.evidence)


def points_lost(drop_pct: float) -> str:
    """A difference of a metric in words."""
    if round(drop_pct, 2) == 0:
        return "0 points lost"
    return f"{drop_pct:.2f} points lost" if drop_pct > 0 else f"{-drop_pct:.2f} points gained"


def interval(low: float | None, high: float | None) -> str:
    """A 95 % interval, or nothing."""
    return "" if low is None or high is None else f"({low:.1f} to {high:.1f})"


def _footprint(device: Device) -> Footprint | None:
    trial = chosen_trial(device)
    return trial.footprint if trial else None


def _less(size: float, original: float, whose: str) -> str:
    if not original:
        return ""
    percent_less = 100 * (1 - size / original)
    if round(percent_less) == 0:
        return f"as much as {whose}"
    return f"{less_text(percent_less, places=0)} than {whose}"


def _changes(device: Device, before: Device | None) -> tuple[str, ...]:
    if before is None:
        return ("new",)
    if device.status != before.status:
        return (f"was {before.status}, is {device.status}",)
    now, old = _row(device, None, False), _row(before, None, False)
    changes = [f"precision {old.precision} → {now.precision}"] if old.precision != now.precision else []
    pairs = (
        ("size", float(payload_bytes(before)), float(payload_bytes(device))),
        ("latency", _p50(before), _p50(device)),
        ("instructions", float(before.measurements.instructions or 0), float(device.measurements.instructions or 0)),
    )
    changes += [
        f"{name} {100 * (after / was - 1):+.1f} %" for name, was, after in pairs if was and after and was != after
    ]
    lost, was_lost = _lost(device), _lost(before)
    if lost is not None and was_lost is not None and lost != was_lost:
        changes.append(f"accuracy {was_lost - lost:+.2f} points")
    return tuple(changes) or ("no change",)


def _p50(device: Device) -> float:
    return device.measurements.latency[0].p50_ms if device.measurements.latency else 0.0


def _lost(device: Device) -> float | None:
    trial = chosen_trial(device)
    return trial.accuracy.drop.drop_pct if trial and trial.accuracy and trial.accuracy.drop else None
