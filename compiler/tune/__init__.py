"""Tuning remembered: kernels with choices, trials measured one by one, one log per type of device.

Nothing of a target is known here: a kernel is a name, a digest and a list of choices; who measures is a function.
"""

from __future__ import annotations

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
