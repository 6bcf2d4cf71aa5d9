"""Tuning: choices of kernels are measured one by one, and remembered in one log per type of device.

Nothing of a target is known here: a kernel is a name, a digest and a list of choices; who measures is a function.
Each name is imported when it is first used: a child process needs the records alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.artifact.schema import Curve, Scheduled
    from compiler.tune.log import TuningLog, read_lines
    from compiler.tune.lookup import curves, schedule
    from compiler.tune.loop import Budget, Tuned, tune
    from compiler.tune.record import (
        Choice,
        DeviceType,
        Measurement,
        Tunable,
        TuningKey,
        TuningRecord,
        profile_device,
    )

_PLACES = {
    "Budget": "compiler.tune.loop",
    "Choice": "compiler.tune.record",
    "Curve": "compiler.artifact.schema",
    "DeviceType": "compiler.tune.record",
    "Measurement": "compiler.tune.record",
    "Scheduled": "compiler.artifact.schema",
    "Tunable": "compiler.tune.record",
    "Tuned": "compiler.tune.loop",
    "TuningKey": "compiler.tune.record",
    "TuningLog": "compiler.tune.log",
    "TuningRecord": "compiler.tune.record",
    "curves": "compiler.tune.lookup",
    "profile_device": "compiler.tune.record",
    "read_lines": "compiler.tune.log",
    "schedule": "compiler.tune.lookup",
    "tune": "compiler.tune.loop",
}

__all__ = [
    "Budget",
    "Choice",
    "Curve",
    "DeviceType",
    "Measurement",
    "Scheduled",
    "Tunable",
    "Tuned",
    "TuningKey",
    "TuningLog",
    "TuningRecord",
    "curves",
    "profile_device",
    "read_lines",
    "schedule",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'compiler.tune' has no attribute '{name}'")
    return getattr(import_module(_PLACES[name]), name)
