"""Kernels, their schedules and what tuning found, as text for a terminal and as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compiler.cli.text import table

if TYPE_CHECKING:
    from compiler.driver.tune_kernels import TuneReport
    from compiler.tune import Tuned, TuningRecord


def kernels_text(device: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per kernel: what it is built with, on what basis, by which record."""
    if not rows:
        return f"{device}: the target has no kernels with a choice"
    cells = [
        (f"{row['kernel']} ×{row['count']}", choice_text(row["choice"]), row["basis"], row["evidence"], row["reason"])
        for row in rows
    ]
    return f"{device}\n" + table(cells, ("kernel", "schedule", "basis", "evidence", "record"))


def tuned_text(report: TuneReport) -> str:
    """One line per kernel: tried, best, gain over the untuned choice; then where the records are."""
    head = ("kernel", "tried", "failed", "untuned", "best", "runs", "gain", "choice", "stopped by")
    lines = [table([_tuned_row(tuned) for tuned in report.tuned], head)]
    lines += [f"measured on {report.device} ({report.evidence})", f"log: {report.log}"]
    return "\n".join([*lines, *([f"note: {report.note}"] if report.note else [])])


def tuned_dict(report: TuneReport) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "profile": report.plan.profile,
        "precision": report.plan.precision,
        "device": str(report.device),
        "evidence": str(report.evidence),
        "unit": "instructions" if report.evidence == "measured-emulator" else "us",
        "log": str(report.log),
        "note": report.note,
        "kernels": [_tuned_dict(tuned) for tuned in report.tuned],
    }


def choice_text(choice: Mapping[str, Any]) -> str:
    """A choice in a line."""
    return ", ".join(f"{name}={value}" for name, value in choice.items())


def _tuned_row(tuned: Tuned) -> tuple[str, ...]:
    best, gain = tuned.best, _gain(tuned)
    return (
        f"{tuned.kernel.name} ×{tuned.kernel.count}",
        f"{tuned.tried} of {len(tuned.kernel.choices)}",
        str(tuned.failed),
        _figure(tuned.default),
        _figure(best),
        str(best.runs) if best else "",
        f"{gain:.2f} ×" if gain else "",
        choice_text(best.choice) if best else "",
        tuned.stopped,
    )


def _tuned_dict(tuned: Tuned) -> dict[str, Any]:
    return {
        "kernel": tuned.kernel.name,
        "workload": tuned.kernel.workload,
        "count": tuned.kernel.count,
        "choices": len(tuned.kernel.choices),
        "tried": tuned.tried,
        "new": tuned.new,
        "failed": tuned.failed,
        "stopped": tuned.stopped,
        "untuned": tuned.default.median if tuned.default else None,
        "best": {
            "choice": dict(tuned.best.choice),
            "median": tuned.best.median,
            "spread": tuned.best.spread,
            "runs": tuned.best.runs,
            "evidence": str(tuned.best.evidence),
        }
        if tuned.best
        else None,
    }


def _gain(tuned: Tuned) -> float | None:
    return tuned.default.median / tuned.best.median if tuned.default and tuned.best else None


def _figure(record: TuningRecord | None) -> str:
    if record is None:
        return "none"
    if record.unit != "us":
        return f"{record.median / 1e6:.3f} M instr."
    return f"{record.median:.1f} ± {record.spread / 2:.1f} us"
