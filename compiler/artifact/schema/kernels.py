"""Kernels: what each one is built with, the record that says so, and the trials behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import FiniteFloat

from compiler.artifact.artifact import Evidence


class Basis(StrEnum):
    """What the choice for a kernel is based on.

    `measured` on this type of device; `transferred` from another one, device, model or toolchain; `predicted` by the
    target's cost model.
    """

    MEASURED = "measured"
    TRANSFERRED = "transferred"
    PREDICTED = "predicted"


@dataclass(frozen=True)
class Scheduled:
    """What one kernel is built with.

    Args:
        kernel: Its name.
        workload: Its digest.
        count: How often the model executes it.
        choice: What it is built with.
        basis: What the choice is based on.
        evidence: Where the figure behind it is from; `none` unless it was measured.
        reason: The record it is from, in words.
    """

    kernel: str
    workload: str
    count: int
    choice: Mapping[str, Any]
    basis: Basis
    evidence: Evidence
    reason: str


@dataclass(frozen=True)
class Curve:
    """What measuring one kernel on the device that is built for came to, trial by trial.

    Args:
        kernel: Its name.
        count: How often the model executes it.
        unit: `us` or `instructions`.
        evidence: Where the figures are from.
        values: Median of each trial, in the order of the log; None for one that failed.
    """

    kernel: str
    count: int
    unit: str
    evidence: Evidence
    values: tuple[FiniteFloat | None, ...]
