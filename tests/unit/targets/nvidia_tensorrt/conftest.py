"""Building for a GPU profile, and skips that say why."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from tensorrt_cases import Build, gpu_profile

from compiler.artifact import Artifact
from compiler.errors import TargetUnavailable
from compiler.fleet import Range
from compiler.fleet.profile import validate_options
from compiler.target import TargetPlan
from targets.nvidia_tensorrt import TARGET, Options
from targets.nvidia_tensorrt.cuda import find_device
from targets.nvidia_tensorrt.rules import AHEAD_OF_TIME


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Builds a model for a compute capability: `build(model, "8.9", batch=Range(1, 2, 4), precision="fp32")`."""

    def run(model: ir.Model, compute_capability: str = "8.9", *, precision: str = "fp32", **rest: object) -> Artifact:
        dims = {name: size for name, size in rest.items() if isinstance(size, Range)}
        options = {name: value for name, value in rest.items() if name not in dims}
        profile = gpu_profile(compute_capability, **options)
        plan = TargetPlan(precision, validate_options(Options, profile), dims)
        return TARGET.build(model, plan, profile, workdir=tmp_path)

    return run


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what this machine cannot do, with the target's own reason."""
    try:
        if item.get_closest_marker("needs_tensorrt"):
            TARGET.check(gpu_profile())
        if item.get_closest_marker("needs_gpu"):
            _any_gpu()
    except TargetUnavailable as reason:
        pytest.skip(reason.what)


def _any_gpu() -> str:
    """A compute capability that a GPU of this machine has and TensorRT-RTX builds for."""
    for capability in AHEAD_OF_TIME[:-1]:
        try:
            return find_device(capability).compute_capability
        except TargetUnavailable:
            continue
    return find_device(AHEAD_OF_TIME[-1]).compute_capability


@pytest.fixture
def gpu() -> str:
    """The compute capability of this machine's GPU."""
    return _any_gpu()
