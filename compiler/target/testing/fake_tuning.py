"""A fake target whose kernels have choices, with trials that fail, crash or hang on request."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import onnx_ir as ir
from pydantic import Field

from compiler.artifact import Evidence
from compiler.errors import TargetUnavailable
from compiler.fleet.profile import HardwareProfile
from compiler.target.target import Backend, Measurer, TargetPlan
from compiler.target.testing.fake import FakeTarget, Options, misbehave
from compiler.tune import Choice, DeviceType, Measurement, Tunable, profile_device


@dataclass(frozen=True)
class TuningOptions(Options):
    """What shall go wrong while it is tuned, beside what `Options` has."""

    tiles: Annotated[int, Field(ge=1, description="Choices of each kernel: tiles 1, 2, …")] = 4
    trial: Annotated[
        Literal["ok", "fail", "crash", "hang", "lost"], Field(description="What the trial of `at_tile` does.")
    ] = "ok"
    at_tile: Annotated[int, Field(ge=1, description="The tile that goes wrong.")] = 2
    trials_log: Annotated[str, Field(description="File that gets a line per trial, before it is run.")] = ""
    seconds_per_trial: Annotated[float, Field(ge=0, description="How long a trial takes.")] = 0.0


class FakeTunedTarget(FakeTarget):
    """Every MatMul, Gemm and Conv is a kernel with one choice per tile; the largest tile but one is the fastest."""

    Options = TuningOptions

    def tunables(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile) -> Sequence[Tunable]:
        """One kernel per operator that multiplies."""
        nodes = [node for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
        choices = tuple({"tile": tile} for tile in range(1, plan.options.tiles + 1))
        return [Tunable(str(node.name), _workload(node), choices) for node in nodes]

    def measurer(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile, backend: Backend) -> Measurer:
        """Computed figures, labelled as the back-end's would be; one back-end is not there."""
        if backend.kind == "rpc":
            raise TargetUnavailable("the fake board is not there", remedy="Use --backend host.")
        return _FakeMeasurer(plan.options, backend, profile_device(profile))


@dataclass
class _FakeMeasurer:
    options: TuningOptions
    backend: Backend
    device: DeviceType

    @property
    def evidence(self) -> Evidence:
        return Evidence.HOST if self.backend.kind == "host" else Evidence.EMULATOR

    def measure(self, kernel: Tunable, choice: Choice) -> Measurement:
        tile = int(choice["tile"])
        if self.options.trials_log:
            with Path(self.options.trials_log).open("a", encoding="utf-8") as file:
                file.write(f"{kernel.name} {tile}\n")
        if tile == self.options.at_tile and self.options.trial == "lost":
            raise TargetUnavailable("the fake board died")
        misbehave(self.options.trial if tile == self.options.at_tile else "sleep", self.options.seconds_per_trial)
        time_us = 100.0 / tile if tile < self.options.tiles else 200.0
        return Measurement((time_us, time_us * 1.02, time_us * 0.98), self.evidence)


def _workload(node: ir.Node) -> str:
    shapes = [str(value.shape) for value in (*node.inputs, *node.outputs) if value is not None]
    return hashlib.sha256("|".join([node.op_type, str(node.name), *shapes]).encode()).hexdigest()
